"""Where a network holds positions last: the layer that class activation maps look at, found while the network runs.

`traced` runs the network once and remembers what each operator returned. Of those tensors only a *bottleneck* tells
all: one that lies on every path from the input to the logits. The last bottleneck that still has positions is the
layer, whether a module returned it or a function, with channels first or last, or with its positions in a row of
tokens.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from harness.methods.propagation import nodes_between
from harness.registry import nearest
from harness.types import NotApplicableError

MOST_EXTRA_TOKENS = 16
"""Class tokens, distillation tokens and registers that may stand before those of the positions."""

_CHANNELS_LAST = ("linear", "layer_norm", "multi_head_attention_forward", "scaled_dot_product_attention")
_NORMALIZATIONS = ("layer_norm", "rms_norm", "group_norm")
_CHANNELS_FIRST = ("conv1d", "conv2d", "batch_norm")
_LEARNT = (*_CHANNELS_LAST, *_CHANNELS_FIRST, "matmul", "addmm", "mm", "bmm", "einsum", "conv_transpose2d")


@dataclass(frozen=True)
class Layout:
    """Where in a tensor the positions are.

    Attributes:
        grid: how many there are along each axis of the input.
        channels_last: whether the channels are the last axis, or the second.
        tokens: how many tokens stand before the positions, which then are one axis; None where each has its own.
    """

    grid: tuple[int, ...]
    channels_last: bool = False
    tokens: int | None = None

    def arranged(self, tensor: Float[Tensor, "n ..."]) -> Float[Tensor, "n k *grid"]:
        """The tensor with its channels first and its positions on the grid."""
        first = tensor.movedim(-1, 1) if self.channels_last else tensor
        return first if self.tokens is None else first[:, :, self.tokens :].unflatten(2, self.grid)


@dataclass(eq=False)
class Seen:
    """A tensor that depends on the input, as an operator returned it.

    Attributes:
        tensor: itself.
        node: of the autograd graph, which made it.
        version: how often it had been written into.
        name: the outermost module that returned it, else the operator.
        channels_last: whether the operator before it mixed the last axis, so that it holds channels.
        normalized: what it is the normalization of, if it is one.
    """

    tensor: Tensor
    node: Any
    version: int
    name: str
    channels_last: bool
    normalized: Tensor | None = None


@dataclass
class Trace(TorchFunctionMode):
    """While active, remembers what every operator and every hooked module returned that depends on the input.

    Attributes:
        seen: in the order in which they were made.
        of_module: module name -> what it returned last.
        linear: input, weight and output of the last linear layer.
    """

    keep: str = ""
    seen: list[Seen] = field(default_factory=list)
    of_module: dict[str, Seen] = field(default_factory=dict)
    linear: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self._places: dict[int, int] = {}
        self._running: list[tuple[str, int]] = []
        self._learnt = self._channels_last = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and remember what it returned."""
        output = func(*args, **(kwargs or {}))
        name = func.__name__.strip("_")
        self._learnt |= name in _LEARNT
        if isinstance(output, Tensor):
            if output.ndim > 2 and name in (*_CHANNELS_LAST, *_CHANNELS_FIRST):
                self._channels_last = name in _CHANNELS_LAST
            if name == "linear" and len(args) > 1:
                self.linear = (args[0], args[1], output)
            where = self._running[-1][0] if self._running else ""
            self._note(output, f"{name} in {where or 'the network'}")
            if name in _NORMALIZATIONS and self.seen and self.seen[-1].tensor is output:
                self.seen[-1].normalized = args[0]
        return output

    def _note(self, tensor: Tensor, name: str) -> None:
        place = self._places.get(id(tensor), -1)
        handed_on = place >= 0 and self.seen[place].tensor is tensor and self.seen[place].version == tensor._version
        if self._learnt and tensor.ndim > 1 and tensor.grad_fn is not None and not handed_on:
            self._places[id(tensor)] = len(self.seen)
            self.seen.append(Seen(tensor, tensor.grad_fn, tensor._version, name, self._channels_last))

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Module names for what modules return."""
        handles: list[Any] = []

        def enter(name: str) -> Callable[..., None]:
            return lambda _module, _inputs: self._running.append((name, len(self.seen)))

        def leave(name: str) -> Callable[..., Any]:
            return lambda _module, _inputs, output: self._leave(name, output)

        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, name: str, output: object) -> object:
        _, began = self._running.pop()
        if not isinstance(output, Tensor) or not name:
            return None
        kept = None
        if name == self.keep:
            # What follows may be in place; it then writes into the copy.
            kept = output = output.clone()
        place = self._places.get(id(output), -1)
        if place < 0 or self.seen[place].tensor is not output:
            # No operator was seen to make it: a scripted module, or a Function of the user's own.
            self._learnt = True
            self._note(output, name)
            place = self._places.get(id(output), -1)
        if place >= 0 and self.seen[place].tensor is output:
            self.of_module[name] = self.seen[place]
            if place >= began:
                self.seen[place].name = name
        return kept


@dataclass(frozen=True)
class Traced:
    """One run of a network: its target logits and what led to them.

    Attributes:
        trace: what operators and modules returned.
        score: the sum of the target logits, with its graph.
        logits: all of them.
        leaf: the samples.
        between: the nodes of the graph between score and leaf.
        modules: the names of all modules.
    """

    trace: Trace
    score: Float[Tensor, ""]
    logits: Float[Tensor, "n classes"]
    leaf: Float[Tensor, "n ..."]
    between: set[Any]
    modules: tuple[str, ...]

    def gradient(self, seen: Seen) -> Tensor:
        """Of the target logits, by something on the way."""
        (gradient,) = torch.autograd.grad(self.score, seen.tensor, retain_graph=True)
        return gradient

    @cached_property
    def bottlenecks(self) -> list[Seen]:
        """What lies on every path from the input to the logits, and was not overwritten since."""
        nodes = _bottlenecks(self.score.grad_fn, self.between)
        return [s for s in self.trace.seen if s.node in nodes and s.version == s.tensor._version]

    def read(self, seen: Seen) -> Bool[Tensor, " tokens"]:
        """Which of its tokens what follows reads: seen where positions end, so that no weight can hide it."""
        at = self.bottlenecks.index(seen)
        end = next((each.tensor for each in self.bottlenecks[at:] if each.tensor.ndim == 2), self.logits)
        probe = torch.arange(1, end.numel() + 1, device=end.device).sqrt().cos().to(end.dtype).view_as(end)
        (gradient,) = torch.autograd.grad(end, seen.tensor, probe, retain_graph=True)
        return (gradient != 0).any(2).any(0)

    @cached_property
    def layers(self) -> list[tuple[Seen, Layout]]:
        """The bottlenecks with positions, from the last to the first."""
        grids: list[tuple[int, ...]] = []
        found: list[tuple[Seen, Layout]] = []
        for seen in self.bottlenecks:
            layout = layout_of(seen, self.leaf.shape, grids)
            if layout is not None and math.prod(layout.grid) > 1:
                found.insert(0, (seen, layout))
                if layout.tokens is None:
                    grids.insert(0, layout.grid)
        return found


def traced(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    keep: str = "",
    inside: Callable[[Tensor], Any] | None = None,
) -> Traced:
    """Run the network once on the samples.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        keep: a module whose output later operators in place must not reach.
        inside: what is to be entered, with the input, for as long as the network runs.

    Raises:
        NotApplicableError: the logits do not depend on the input.
    """
    leaf = x.detach().requires_grad_()
    trace = Trace(keep)
    with torch.enable_grad():
        entered = leaf.clone()
        with trace.hooked(model), trace, inside(entered) if inside else nullcontext():
            logits = model(entered)
        score = logits.gather(1, target[:, None]).sum()
    between = nodes_between(score, leaf)
    if not between:
        raise NotApplicableError("no gradient reaches the input: something in the model detaches it")
    return Traced(trace, score, logits, leaf, between, tuple(dict(model.named_modules(remove_duplicate=False))))


@dataclass(frozen=True)
class Features:
    """What a layer holds of each sample, and how the target logit depends on it.

    Attributes:
        layer: its name.
        activation: what it returned.
        gradient: of the target logit by it.
        run: the run of the network that it comes from.
    """

    layer: str
    activation: Float[Tensor, "n k *grid"]
    gradient: Float[Tensor, "n k *grid"]
    run: Traced


def features(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"], layer: str, name: str
) -> Features:
    """The features of a layer, by its name or, without one, of the last that holds positions.

    Where the logits are read from a class token, nothing reads the tokens of the positions behind the last attention.
    The last layer then is what that attention sees: the stream before it, behind its normalization. (Before it, where
    a token's scale does not matter, its gradient is orthogonal to it.)

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: name of a module, or nothing.
        name: of the method, for messages.

    Raises:
        NotApplicableError: no layer holds more than one position, or `layer` does not exist, holds none or is not used.
    """
    run = traced(model, x, target, keep=layer)
    if layer:
        seen, layout = _named(run, layer, name)
        return _features(run, seen, layout)
    for seen, layout in run.layers:
        if not layout.tokens:
            return _features(run, seen, layout)
        if bool(run.read(seen)[layout.tokens :].any()):
            behind = (each for each in run.trace.seen if each.normalized is seen.tensor)
            return _features(run, next(behind, seen), layout)
    raise NotApplicableError(f"{name}: no layer of the model returns channels with more than one position")


def _features(run: Traced, seen: Seen, layout: Layout) -> Features:
    return Features(seen.name, layout.arranged(seen.tensor.detach()), layout.arranged(run.gradient(seen)), run)


def _named(run: Traced, layer: str, name: str) -> tuple[Seen, Layout]:
    if layer not in run.modules:
        raise NotApplicableError(
            f"{name}: the model has no layer {layer!r}; {nearest(layer, filter(None, run.modules))}"
        )
    grids = [layout.grid for _, layout in run.layers if layout.tokens is None]
    seen = run.trace.of_module.get(layer)
    layout = layout_of(seen, run.leaf.shape, grids) if seen else None
    if seen is None or layout is None:
        raise NotApplicableError(f"{name}: layer {layer!r} returns no channels with positions")
    if seen.node not in run.between:
        raise NotApplicableError(f"{name}: the logits do not use layer {layer!r}; name another one as `layer`")
    return Seen(seen.tensor, seen.node, seen.version, layer, seen.channels_last), layout


def layout_of(seen: Seen, shape: tuple[int, ...], grids: list[tuple[int, ...]]) -> Layout | None:
    """Where a tensor holds the positions of inputs of this shape; None if it holds none.

    Args:
        seen: the tensor.
        shape: of the samples, [n, c, *axes].
        grids: of the feature maps before it, the last one first: tokens are laid out like one of them.
    """
    n, sides, tensor = shape[0], tuple(shape[2:]), seen.tensor
    if not sides or tensor.shape[0] != n:
        return None
    if len(sides) == 2 and tensor.ndim == 4:
        first, last = tuple(tensor.shape[2:]), tuple(tensor.shape[1:3])
        # A map has about the proportions of the input; channels in the place of a side rarely have.
        channels_last = _distortion(last, sides) < _distortion(first, sides)
        return Layout(last, channels_last=True) if channels_last else Layout(first)
    if tensor.ndim != 3:
        return None
    if not seen.channels_last:
        if len(sides) == 1:
            return Layout((tensor.shape[2],))
        return next((Layout(grid, tokens=0) for grid in grids if math.prod(grid) == tensor.shape[2]), None)
    count = tensor.shape[1]
    own = (count,) if len(sides) == 1 else _most_alike(count, sides)
    for grid in (*grids, own):
        if 0 <= count - math.prod(grid) <= MOST_EXTRA_TOKENS:
            return Layout(grid, channels_last=True, tokens=count - math.prod(grid))
    return None


def _distortion(grid: tuple[int, ...], sides: tuple[int, ...]) -> float:
    return abs(math.log(max(grid[0], 1) * sides[1] / (max(grid[1], 1) * sides[0])))


def _most_alike(count: int, sides: tuple[int, ...]) -> tuple[int, int]:
    """The largest grid of at most this many positions with the proportions of the input."""
    rows = max(math.isqrt(count * sides[0] // sides[1]), 1)
    return rows, max(round(rows * sides[1] / sides[0]), 1)


def _bottlenecks(output: Any, between: set[Any]) -> set[Any]:
    """The nodes on every path: in an order from the output to the input, those that no edge jumps over."""
    parents = {node: [p for p, _ in node.next_functions if p in between] for node in between}
    waiting = dict.fromkeys(between, 0)
    for node in between:
        for parent in parents[node]:
            waiting[parent] += 1
    order, ready = [], [output]
    while ready:
        node = ready.pop()
        order.append(node)
        for parent in parents[node]:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    place = {node: index for index, node in enumerate(order)}
    found, furthest = set(), 0
    for index, node in enumerate(order):
        if furthest <= index:
            found.add(node)
        furthest = max(furthest, *(place[parent] for parent in parents[node]), 0)
    return found


def upsampled(coarse: Float[Tensor, "n k *grid"], x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n k *axes"]:
    """At the size of the input, linearly along each axis (bilinear for images)."""
    return interpolate(coarse, size=x.shape[2:], mode={3: "linear", 4: "bilinear"}[x.ndim], align_corners=False)
