"""Objects on textures, either of which decides the class: the same pictures for two tasks with a known truth."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import tau
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.data import Data, of_tensors
from harness.data.bundled import mnist_5k
from harness.data.planting import exchanged, next_of_another_class
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

CLASSES = 5
SIDE = 28
SHORTEST, LONGEST = 5.0, 8.0
"""Periods of textures, in pixels."""

Decides = Literal["object", "background"]


@data_source()
@cache
def textured_object(*, decides: Decides = "object") -> Data:
    """5,000 MNIST digits of 0 to 4 on a texture, 28 x 28: a miniature of BAM (`yang2019benchmarking`).

    Textures are horizontal, vertical or diagonal stripes, checks, and dots, of random phase and period, darker than
    any ink. Digit and texture are independent, and the option says which is the class: the pictures are the same, so
    that of two networks each should point at what the other should not. 4,000 to train, of digits to train of
    `mnist-5k`, and 1,000 held out, of held-out digits; each digit is on two textures.

    Masks are the ink (> 0) of the digit, or all but it.

    Args:
        decides: whether the digit or the texture behind it is the class.
    """
    digits = mnist_5k()
    assert digits.train is not None
    return _pictures(
        "textured-object", digits, decides, _pictures("textured-object/train", digits.train, decides, None)
    )


def _pictures(name: str, digits: Data, decides: Decides, train: Data | None) -> Data:
    """Every small digit on two textures, in a random order that the name fixes."""
    assert digits.labels is not None
    rows = (digits.labels < CLASSES).nonzero()[:, 0].repeat(2)
    rows = rows[Draws.of([name], "order").permutation(len(rows))[0]]
    ids = [f"{name}/{row}" for row in range(len(rows))]
    objects, ink = digits.labels[rows], digits.batch(rows.tolist())
    backgrounds = Draws.of([name], "textures").permutation(len(rows))[0] % CLASSES
    behind = _textures(backgrounds, ids)

    def on(ink: Tensor, behind: Tensor) -> Tensor:
        return torch.where(ink > 0, (1 + ink) / 2, behind)

    if decides == "object":
        labels, mask = objects, ink > 0
        other_truth = on(ink[next_of_another_class(labels)], behind)
        other_rest = on(ink, behind[next_of_another_class(backgrounds)])
    else:
        labels, mask = backgrounds, ink == 0
        other_truth = on(ink, behind[next_of_another_class(labels)])
        other_rest = on(ink[next_of_another_class(objects)], behind)
    space = InputSpace("image", (0.0,), (1.0,))
    data = of_tensors(f"textured-{decides}", on(ink, behind), labels, space, ids=ids, train=train, masks=mask.float())
    return replace(data, planted=exchanged(other_truth, other_rest))


def _textures(classes: Int[Tensor, " n"], ids: Sequence[str]) -> Float[Tensor, "n 1 h w"]:
    """One texture of each of these classes, in [0, 1/2]."""
    draws = Draws.of(ids, "textures")
    uniform = draws.uniform(3)
    period = SHORTEST + (LONGEST - SHORTEST) * uniform[:, 0]
    down, right = (tau * (torch.arange(SIDE) / period[:, None] + uniform[:, which, None]) for which in (1, 2))
    down, right = down[:, :, None], right[:, None, :]
    waves = [down.sin() + 0 * right, right.sin() + 0 * down, (down + right).sin()]
    waves += [down.sin() * right.sin(), 2 * down.sin().clamp(min=0) * right.sin().clamp(min=0) - 1]
    return ((1 + torch.stack(waves)[classes, torch.arange(len(classes))]) / 4).float()[:, None]
