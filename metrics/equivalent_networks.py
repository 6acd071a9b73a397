"""Networks with other weights that compute the same function as a given one, on all inputs."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.metrics.rewriting import LINEAR, Original, calls_of, copy_to_rewrite, set_tensor
from harness.types import NotApplicableError

SIZES = ("out_channels", "out_features", "num_features", "num_parameters")

Index = Callable[[Tensor, Tensor], Int[Tensor, " units"]]
"""Which of the old units the new ones are, by the weights of the layer that makes them and of the one that reads."""


def units_permuted(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    """A copy in which the units of a hidden layer stand in reverse order.

    The first pair of consecutive layers that allows it is taken. What lies between them and holds one number for each
    unit (batch norm, depthwise convolution) is reversed as well. Reversed groups are groups, for a group norm.

    Args:
        model: returns logits [n, classes]; never written to. The copy shares the layers that stay as they are.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """
    return _units_indexed(model, x, "permuted", lambda first, _: torch.arange(len(first)).flip(0))


def unit_duplicated(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    """A copy in which a unit of a hidden layer is there twice, each with half of the outgoing weights.

    The unit is the one with the largest product of the norms of its incoming and of its outgoing weights.

    Args:
        model: returns logits [n, classes]; never written to. The copy shares the layers that stay as they are.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """

    def index(first: Tensor, last: Tensor) -> Tensor:
        incoming = first.flatten(1).norm(dim=1)
        outgoing = last.transpose(0, 1).reshape(len(first), -1).norm(dim=1)
        return torch.cat([torch.arange(len(first)), (incoming * outgoing).argmax().cpu()[None]])

    return _units_indexed(model, x, "duplicated", index)


def batch_norm_folded(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    r"""A copy without the batch norms that follow a linear layer: $W' = s W$, $b' = s (b - \mu) + \beta$.

    With $s = \gamma / \sqrt{\sigma^2 + \epsilon}$. All batch norms that take the very output of a linear layer or
    convolution are folded, and an identity stands in their place; the first that can be folded alone, where something
    else reads the output of one of the layers.

    Args:
        model: returns logits [n, classes], in evaluation mode; never written to. The copy shares the layers that stay
            as they are.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: there are none, or something else reads the output of each of the layers.
    """
    calls = calls_of(model, x[:1])
    times = Counter(call.name for call in calls)
    makers = {id(call.output): call for call in calls if isinstance(call.module, LINEAR) and times[call.name] == 1}
    pairs = [
        (makers[id(call.input)].name, call.name)
        for call in calls
        if isinstance(call.module, _BatchNorm) and call.module.running_mean is not None and id(call.input) in makers
    ]
    if not pairs:
        raise NotApplicableError("no batch norm follows a linear layer or convolution")
    original = Original(model, x)
    for together in (pairs, *([pair] for pair in pairs)):
        try:
            return original.rewritten(partial(_folded, pairs=together))
        except NotApplicableError:
            continue
    raise NotApplicableError(f"the outputs of {', '.join(layer for layer, _ in pairs)} are not for batch norms alone")


def _folded(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> nn.Module:
    """A copy in which each of these linear layers has the weights that it has together with the batch norm behind."""
    rewritten = copy_to_rewrite(model, (layer for layer, _ in pairs))
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


def _units_indexed(model: nn.Module, x: Tensor, how: str, index: Index) -> nn.Module:
    """The first copy that is the same function, from the pairs of layers that mix their inputs and follow each other.

    Raises:
        NotApplicableError: none is.
    """
    calls = calls_of(model, x[:1])
    mixing = [
        place
        for place, call in enumerate(calls)
        if isinstance(call.module, LINEAR) and getattr(call.module, "groups", 1) == 1
    ]
    original = Original(model, x)
    for start, end in pairwise(mixing):
        modules: list[Any] = [calls[place].module for place in (start, end)]
        first, last = (module.weight.detach() for module in modules)
        if len(first) == 1 or last.shape[1] % len(first):
            continue
        names = [call.name for call in calls[start : end + 1]]
        try:
            return original.rewritten(partial(_reindexed, names=names, index=index(first, last)))
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
    rewritten = copy_to_rewrite(model, names)
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
