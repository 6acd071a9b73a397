"""Networks whose right maps are known: sums over positions, so that each position has its own contribution."""

import copy
import inspect
import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data.evidence import MEAN, SHAPE, STD, THRESHOLD, region
from harness.data.suppressors import FEATURES, NOISE, SUPPRESSED
from harness.digests import digest
from harness.models import ModelSource
from harness.registry import model_source

EVIDENCE = 6.0
"""Of an average sample: it moves the log-odds from -3, a probability of 5 %, to 3, one of 95 %."""

OF_REGION, OF_SPOTS = 0.426, 53.7
"""The weighted mean pixel of the region, and by how much the bright values of a picture exceed the threshold."""

COLOURS = (0.9, 1.8, 0.3)
"""How much more or less one of the three channels counts."""

DATA_OF = {"evidence-linear": "evidence", "evidence-additive": "evidence", "suppressor-optimal": "suppressors"}


class Additive(nn.Module):
    r"""$f(x) = (e, -e) / 2$ with $e = \sum_i w_i g(x_i) + \beta$: a sum over positions, whose right maps are known.

    What position $i$ contributes to the first logit, beside a baseline $b$, is $w_i (g(x_i) - g(b_i)) / 2$ whatever the
    others are: the drop when it alone is removed, its Shapley value, and what integrated gradients give.

    Args:
        weight: of each position, of the shape of an input or one that broadcasts to it.
        bias: beta.
        transform: g, value by value; the identity for a linear network.
    """

    def __init__(self, weight: Float[Tensor, "..."], bias: float, transform: nn.Module | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.tensor(bias))
        self.transform = transform or nn.Identity()

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 2"]:
        """The logits of the two classes."""
        evidence = (self.weight * self.transform(x)).flatten(1).sum(1) + self.bias
        return torch.stack([evidence, -evidence], 1) / 2

    def contributions(
        self, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], baseline: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n *shape"]:
        """What each position contributes to the explained logit, beside the baseline."""
        parts = self.weight * (self.transform(x) - self.transform(baseline)) / 2
        return parts * (1 - 2 * target).to(x).view(-1, *(1,) * (x.ndim - 1))


class Bright(nn.Module):
    r"""By how much the pixel behind a normalized value is brighter than a threshold: $\max(p - t, 0)$."""

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """How much brighter."""
        return torch.relu(x * STD + MEAN - THRESHOLD)


@model_source()
def evidence_linear() -> ModelSource:
    """A linear network for `evidence` with `truth: region`: weights in that region, zero elsewhere."""
    weight = region().expand(SHAPE) * EVIDENCE / (OF_REGION * region().expand(SHAPE).sum())
    # In units of pixels, and black has no evidence.
    return _known("evidence-linear", Additive(weight * STD, float(MEAN * weight.sum()) - EVIDENCE / 2), SHAPE)


@model_source()
def evidence_additive() -> ModelSource:
    """A network for `evidence` that adds up how much brighter than a threshold pixels are, wherever they are."""
    weight = torch.tensor(COLOURS)[:, None, None] * EVIDENCE / OF_SPOTS
    return _known("evidence-additive", Additive(weight, -EVIDENCE / 2, Bright()), SHAPE)


@model_source()
def suppressor_optimal() -> ModelSource:
    """The best linear network for `suppressors`: it has weights on features that say nothing of the class."""
    weight = torch.zeros(FEATURES)
    for informative, suppressor in SUPPRESSED.items():
        # The log-odds of the class, given the difference, which is 1 or -1 and noise.
        weight[informative], weight[suppressor] = 2 / NOISE**2, -2 / NOISE**2
    return _known("suppressor-optimal", Additive(weight, 0.0), (FEATURES,))


def _known(name: str, network: Additive, shape: tuple[int, ...]) -> ModelSource:
    """A source that makes this network, with these weights, for ever."""
    made_by = digest(inspect.getsource(sys.modules[__name__]))
    return ModelSource(
        name, lambda *_: copy.deepcopy(network).eval(), data=DATA_OF[name], shape=shape, code=lambda _: made_by
    )
