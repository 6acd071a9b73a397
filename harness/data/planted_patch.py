"""A task with a known truth: a small patch on a digit alone decides the class."""

from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.data import Data, of_tensors
from harness.data.bundled import mnist_5k
from harness.data.planting import exchanged, next_of_another_class
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

PATTERNS = torch.tensor(
    [
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
        [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
        [[1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
        [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
        [[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]],
    ]
).float()
"""One a class, of nine white pixels each, so that brightness does not tell them apart."""

SIDE, DIGIT = PATTERNS.shape[-1], 28


@data_source()
@cache
def planted_patch() -> Data:
    """5,000 MNIST digits, 28 x 28, each with a patch of 5 x 5 pixels at a random place that alone is the class.

    Five black and white patterns; the digit under the patch, and its place, are independent of the pattern. 4,000 to
    train, on digits to train of `mnist-5k`, and 1,000 held out, on held-out digits.

    Masks are the patch, black pixels included: where they are tells the pattern as well.
    """
    digits = mnist_5k()
    assert digits.train is not None
    return _with_patches("planted-patch", digits, _with_patches("planted-patch/train", digits.train, None))


def _with_patches(name: str, digits: Data, train: Data | None) -> Data:
    """Every digit with a patch; patterns are equally frequent, in a random order that the name fixes."""
    assert digits.labels is not None
    count, classes = len(digits), len(PATTERNS)
    ids = [f"{name}/{row}" for row in range(count)]
    labels = Draws.of([name], "patterns").permutation(count)[0] % classes
    draws = Draws.of(ids, "patches")
    corner = draws.integers(DIGIT - SIDE + 1, 2)
    others = (labels + 1 + draws.integers(classes - 1, draw=1)) % classes
    digit, mask = digits.batch(range(count)), _square(corner)

    def patched(digit: Tensor, patterns: Tensor) -> Tensor:
        return torch.where(mask, _placed(PATTERNS[patterns], corner), digit)

    other_truth = patched(digit, others)
    other_rest = patched(digit[next_of_another_class(digits.labels)], labels)
    space = InputSpace("image", (0.0,), (1.0,))
    x = patched(digit, labels)
    data = of_tensors("planted-patch", x, labels, space, ids=ids, train=train, masks=mask.float())
    return replace(data, planted=exchanged(other_truth, other_rest))


def _square(corner: Int[Tensor, "n 2"]) -> Bool[Tensor, "n 1 h w"]:
    """Where the patches with this upper left corner are."""
    offset = torch.arange(DIGIT) - corner[:, :, None]
    rows, columns = ((offset >= 0) & (offset < SIDE)).unbind(1)
    return (rows[:, :, None] & columns[:, None])[:, None]


def _placed(patterns: Float[Tensor, "n s s"], corner: Int[Tensor, "n 2"]) -> Float[Tensor, "n 1 h w"]:
    """The patterns at their places; what is outside of them means nothing."""
    rows, columns = (torch.arange(DIGIT) - corner[:, :, None]).clamp(0, SIDE - 1).unbind(1)
    return patterns[torch.arange(len(patterns))[:, None, None], rows[:, :, None], columns[:, None]][:, None]
