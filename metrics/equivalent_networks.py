"""Networks with other weights that compute the same function as a given one, on all inputs."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.metrics.rewriting import LINEAR, Call, Original, set_tensor, sharing_copy
from harness.types import NotApplicableError

SIZES = ("out_channels", "out_features", "num_features", "num_parameters")

Index = Callable[[int, Call], Int[Tensor, " units"]]
"""Which of the old units the new ones are, by how many there are and the call of the layer that reads them."""


def units_permuted(original: Original) -> nn.Module:
    """A copy in which the units of a hidden layer stand in reverse order.

    The first pair of consecutive layers that allows it is taken. What lies between them and holds one number for each
    unit (batch norm, depthwise convolution) is reversed as well. Reversed groups are groups, for a group norm.

    Args:
        original: the network.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """
    return _units_indexed(original, "permuted", lambda units, _: torch.arange(units).flip(0))


def unit_duplicated(original: Original) -> nn.Module:
    r"""A copy in which a unit of a hidden layer is there twice, each with half of the outgoing weights.

    The unit is the one that says most to the next layer on a sample, by $\sum_p |a_{up}| \, \|w_u\|_2$ for its values a
    at positions p and its outgoing weights w.

    Args:
        original: the network.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """

    def index(units: int, reader: Call) -> Tensor:
        layer: Any = reader.module
        values = reader.input.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).reshape(units, -1).abs().sum(1)
        outgoing = layer.weight.detach().transpose(0, 1).reshape(units, -1).norm(dim=1)
        return torch.cat([torch.arange(units), (values * outgoing).argmax().cpu()[None]])

    return _units_indexed(original, "duplicated", index)


def batch_norm_folded(original: Original) -> nn.Module:
    r"""A copy without the batch norms that follow a linear layer: $W' = s W$, $b' = s (b - \mu) + \beta$.

    With $s = \gamma / \sqrt{\sigma^2 + \epsilon}$. All batch norms that take the very output of a linear layer or
    convolution are folded, and an identity stands in their place; the first that can be folded alone, where something
    else reads the output of one of the layers.

    Args:
        original: the network.

    Raises:
        NotApplicableError: there are none, or something else reads the output of each of the layers.
    """
    calls = original.calls
    times = Counter(call.name for call in calls)
    makers = {id(call.output): call for call in calls if isinstance(call.module, LINEAR) and times[call.name] == 1}
    pairs = [
        (makers[id(call.input)].name, call.name)
        for call in calls
        if isinstance(call.module, _BatchNorm) and call.module.running_mean is not None and id(call.input) in makers
    ]
    if not pairs:
        raise NotApplicableError("no batch norm follows a linear layer or convolution")
    for together in (pairs, *([pair] for pair in pairs)):
        try:
            return original.rewritten(partial(_folded, pairs=together))
        except NotApplicableError:
            continue
    raise NotApplicableError(f"the outputs of {', '.join(layer for layer, _ in pairs)} are not for batch norms alone")


def _folded(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """A copy in which each of these linear layers has the weights that it has together with the batch norm behind."""
    rewritten = sharing_copy(model)
    for layer_name, norm_name in pairs:
        layer: Any = rewritten.get_submodule(layer_name)
        norm: Any = rewritten.get_submodule(norm_name)
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
        weight = layer.weight.double() * scale.view(-1, *(1,) * (layer.weight.ndim - 1))
        set_tensor(layer, "bias", shift if layer.bias is None else layer.bias * scale + shift)
        set_tensor(layer, "weight", weight)
        parent, _, name = norm_name.rpartition(".")
        setattr(rewritten.get_submodule(parent), name, nn.Identity())
    return rewritten


def _units_indexed(original: Original, how: str, index: Index) -> nn.Module:
    """The first copy that is the same function, from the pairs of layers that mix their inputs and follow each other.

    Raises:
        NotApplicableError: none is.
    """
    calls = original.calls
    mixing = [
        place
        for place, call in enumerate(calls)
        if isinstance(call.module, LINEAR) and getattr(call.module, "groups", 1) == 1
    ]
    for start, end in pairwise(mixing):
        names = [call.name for call in calls[start : end + 1]]
        first, last = (cast(nn.Linear, calls[place].module).weight for place in (start, end))
        if len(first) == 1 or last.shape[1] % len(first):
            continue
        try:
            indices = index(len(first), calls[end])
            return original.rewritten(partial(_reindexed, names=names, index=indices))
        except NotApplicableError:
            continue
    raise NotApplicableError(
        f"units cannot be {how}: none of the {max(len(mixing) - 1, 0)} pairs of consecutive layers is connected "
        "with each other and nothing else"
    )


def _reindexed(model: nn.Module, names: Sequence[str], index: Int[Tensor, " units"]) -> nn.Module:
    """A copy in which unit u of the first of these layers is unit `index[u]` of old; the last one reads the copies.

    Copies of one unit share its outgoing weights evenly.
    """
    rewritten = sharing_copy(model)
    modules: list[Any] = [rewritten.get_submodule(name) for name in names]
    first, *between, last = modules
    units = len(first.weight)
    index = index.to(first.weight.device)
    for module in (first, *between):
        own = dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
        for name, tensor in own.items():
            if tensor.ndim and len(tensor) == units:
                set_tensor(module, name, tensor.detach()[index])
        sizes = SIZES if module is first else (*SIZES, "in_channels", "groups")
        for size in sizes:
            if getattr(module, size, None) == units:
                setattr(module, size, len(index))
    # Behind a flattening, the positions of a unit follow each other.
    positions = last.weight.shape[1] // units
    columns = (index[:, None] * positions + torch.arange(positions, device=index.device)).flatten()
    share = (1 / index.bincount()[index].double()).repeat_interleave(positions)
    weight = last.weight.detach()[:, columns]
    set_tensor(last, "weight", weight * share.view(-1, *(1,) * (weight.ndim - 2)))
    setattr(last, "in_features" if isinstance(last, nn.Linear) else "in_channels", len(columns))
    return rewritten
