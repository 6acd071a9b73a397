"""The law of an initializer, the distribution of weights held against it, and what is left of it in their order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from harness.case import Source
from harness.introspecting import once

FIRST_TWIN = 10_000
"""Twins of the initializer's law, which no randomization test draws."""

TRACY_WIDOM = 3.2724
"""The 99.9 % quantile of the Tracy-Widom law of order 1."""


@dataclass(frozen=True)
class Law:
    """What an initializer draws for a tensor, by several draws: sorted values, or quantiles, of how many."""

    values: Float[np.ndarray, " m"]
    drawn: int

    @property
    def scale(self) -> float:
        """The standard deviation."""
        return float(self.values.std())


def laws_of(source: Source, twins: int, values: int) -> Mapping[str, Law]:
    """The law of each layer's weights, by name of the parameter; computed once for all networks that are asked about.

    Args:
        source: makes the twins.
        twins: how many.
        values: how many quantiles represent each tensor, at most.
    """

    def pooled() -> Mapping[str, Law]:
        fresh = [matrices_of(source.twin(FIRST_TWIN + draw)) for draw in range(twins)]
        laws = {}
        for name, first in fresh[0].items():
            ordered = np.sort(np.concatenate([quantiles(each[name], values) for each in fresh]))
            laws[name] = Law(ordered, twins * first.numel())
        return {name: law for name, law in laws.items() if law.values[0] < law.values[-1]}

    return once(source, ("laws of weights", twins, values), pooled)


def matrices_of(model: nn.Module) -> dict[str, Float[Tensor, "rows columns"]]:
    """The weights of each layer as a matrix, by name of the parameter; those of convolutions are [out, in * h * w]."""
    tensors = {name: parameter.detach().squeeze() for name, parameter in model.named_parameters()}
    return {name: tensor.flatten(1).double() for name, tensor in tensors.items() if tensor.ndim > 1}


def quantiles(tensor: Float[Tensor, "..."], most: int) -> Float[np.ndarray, " k"]:
    """The sorted values of a tensor; of more than `most`, as many that are evenly spaced among them.

    They do not depend on the order of the values, so that shuffled weights have the same.
    """
    ordered = tensor.flatten().sort().values
    if len(ordered) > most:
        places = (torch.arange(most, dtype=torch.float64) + 0.5) * (len(ordered) / most)
        ordered = ordered[places.long().to(ordered.device)]
    return ordered.cpu().numpy()


def measured(model: nn.Module, laws: Mapping[str, Law], values: int) -> dict[str, dict[str, float]]:
    """For each layer, measure -> number: see `weight_distribution`."""
    of = matrices_of(model)
    return {name: {**against_law(of[name], law, values), **structure(of[name])} for name, law in laws.items()}


def against_law(weights: Float[Tensor, "rows columns"], law: Law, values: int) -> dict[str, float]:
    """How the distribution of values differs from the law."""
    ours, size = quantiles(weights, values), weights.numel()
    distance = float(stats.ks_2samp(ours, law.values, method="asymp").statistic)
    return {
        "kolmogorov_smirnov": distance,
        "kolmogorov_smirnov_p": float(stats.kstwo.sf(distance, round(size * law.drawn / (size + law.drawn)))),
        "wasserstein": float(stats.wasserstein_distance(ours, law.values)) / law.scale,
        "mean": float(weights.mean()) / law.scale,
        "deviation_ratio": float(weights.std(correction=0)) / law.scale,
        "skewness": float(stats.skew(ours)) if ours[0] < ours[-1] else np.nan,
        "kurtosis": float(stats.kurtosis(ours)) if ours[0] < ours[-1] else np.nan,
    }


def structure(weights: Float[Tensor, "rows columns"]) -> dict[str, float]:
    """What the singular values say; of centred weights where they are held against those of random matrices."""
    squares = singular_values(weights).square()
    centred = weights - weights.mean()
    above = singular_values(centred) > edge_of(centred)
    return {
        "spectral_norm": float(squares.max().sqrt()),
        "stable_rank": float(squares.sum() / squares.max()),
        "spectral_excess": float(above.double().mean()),
    }


def singular_values(weights: Float[Tensor, "rows columns"]) -> Float[Tensor, " k"]:
    """In descending order, by the Gram matrix of the shorter side, which is quicker and as good for the large ones."""
    short = weights if weights.shape[0] <= weights.shape[1] else weights.T
    return torch.linalg.eigvalsh(short @ short.T).clamp(min=0).sqrt().flip(0)


def edge_of(weights: Float[Tensor, "rows columns"]) -> float:
    r"""What the largest singular value of a random matrix stays below in 99.9 % of cases.

    `johnstone2001distribution`. With entries of the variance $\sigma^2$ of these, $a = \sqrt{m - 1}$ and
    $b = \sqrt n$, the square of the largest one is about $\sigma^2 ((a + b)^2 + t (a + b) (1 / a + 1 / b)^{1/3})$,
    where $t$ follows the Tracy-Widom law of order 1. The first summand is the edge of Marchenko and Pastur.
    """
    rows, columns = weights.shape
    a, b = (max(rows, columns) - 1) ** 0.5, min(rows, columns) ** 0.5
    variance = float(weights.var(correction=0))
    return (variance * ((a + b) ** 2 + TRACY_WIDOM * (a + b) * (1 / a + 1 / b) ** (1 / 3))) ** 0.5
