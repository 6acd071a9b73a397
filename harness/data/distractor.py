"""A task with a known truth: of two digits side by side, one alone decides the class."""

from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float

from harness.data import Data, of_tensors
from harness.data.bundled import mnist_5k
from harness.data.planting import exchanged, next_of_another_class
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

CLASSES = 5
PAIRS_A_DIGIT = 2


@data_source()
@cache
def distractor() -> Data:
    """5,000 pairs of real MNIST digits, 28 x 56: one of 0 to 4, which is the class, beside one of 5 to 9.

    The distractor breaks what confounds randomization tests on centred objects (`yona2021revisiting`): there,
    every network should point at the same place; here, one that has learnt the task points at one of two digits and
    one that has not cannot. Which side is which is random. 4,000 pairs to train, of digits to train of `mnist-5k`,
    and 1,000 held out, of held-out digits; each digit is in two pairs, and class and distractor are independent.

    Masks are the ink (> 0) of the digit that decides: the inputs that no network can answer without. Paper around it
    is evidence as well (a gap tells 0 from a closed ring), so that mass beside the ink is no error by itself, as mass
    on the distractor is.
    """
    digits = mnist_5k()
    assert digits.train is not None
    return _pairs("distractor", digits, _pairs("distractor/train", digits.train, None))


def _pairs(name: str, digits: Data, train: Data | None) -> Data:
    """Every digit in `PAIRS_A_DIGIT` pairs, in an order and on sides that are random but fixed by the name."""
    assert digits.labels is not None
    draws = Draws.of([name], "pairs")
    few = (digits.labels < CLASSES).nonzero()[:, 0].repeat(PAIRS_A_DIGIT)
    many = (digits.labels >= CLASSES).nonzero()[:, 0].repeat(PAIRS_A_DIGIT)
    count = min(len(few), len(many))
    deciding = few[draws.permutation(len(few), draw=0)[0]][:count]
    distracting = many[draws.permutation(len(many), draw=1)[0]][:count]
    left = draws.integers(2, count, draw=2)[0].bool()
    digit, other = digits.batch(deciding.tolist()), digits.batch(distracting.tolist())
    x = _side_by_side(digit, other, left)
    masks = _side_by_side((digit > 0).float(), torch.zeros_like(other), left)
    ids = [f"{name}/{row}" for row in range(count)]
    space = InputSpace("image", (0.0,), (1.0,))
    labels = digits.labels[deciding]
    data = of_tensors("distractor", x, labels, space, ids=ids, train=train, masks=masks)
    other_truth = _side_by_side(digit[next_of_another_class(labels)], other, left)
    other_rest = _side_by_side(digit, other[next_of_another_class(digits.labels[distracting])], left)
    return replace(data, planted=exchanged(other_truth, other_rest))


def _side_by_side(
    digit: Float[torch.Tensor, "n 1 h w"], other: Float[torch.Tensor, "n 1 h w"], left: torch.Tensor
) -> Float[torch.Tensor, "n 1 h wide"]:
    """The first picture of each pair on the left where this is wanted, else on the right."""
    return torch.where(left[:, None, None, None], torch.cat([digit, other], 3), torch.cat([other, digit], 3))
