"""How alike two maps over frequency and time are along one of the two axes: correlations of what they sum up to.

Frequency is an axis with an order and without locality: a network that takes frequencies as channels mixes all of them
in its first layer, so that no neighbour means more than another, and similarities of windows and of local gradients,
SSIM and HOG, mean nothing along it. What can be compared besides all values is when there is relevance, and where in
frequency.
"""

from jaxtyping import Float
from torch import Tensor

from harness.metrics.similarity import pearson

SUMMED = {"time_profile": 1, "frequency_profile": 2}
"""Measure -> the axis of maps [n, frequencies, frames] that is summed over."""


def profile(maps: Float[Tensor, "n frequencies frames"], measure: str) -> Float[Tensor, "n places"]:
    """What each map sums up to in each frame (`time_profile`) or frequency (`frequency_profile`), float64."""
    return maps.double().sum(SUMMED[measure])


def time_profile(
    a: Float[Tensor, "n frequencies frames"], b: Float[Tensor, "n frequencies frames"]
) -> Float[Tensor, " n"]:
    r"""Pearson correlation over frames $t$ of $\sum_f a_{ft}$ and $\sum_f b_{ft}$, in [-1, 1].

    NaN where a sum is the same in all frames.
    """
    return pearson(profile(a, "time_profile"), profile(b, "time_profile"))


def frequency_profile(
    a: Float[Tensor, "n frequencies frames"], b: Float[Tensor, "n frequencies frames"]
) -> Float[Tensor, " n"]:
    r"""Pearson correlation over frequencies $f$ of $\sum_t a_{ft}$ and $\sum_t b_{ft}$, in [-1, 1].

    NaN where a sum is the same at all frequencies.
    """
    return pearson(profile(a, "frequency_profile"), profile(b, "frequency_profile"))
