"""The bootstrap over samples: the same draws whoever asks."""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from jaxtyping import Float, Int

from harness.statistics.intervals import Interval, Statistic


def resampled(samples: int, times: int = 1000) -> Iterator[Int[np.ndarray, " samples"]]:
    """Which samples are drawn, with replacement, again and again: the same ones whoever asks."""
    generator = np.random.default_rng(0)
    return (generator.integers(0, samples, samples) for _ in range(times))


def resampled_means(
    values: Float[np.ndarray, "*rows samples"], chunk: int = 64
) -> Float[np.ndarray, "one_and_resampled *rows"]:
    """The mean of each row over the samples, and below it over those that are drawn in each `resampled`.

    How often each sample is drawn, times the values, is one product of matrices. Rows that are equal have equal means.
    """
    samples = values.shape[-1]
    # A product may round the same sum in two ways, and ties would be broken.
    rows, place = np.unique(values.reshape(-1, samples), axis=0, return_inverse=True)
    picks, means = resampled(samples), [np.ones((1, samples)) @ rows.T]
    while some := list(islice(picks, chunk)):
        means.append(np.stack([np.bincount(pick, minlength=samples) for pick in some]).astype(float) @ rows.T)
    return (np.concatenate(means) / samples)[:, place].reshape(-1, *values.shape[:-1])


def resampled_medians(values: Float[np.ndarray, "*rows samples"]) -> Float[np.ndarray, "one_and_resampled *rows"]:
    """The median of each row over the samples, and below it over those that are drawn in each `resampled`."""
    picks = resampled(values.shape[-1])
    return np.stack([np.median(values, axis=-1), *(np.median(values[..., pick], axis=-1) for pick in picks)])


def resampled_by(
    statistic: Statistic, values: Float[np.ndarray, "*rows samples"]
) -> Float[np.ndarray, "one_and_resampled *rows"]:
    """The mean or the median of each row over the samples, and below it over those that are drawn again and again."""
    return resampled_medians(values) if statistic == "median" else resampled_means(values)


def basic_bootstrap(
    statistic: Callable[[Int[np.ndarray, " picked"]], float], samples: int, *, least: float, most: float = 1.0
) -> Interval:
    """A statistic of the samples, in [least, most], with its basic bootstrap interval.

    Args:
        statistic: of the samples with these indices.
        samples: how many there are.
        least: the smallest value it can have.
        most: the largest one.
    """
    drawn = np.array([statistic(pick) for pick in resampled(samples)])
    return basic_interval(statistic(np.arange(samples)), drawn, least=least, most=most)


def basic_interval(
    value: float, drawn: Float[np.ndarray, " resampled"], *, least: float, most: float = 1.0
) -> Interval:
    """A value in [least, most] with its basic bootstrap interval, from what it is in resampled samples.

    Rankings of resampled samples are noisier than those of the samples, so that a percentile interval would be shifted.
    """
    low, high = np.clip(2 * value - np.quantile(drawn, [0.975, 0.025]), least, most)
    return Interval(value, float(low), float(high))
