"""Networks that compute the same function as a given one and are built differently, and how far maps of them differ.

What is connected to what is not known of a model in general. So a rewriting is made where the order of the calls
suggests it and then checked: it is kept only if the logits agree, on the samples and on noise around them.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.random import Draws
from harness.types import NotApplicableError, Score

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SIZES = ("out_channels", "out_features", "num_features", "num_parameters")
SCREENED = 2
"""Samples that a rewriting must agree on before it is checked on all."""

ROUNDING = 1e-10
"""What is smaller than this part of the largest response of a layer is rounding, in double precision."""


def relative_difference(
    measure: str, maps: Float[Tensor, "n *shape"], others: Float[Tensor, "n *shape"], stage: str | None = None
) -> Score:
    r"""$\|a - a'\|_2 / \|a\|_2$ of each pair, in [0, inf); undefined where $a$ is zero or either is not finite."""
    a, b = maps.flatten(1).double(), others.flatten(1).double()
    size = a.norm(dim=1)
    undefined = first_reason(
        {"not finite (trained network)": ~a.isfinite().all(1), "not finite (rewritten network)": ~b.isfinite().all(1)},
        {"the map is zero everywhere": size == 0},
    )
    return Score(measure, undefined_as_nan((a - b).norm(dim=1) / size, undefined), undefined, stage=stage)


def shift_absorbed(model: nn.Module, x: Float[Tensor, "n ..."], shift: float | Float[Tensor, "..."]) -> nn.Module:
    r"""A copy $f'$ with $f'(x + m) = f(x)$: the layers that take the input have $b' = b - W m$.

    `kindermans2019reliability`. $W m$ is read off each layer itself, as its response to $m$ without its bias. Where a
    convolution pads with zeros, which do not move along, the response is another at the border. The response in the
    middle goes into the bias, and the difference to it is taken from the output of the layer at the border. That is
    the same as to pad $x + m$ with $m$, but the layer still takes the input itself, as rules for the input want it.

    Args:
        model: returns logits [n, classes]; never written to.
        x: samples to trace the model and to check the copy with.
        shift: $m$, broadcastable to one sample [1, ...].

    Raises:
        NotApplicableError: no linear layer or convolution takes the input itself, or something else does too.
    """
    calls = _calls(model, x[:1])
    readers = {call.name: call for call in calls if call.reads_input and isinstance(call.module, LINEAR)}
    if not readers:
        neither = [f"{call}, which is neither, does" for call in calls if call.reads_input]
        functional = "the model changes it first, or its first operator is functional"
        raise NotApplicableError(
            "no linear layer or convolution takes the input itself, so that nothing can absorb a shift: "
            f"{(*neither, functional)[0]}"
        )
    rewritten = copy.deepcopy(model)
    moved = torch.as_tensor(shift).to(x).expand_as(x[:1])
    for name, call in readers.items():
        _absorb(rewritten.get_submodule(name), moved.reshape(call.input.shape))
    deviation = Probes.of(model, x).deviation(rewritten, moved)
    if not deviation <= _tolerance(x):
        raise NotApplicableError(
            f"the shift cannot be absorbed: with new biases in {', '.join(map(repr, readers))} the logits of the "
            f"shifted input still differ by {deviation:.2g} of the largest, so something else sees the input as well"
        )
    return rewritten


