"""Which axis of a tensor holds channels: followed from the input through what a network does, where shapes do not tell.

In [n, 8, 8, 8] channels may be first or last; in [n, 64, 64] rows may be channels or tokens. A convolution puts them
second, a linear layer last, and whatever moves axes takes them along.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from harness.tensors import tensors_in

PRODUCTS = ("matmul", "bmm", "mm", "rmatmul")


@dataclass(frozen=True)
class Axes:
    """What is known of the axes of a tensor.

    Attributes:
        channels: the axis that holds them.
        tokens: how many stand before those with a position, where positions are one axis; None if nothing says it.
    """

    channels: int
    tokens: int | None = 0


class Axed:
    """The tensors whose axes are known, beginning with the input [n, c, ...]."""

    def __init__(self, x: Float[Tensor, "n c ..."]) -> None:
        self._known = WeakTensorKeyDictionary()
        self._known[x] = Axes(1)

    def of(self, tensor: Tensor) -> Axes | None:
        """The axes of a tensor; None if they are not known."""
        found: Axes | None = self._known.get(tensor)
        return found

    def follow(self, name: str, args: tuple[Any, ...], output: Tensor) -> None:
        """Note the axes of what an operator made of its arguments, if they follow from those of its arguments."""
        sources = [(tensor, axes) for tensor in tensors_in(args) if (axes := self.of(tensor))]
        axes = None
        if name in RULES:
            axes = RULES[name](sources, args, output)
        elif sources and name in PRODUCTS:
            axes = _product(args, dict((id(tensor), each) for tensor, each in sources), output)
        elif sources:
            axes = _kept(*next((each for each in sources if each[1].tokens is not None), sources[0]), output)
        if axes is not None:
            self._known[output] = axes
        elif output in self._known:
            del self._known[output]


Sources = list[tuple[Tensor, Axes]]


def _second(sources: Sources, args: tuple[Any, ...], output: Tensor) -> Axes | None:
    return Axes(1) if output.ndim > 2 else None


def _linear(sources: Sources, args: tuple[Any, ...], output: Tensor) -> Axes | None:
    """Channels become channels; a layer over positions leaves them where they are."""
    last = output.ndim - 1
    if not sources:
        return Axes(last, None)
    axes = sources[0][1]
    return Axes(last, axes.tokens) if axes.channels == last else Axes(axes.channels, None)


def _joined(sources: Sources, args: tuple[Any, ...], output: Tensor) -> Axes | None:
    """What is put before tokens, and is not made of the input, has no position."""
    if not sources:
        return None
    source, axes = sources[0]
    if output.ndim != source.ndim:
        return None
    axis = next((a for a in range(output.ndim) if output.shape[a] != source.shape[a]), axes.channels)
    if axis == axes.channels or source.ndim != 3:
        return axes
    parts = tensors_in(args[:1])
    before = parts[: next(place for place, part in enumerate(parts) if part is source)]
    if not before:
        return Axes(axes.channels, axes.tokens)
    return Axes(axes.channels, (axes.tokens or 0) + sum(part.shape[axis] for part in before))


RULES: dict[str, Callable[[Sources, tuple[Any, ...], Tensor], Axes | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"), _second),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    "linear": _linear,
}


def _product(args: tuple[Any, ...], known: dict[int, Axes], output: Tensor) -> Axes | None:
    """Rows of the left factor are rows of the product, columns of the right one its columns."""
    left, right = (known.get(id(factor)) for factor in args[:2])
    last = output.ndim - 1
    if right is not None:
        columns = right.channels == args[1].ndim - 1
        return Axes(last, right.tokens) if columns else None
    if left is not None and left.channels == args[0].ndim - 1:
        return Axes(last, left.tokens)
    return Axes(last - 1, None) if left is not None and left.channels == args[0].ndim - 2 else None


def _kept(source: Tensor, axes: Axes, output: Tensor) -> Axes | None:
    """Where the channels are in a view, and in what has as many of them in the same place."""
    if output is source:
        return axes
    if output.ndim < source.ndim and output.numel() != source.numel():
        return None  # an axis is gone with what it held, and what is left of positions is no grid
    same_axes = output.ndim == source.ndim
    size, axis = source.shape[axes.channels], axes.channels
    if output.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
        stride = source.stride(axis)
        # A part of the channels still is channels, but not what was split into heads.
        alike = (a for a in range(output.ndim) if output.stride(a) == stride)
        found = [a for a in alike if output.shape[a] == size or (same_axes and 1 < output.shape[a] < size)]
        return Axes(found[0], axes.tokens if output.numel() == source.numel() else None) if len(found) == 1 else None
    if same_axes and output.shape[axis] == size:
        return Axes(axis, axes.tokens if output.shape == source.shape else None)
    if axis == source.ndim - 1 and output.shape[-1] == size:
        return Axes(output.ndim - 1, None)
    return Axes(1, None) if axis == 1 and output.ndim > 1 and output.shape[1] == size else None
