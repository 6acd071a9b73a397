"""What sources of planted truth share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.data import Planted
from harness.types import InputError


def exchanged(other_truth: Float[Tensor, "n ..."], other_rest: Float[Tensor, "n ..."]) -> Planted:
    """Samples with another truth and samples with another rest that are in memory already."""
    return Planted(other_truth.__getitem__, other_rest.__getitem__)


def next_of_another_class(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """For each sample the next one, past the end from the beginning, that is of another class."""
    last = (labels != labels.roll(-1)).nonzero()[:, 0]  # of each run of one class
    after = torch.searchsorted(last, torch.arange(len(labels))) % len(last)
    return (last[after] + 1) % len(labels)


def left_half(shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """1 in the first half of the last axis of samples of this shape, 0 in the rest: [1, *positions], or [f]."""
    axes = shape[-1:] if len(shape) == 1 else (1, *shape[1:])
    return (torch.arange(shape[-1]) < shape[-1] // 2).float().expand(axes).clone()


PLACES = ("upper left", "upper right", "lower left", "lower right")
CELLS = len(PLACES)
"""Of a picture that is cut two by two, in this order."""


def in_cells(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the logits of all cells, one cell after the other."""
    return tuple(f"{name}, {place}" for place in PLACES for name in classes)


def cells_of(pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 4 c half_h half_w"]:
    """The cells of pictures.

    Raises:
        InputError: a side is odd.
    """
    height, width = pictures.shape[2] // 2, pictures.shape[3] // 2
    if pictures.shape[2:] != (2 * height, 2 * width):
        raise InputError(f"expected pictures with even sides, to cut two by two, got {list(pictures.shape[2:])}")
    halves = pictures[:, :, :height], pictures[:, :, height:]
    return torch.stack([half[..., side] for half in halves for side in (slice(width), slice(width, None))], 1)


def picture_of(cells: Sequence[Float[Tensor, "n c h w"]]) -> Float[Tensor, "n c twice_h twice_w"]:
    """The pictures that have these cells."""
    upper_left, upper_right, lower_left, lower_right = cells
    return torch.cat([torch.cat([upper_left, upper_right], 3), torch.cat([lower_left, lower_right], 3)], 2)