def units_permuted(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    """A copy in which the units of a hidden layer stand in reverse order.

    The first pair of consecutive layers that allows it is taken. What lies between them and holds one number for each
    unit (batch norm, depthwise convolution) is reversed as well. Reversed groups are groups, for a group norm.

    Args:
        model: returns logits [n, classes]; never written to.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """
    return _first_rewritten(model, x, "permuted", lambda first, _: torch.arange(len(first)).flip(0))


def unit_duplicated(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    """A copy in which a unit of a hidden layer is there twice, each with half of the outgoing weights.

    The unit is the one with the largest product of the norms of its incoming and of its outgoing weights.

    Args:
        model: returns logits [n, classes]; never written to.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: no pair of consecutive layers can be rewritten.
    """

    def index(first: Tensor, last: Tensor) -> Tensor:
        incoming = first.flatten(1).norm(dim=1)
        outgoing = last.transpose(0, 1).reshape(len(first), -1).norm(dim=1)
        return torch.cat([torch.arange(len(first)), (incoming * outgoing).argmax().cpu()[None]])

    return _first_rewritten(model, x, "duplicated", index)


def batch_norm_folded(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    r"""A copy without the batch norms that follow a linear layer: $W' = s W$, $b' = s (b - \mu) + \beta$.

    With $s = \gamma / \sqrt{\sigma^2 + \epsilon}$. All batch norms that take the very output of a linear layer or
    convolution are folded, and an identity stands in their place; the first that can be folded alone, where something
    else reads the output of one of the layers.

    Args:
        model: returns logits [n, classes], in evaluation mode; never written to.
        x: samples to trace the model and to check the copy with.

    Raises:
        NotApplicableError: there are none, or something else reads the output of each of the layers.
    """
    calls = _calls(model, x[:1])
    times = Counter(call.name for call in calls)
    makers = {id(call.output): call for call in calls if isinstance(call.module, LINEAR) and times[call.name] == 1}
    pairs = [
        (makers[id(call.input)].name, call.name)
        for call in calls
        if isinstance(call.module, _BatchNorm) and call.module.running_mean is not None and id(call.input) in makers
    ]
    if not pairs:
        raise NotApplicableError("no batch norm follows a linear layer or convolution")
    probes = Probes.of(model, x)
    for folded in (pairs, *([pair] for pair in pairs)):
        rewritten = copy.deepcopy(model)
        for layer, norm in folded:
            _fold(rewritten, layer, norm)
        if probes.agree(rewritten):
            return rewritten
    raise NotApplicableError(f"the outputs of {', '.join(layer for layer, _ in pairs)} are not for batch norms alone")


@dataclass(frozen=True)
class Probes:
    """Where two networks must agree to be taken for the same function, and what the first one says there."""

    inputs: tuple[Float[Tensor, "n ..."], ...]
    logits: tuple[Float[Tensor, "n classes"], ...]

    @classmethod
    def of(cls, model: nn.Module, x: Float[Tensor, "n ..."]) -> "Probes":
        """The samples, and the samples with as much noise: units that are silent on samples must agree as well."""
        noise = Draws.of([str(row) for row in range(len(x))], "probes", device=x.device).normal(*x.shape[1:])
        inputs = (x, x + x.square().mean().sqrt() * noise.to(x.dtype))
        with torch.no_grad():
            return cls(inputs, tuple(model(each.clone()) for each in inputs))

    def deviation(self, rewritten: nn.Module, shift: Float[Tensor, "..."] | float = 0.0) -> float:
        """The largest difference of a logit, as a fraction of the largest logit, where the inputs are shifted."""
        with torch.no_grad():
            others = [rewritten(each + shift) for each in self.inputs]
        old, new = torch.cat(self.logits), torch.cat(others)
        return float((old - new).abs().max() / old.abs().max())

    def agree(self, rewritten: nn.Module) -> bool:
        """Whether the logits are the same up to rounding."""
        return self.deviation(rewritten) <= _tolerance(self.inputs[0])


@dataclass(frozen=True)
class _Call:
    """One call of a module in a forward pass: its tensors, and whether it takes the numbers of the input."""

    name: str
    module: nn.Module
    input: Tensor
    output: object
    reads_input: bool

    def __str__(self) -> str:
        return f"{type(self.module).__name__} {self.name!r}"


def _calls(model: nn.Module, x: Tensor) -> list[_Call]:
    """The calls of layers, in the order of execution."""
    calls: list[_Call] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        given = inputs[0] if inputs else None
        if isinstance(given, Tensor):
            # The shape may be another: a flattened input is still the input.
            same = len(given) == len(x) and given.dtype == x.dtype and torch.equal(given.flatten(), x.flatten())
            calls.append(_Call(name, module, given, output, same))

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LINEAR) or (n and not any(m.children()))]
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
        for name, module in layers
    ]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _tolerance(x: Tensor) -> float:
    return 1e-9 if x.dtype == torch.float64 else 1e-4


