"""Sprites made of parts: what a network says without a part tells how important the part is."""

from colorsys import hsv_to_rgb
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.data import Data, Planted, of_tensors
from harness.data.planting import next_of_another_class
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

SIDE = 32
PARTS = ("tail", "feet", "body", "wing", "head")
"""From the hindmost to the foremost."""

CENTRES = torch.tensor([[16.0, 7.0], [24.0, 15.0], [16.0, 15.0], [15.0, 13.0], [10.0, 23.0]])
RADII = torch.tensor([[2.5, 5.0], [4.0, 2.5], [6.0, 7.5], [2.5, 4.5], [4.5, 4.5]])
"""Row and column of each part; and how far it reaches from there, down and across."""

VARIANTS = 3
HUES = (0.0, 0.2, 0.4, 0.9, 0.6)
"""Of the first variant of each part, in thirds of the circle; the wing differs most from the body behind it."""

COLOURS = torch.tensor(
    [[hsv_to_rgb((hue + variant) / VARIANTS, 0.9, 1.0) for variant in range(VARIANTS)] for hue in HUES]
)
CLASSES = torch.tensor([[a, b, (a + b) % 3, (a + 2 * b) % 3, (a * a + b) % 3] for a in range(3) for b in range(3)])
"""The variant of each part. Two classes share at most two parts of five, and no part alone tells the class."""

MISSING = 0.2
"""How often a part is missing in training, so that samples without a part are nothing new."""

COUNTS = {"sprites/train": 3000, "sprites": 500}


@dataclass(frozen=True)
class Sprites:
    """What is drawn.

    Attributes:
        variants: of each part: a disc, a square or a diamond, of its own colour.
        centres: row and column of each part.
        backgrounds: what is behind.
    """

    variants: Int[Tensor, "n parts"]
    centres: Float[Tensor, "n parts 2"]
    backgrounds: Float[Tensor, "n 3 h w"]

    def __getitem__(self, rows: Int[Tensor, " m"]) -> "Sprites":
        return Sprites(self.variants[rows], self.centres[rows], self.backgrounds[rows])

    @cached_property
    def extents(self) -> Bool[Tensor, "n parts h w"]:
        """What each part covers, whatever is before it."""
        offsets = (torch.arange(SIDE) - self.centres[..., None]).abs() / RADII[..., None]
        down, across = offsets[:, :, 0, :, None], offsets[:, :, 1, None, :]
        disc, square, diamond = down.square() + across.square() <= 1, down.maximum(across) <= 0.85, down + across <= 1.1
        chosen = self.variants[:, :, None, None]
        return torch.where(chosen == 0, disc, torch.where(chosen == 1, square, diamond))

    def visible(self, present: Bool[Tensor, "n parts"]) -> Bool[Tensor, "n parts h w"]:
        """Where each of the parts that are there is seen: where it is and none of those before it is."""
        there = self.extents & present[:, :, None, None]
        parts, before = there.unbind(1), torch.zeros_like(there[:, 0])
        seen: list[Tensor] = []
        for part in reversed(parts):
            seen.insert(0, part & ~before)
            before = before | part
        return torch.stack(seen, 1)

    def drawn(self, present: Bool[Tensor, "n parts"]) -> Float[Tensor, "n 3 h w"]:
        """The pictures with the parts that are there."""
        seen = self.visible(present).float()
        colours = COLOURS[torch.arange(len(PARTS)), self.variants]
        return torch.einsum("nphw,npc->nchw", seen, colours) + self.backgrounds * (1 - seen.sum(1, keepdim=True))


@data_source()
@cache
def sprites() -> Data:
    """3,500 sprites of five parts, 3 x 32 x 32, in nine classes: a miniature of FunnyBirds (`hesse2023funnybirds`).

    Tail, feet, body, wing and head are each a disc, a square or a diamond in a colour of its own, at places that
    vary, on a background of random colours. The class is the combination; each variant of a part is in three of the
    nine. In the 3,000 samples to train each part is missing in one of five, so that a sample without it is nothing
    new; the 500 held out are whole.

    Masks are the whole sprite. Parts are what is seen of each, beside the sample drawn without it, in which
    what was behind it is seen.
    """
    scene, labels, draws = _scene("sprites/train")
    present = draws.uniform(len(PARTS), draw=4) >= MISSING
    space = InputSpace("image", (0.0,) * 3, (1.0,) * 3)
    ids = [f"sprites/train/{row}" for row in range(len(labels))]
    train = of_tensors("sprites", scene.drawn(present), labels, space, ids=ids)
    scene, labels, _ = _scene("sprites")
    whole = torch.ones(len(labels), len(PARTS), dtype=torch.bool)
    masks = scene.extents.any(1, keepdim=True).float()
    data = of_tensors("sprites", scene.drawn(whole), labels, space, train=train, masks=masks)
    variants = CLASSES[labels[next_of_another_class(labels)]]
    other_truth = replace(scene, variants=variants).drawn(whole)
    other_rest = replace(scene, backgrounds=scene.backgrounds.roll(1, 0)).drawn(whole)

    def parts(row: int) -> tuple[Tensor, Tensor]:
        same = scene[torch.full((len(PARTS),), row)]
        where = same.visible(whole[: len(PARTS)])[0].float()
        return where, same.drawn(~torch.eye(len(PARTS), dtype=torch.bool))

    planted = Planted(other_truth.__getitem__, other_rest.__getitem__)
    return replace(data, planted=planted, read_parts=parts)


def _scene(name: str) -> tuple[Sprites, Int[Tensor, " n"], Draws]:
    """The sprites of one part of the data, with their classes; what else is random goes on with these draws."""
    count = COUNTS[name]
    labels = Draws.of([name], "classes").permutation(count)[0] % len(CLASSES)
    draws = Draws.of([f"{name}/{row}" for row in range(count)], "sprites")
    pose = 6 * draws.uniform(1, 2, draw=0) - 3
    jitter = 2 * draws.uniform(len(PARTS), 2, draw=1) - 1
    corners = draws.uniform(3, 2, 2, draw=2) / 2
    grain = 0.05 * draws.uniform(1, SIDE, SIDE, draw=3)
    slope = torch.linspace(0, 1, SIDE, dtype=torch.float64)
    ends = torch.stack([1 - slope, slope])
    backgrounds = torch.einsum("ncij,ih,jw->nchw", corners, ends, ends) + grain
    return Sprites(CLASSES[labels], (CENTRES + pose + jitter).float(), backgrounds.float()), labels, draws
