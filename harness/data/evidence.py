"""Pictures for networks whose right maps are known: what the exam of the metrics is taken on."""

from functools import cache
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.data import Data, Planted
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

SAMPLES, SIDE = 1024, 24
SHAPE = (3, SIDE, SIDE)
MEAN, STD = 0.35, 0.25
"""Pixels are `x * STD + MEAN`, so that zero is no black."""

THRESHOLD = 0.6
"""Above which a pixel is bright."""

SPOTS, RADIUS, TILES = 3, 3.0, 3
DARKEST, BACKGROUND, DIM, BRIGHTEST = 0.1, 0.55, 0.65, 1.0

Truth = Literal["spots", "region"]
Backwards = Annotated[int, Field(ge=0, le=SAMPLES)]


@data_source()
@cache
def evidence(*, truth: Truth = "spots", backwards: Backwards = 0) -> Data:
    """1,024 colour pictures of 24 x 24 with bright spots on a clouded ground, and where the evidence in them is.

    `evidence-additive` adds up what is brighter than a threshold: its truth is the `spots`, which are elsewhere in
    each picture. `evidence-linear` has weights in one fixed `region`, where spots are only some of the brightness.

    Parts are nine tiles, which are black in the samples without them.

    Args:
        truth: what the masks are of.
        backwards: how many of the first come in reverse order, which must change no number.
    """
    order = [*reversed(range(backwards)), *range(backwards, SAMPLES)]
    draws = Draws.of([f"evidence/{row}" for row in range(SAMPLES)], "evidence")
    coarse = draws.uniform(3, 4, 4, draw=0).float()
    ground = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True).clamp(0, 1)
    ground = DARKEST + (BACKGROUND - DARKEST) * ground
    centres = draws.uniform(SPOTS, 2, draw=1) * (SIDE - 2 * RADIUS) + RADIUS
    spot = _discs(centres)
    level = DIM + (BRIGHTEST - DIM) * draws.uniform(*SHAPE, draw=2).float()
    mask = spot if truth == "spots" else (region() > 0).expand(SAMPLES, -1, -1, -1)
    x = _normalized(torch.where(spot, level, ground))

    def other_truth(place: int) -> Tensor:
        row = order[place]
        return torch.where(mask[row], _normalized(torch.full_like(x[row], DARKEST)), x[row])

    def other_rest(place: int) -> Tensor:
        row = order[place]
        return torch.where(mask[row], x[row], _normalized(ground[row - 1]))

    def read_parts(place: int) -> tuple[Tensor, Tensor]:
        row, tiles = order[place], _tiles()
        return tiles.float(), torch.where(tiles[:, None], _normalized(torch.zeros(())), x[row])

    return Data(
        "evidence",
        InputSpace("image", (MEAN,) * 3, (STD,) * 3),
        [f"evidence/{row}" for row in order],
        None,
        lambda row: x[order[row]],
        read_mask=lambda row: mask[order[row]].float(),
        planted=Planted(other_truth, other_rest),
        read_parts=read_parts,
    )


def region() -> Float[Tensor, "1 h w"]:
    """The weights of `evidence-linear`: highest in the middles of three discs, zero outside them."""
    centres = torch.tensor([[6.0, 7.0], [17.0, 5.0], [14.0, 18.0]])
    return (1 - _distances(centres[None]) / 5.0).clamp(min=0).amax(1)


def _discs(centres: Float[Tensor, "n spots 2"]) -> Tensor:
    return (_distances(centres) <= RADIUS).any(1, keepdim=True)


def _distances(centres: Float[Tensor, "n spots 2"]) -> Float[Tensor, "n spots h w"]:
    """Of each position from each centre."""
    places = torch.arange(SIDE, dtype=centres.dtype)
    down, across = ((places - centres[..., axis, None]).square() for axis in range(2))
    return (down[..., :, None] + across[..., None, :]).sqrt()


def _tiles() -> Tensor:
    """The positions of each tile, [tiles, h, w]."""
    tile = torch.arange(SIDE) * TILES // SIDE
    index = tile[:, None] * TILES + tile
    return index == torch.arange(TILES**2)[:, None, None]


def _normalized(pixels: Tensor) -> Tensor:
    return (pixels - MEAN) / STD
