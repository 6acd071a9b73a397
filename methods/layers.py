"""Where a network holds positions last: the layer that class activation maps look at.

It is the last bottleneck of the network (`harness.methods.trace`) that still has positions, whether a module returned
it or a function, with channels first or last, or with its positions in a row of tokens.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.entries import nearest
from harness.methods.trace import Seen, Traced, traced
from harness.remarks import remark
from harness.types import NotApplicableError

MOST_EXTRA_TOKENS = 16
"""Class tokens, distillation tokens and registers that may stand before those of the positions."""


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


@dataclass(frozen=True)
class Features:
    """What a layer holds of each sample, and how the target logit depends on it.

    Attributes:
        layer: its name.
        activation: what it returned.
        layout: where it had its positions.
        seen: itself, in its graph.
        run: the run of the network that it comes from.
    """

    layer: str
    activation: Float[Tensor, "n k *grid"]
    layout: Layout
    seen: Seen
    run: Traced

    @cached_property
    def gradient(self) -> Float[Tensor, "n k *grid"]:
        """Of the target logit, by the activation."""
        return self.layout.arranged(self.run.gradient(self.seen))

    def map(
        self, weights: Float[Tensor, "n k ..."], x: Float[Tensor, "n c *axes"], relu: bool
    ) -> Float[Tensor, "n 1 *axes"]:
        """The sum over channels at the size of the input, with a weight for each channel or each of its positions."""
        weights = weights.reshape(*weights.shape, *(1,) * (self.activation.ndim - weights.ndim))
        coarse = (weights * self.activation).sum(1, keepdim=True)
        return upsampled(coarse.clamp(min=0) if relu else coarse, x)


def features(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"], layer: str, name: str
) -> Features:
    """The features of a layer, by its name or, without one, of the last that holds positions.

    Where the logits are read from a class token, nothing reads the tokens of the positions behind the last attention.
    The last layer then is what that attention sees: the stream before it, behind its normalization. (Before it, where
    a token's scale does not matter, its gradient is orthogonal to it.) Which layer it is, is remarked.

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
    for seen, layout in layers_of(run):
        if not layout.tokens:
            return _features(run, seen, layout)
        if bool(run.read(seen)[layout.tokens :].any()):
            behind = (each for each in run.trace.seen if each.normalized is seen.tensor)
            return _features(run, next(behind, seen), layout)
    raise NotApplicableError(f"{name}: no layer of the model returns channels with more than one position")


def _features(run: Traced, seen: Seen, layout: Layout) -> Features:
    remark("layer", seen.name)
    return Features(seen.name, layout.arranged(seen.tensor.detach()), layout, seen, run)


def _named(run: Traced, layer: str, name: str) -> tuple[Seen, Layout]:
    if layer not in run.modules:
        raise NotApplicableError(
            f"{name}: the model has no layer {layer!r}; {nearest(layer, filter(None, run.modules))}"
        )
    grids = [layout.grid for _, layout in layers_of(run) if layout.tokens is None]
    seen = run.trace.of_module.get(layer)
    layout = layout_of(seen, run.leaf.shape, grids) if seen else None
    if seen is None or layout is None:
        raise NotApplicableError(f"{name}: layer {layer!r} returns no channels with positions")
    if seen.node not in run.between:
        raise NotApplicableError(f"{name}: the logits do not use layer {layer!r}; name another one as `layer`")
    return replace(seen, name=layer), layout


def layers_of(run: Traced) -> list[tuple[Seen, Layout]]:
    """The bottlenecks with positions, from the last to the first."""
    grids: list[tuple[int, ...]] = []
    found: list[tuple[Seen, Layout]] = []
    for seen in run.bottlenecks:
        layout = layout_of(seen, run.leaf.shape, grids)
        if layout is not None and math.prod(layout.grid) > 1:
            found.insert(0, (seen, layout))
            if layout.tokens is None:
                grids.insert(0, layout.grid)
    return found


def layout_of(seen: Seen, shape: tuple[int, ...], grids: list[tuple[int, ...]]) -> Layout | None:
    """Where a tensor holds the positions of inputs of this shape; None if it holds none, or nothing says where.

    Args:
        seen: the tensor.
        shape: of the samples, [n, c, *axes].
        grids: of the feature maps before it, the last one first: tokens are laid out like one of them.
    """
    sides, tensor, axes = tuple(shape[2:]), seen.tensor, seen.axes
    last = tensor.ndim - 1
    if not sides or tensor.shape[0] != shape[0] or axes is None or axes.channels not in (1, last):
        return None
    channels_last = axes.channels == last
    if tensor.ndim == len(shape) and (len(sides) > 1 or not channels_last):
        return Layout(tuple(tensor.shape[1:last] if channels_last else tensor.shape[2:]), channels_last)
    if tensor.ndim != 3:
        return None
    count = tensor.shape[1 if channels_last else 2]
    whole = (count - (axes.tokens or 0),) if len(sides) == 1 else _most_alike(count - (axes.tokens or 0), sides)
    for grid in (*grids, whole):
        extra = count - math.prod(grid)
        if extra == axes.tokens or (axes.tokens is None and 0 <= extra <= MOST_EXTRA_TOKENS):
            return Layout(grid, channels_last, extra)
    return None


def _most_alike(count: int, sides: tuple[int, ...]) -> tuple[int, int]:
    """The largest grid of at most this many positions with the proportions of the input."""
    rows = max(math.isqrt(count * sides[0] // sides[1]), 1)
    return rows, max(round(rows * sides[1] / sides[0]), 1)


def upsampled(coarse: Float[Tensor, "n k *grid"], x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n k *axes"]:
    """At the size of the input, linearly along each axis (bilinear for images)."""
    return interpolate(coarse, size=x.shape[2:], mode={3: "linear", 4: "bilinear"}[x.ndim], align_corners=False)