def _absorb(layer: Any, shift: Tensor) -> None:
    """Take what the layer answers to `shift`, of the shape of its input, out of its output again."""
    precise = copy.deepcopy(layer).double()
    with torch.no_grad():
        response = precise(shift.double()) - precise(torch.zeros_like(shift).double())
    channels = -1 if isinstance(layer, nn.Linear) else 1
    last = response.movedim(channels, -1)
    middle = last[tuple(side // 2 for side in last.shape[:-1])]
    _set(layer, "bias", -middle if layer.bias is None else layer.bias.double() - middle)
    border = (last - middle).movedim(-1, channels)
    if border.abs().max() > ROUNDING * response.abs().max():
        layer.register_buffer("border", border.to(shift.dtype))
        layer.register_forward_hook(lambda module, _, output: output - module.border)


def _fold(model: nn.Module, layer_name: str, norm_name: str) -> None:
    """Give a linear layer the weights that it has together with the batch norm behind it."""
    layer: Any = model.get_submodule(layer_name)
    norm: Any = model.get_submodule(norm_name)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    weight = layer.weight.double() * scale.view(-1, *(1,) * (layer.weight.ndim - 1))
    _set(layer, "bias", shift if layer.bias is None else layer.bias * scale + shift)
    _set(layer, "weight", weight)
    parent, _, name = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())


def _first_rewritten(
    model: nn.Module, x: Tensor, how: str, index: Callable[[Tensor, Tensor], Int[Tensor, " units"]]
) -> nn.Module:
    """The first copy that agrees, from the pairs of layers that mix their inputs and follow each other.

    `index` says by the two weights which of the old units the new ones are.

    Raises:
        NotApplicableError: none does.
    """
    calls = _calls(model, x[:1])
    mixing = [
        place
        for place, call in enumerate(calls)
        if isinstance(call.module, LINEAR) and getattr(call.module, "groups", 1) == 1
    ]
    screen = Probes.of(model, x[:SCREENED])
    for start, end in pairwise(mixing):
        modules: list[Any] = [calls[place].module for place in (start, end)]
        first, last = (module.weight.detach() for module in modules)
        if len(first) == 1 or last.shape[1] % len(first):
            continue
        try:
            rewritten = _reindexed(model, [call.name for call in calls[start : end + 1]], index(first, last))
            if screen.agree(rewritten) and Probes.of(model, x).agree(rewritten):
                return rewritten
        except Exception:
            # A forward pass may raise anything at a number of units that it does not expect.
            continue
    raise NotApplicableError(
        f"units cannot be {how}: none of the {max(len(mixing) - 1, 0)} pairs of consecutive layers is connected "
        "with each other and nothing else"
    )


def _reindexed(model: nn.Module, names: Sequence[str], index: Int[Tensor, " units"]) -> nn.Module:
    """A copy in which unit u of the first of these layers is unit `index[u]` of old; the last one reads the copies.

    Copies of one unit share its outgoing weights evenly.
    """
    rewritten = copy.deepcopy(model)
    modules: list[Any] = [rewritten.get_submodule(name) for name in names]
    first, *between, last = modules
    units = len(first.weight)
    index = index.to(first.weight.device)
    for module in (first, *between):
        own = dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
        for name, tensor in own.items():
            if tensor.ndim and len(tensor) == units:
                _set(module, name, tensor.detach()[index])
        sizes = SIZES if module is first else (*SIZES, "in_channels", "groups")
        for size in sizes:
            if getattr(module, size, None) == units:
                setattr(module, size, len(index))
    # Behind a flattening, the positions of a unit follow each other.
    positions = last.weight.shape[1] // units
    columns = (index[:, None] * positions + torch.arange(positions, device=index.device)).flatten()
    share = (1 / index.bincount()[index].double()).repeat_interleave(positions)
    weight = last.weight.detach()[:, columns]
    _set(last, "weight", weight * share.view(-1, *(1,) * (weight.ndim - 2)))
    setattr(last, "in_features" if isinstance(last, nn.Linear) else "in_channels", len(columns))
    return rewritten


def _set(module: Any, name: str, value: Tensor) -> None:
    """Give a module another parameter or buffer, in the type of the old ones."""
    old = getattr(module, name)
    value = value.detach().to((module.weight if old is None else old).dtype)
    setattr(module, name, value if name in module._buffers else nn.Parameter(value))
