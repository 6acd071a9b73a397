"""Probes: logistic regression with a regularization path, on labels and on control labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from harness.random import seed_of

POOLS: dict[int, Callable[..., Tensor]] = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
FEWEST = 4
"""Samples of a class, so that each quarter has one."""

PER_TYPE = 20
"""Samples for each type of the control task, at least on average: half of them are learnt from."""


HALVES = (((0, 1), (2, 3)), ((2, 3), (0, 1)))
"""The quarters that a probe is fitted on, and those that choose its penalty for each other."""


@dataclass(frozen=True)
class Probe:
    """How well the best probes of a regularization path do, in four rotations: every sample is tested once.

    Attributes:
        path: the mean accuracy on samples that were not learnt from, by strength of the penalty.
        validation: the highest accuracy of a path on the validation part, in each rotation.
        accuracy: of that probe on the test part.
        balanced_accuracy: the mean of its recalls of all classes there.
    """

    path: Float[np.ndarray, " strengths"]
    validation: Float[np.ndarray, " 4"]
    accuracy: Float[np.ndarray, " 4"]
    balanced_accuracy: Float[np.ndarray, " 4"]


def on_a_grid(output: Float[Tensor, "n k *axes"], most: int) -> Float[Tensor, "n features"]:
    """Averages over positions, on the finest grid with at most `most` numbers, or one position if no grid has so few.

    The longest axis is made shorter first.
    """
    channels, *axes = output.shape[1:]
    while channels * prod(axes) > most and max(axes, default=1) > 1:
        longest = max(axes)
        axes = [min(length, longest - 1) for length in axes]
    return POOLS[len(axes)](output, axes).flatten(1) if axes else output


def quarters_of(y: Int[np.ndarray, " n"], seed: int) -> list[Int[np.ndarray, " _"]]:
    """Rows of samples: four random quarters of each class."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(4, shuffle=True, random_state=seed_of(seed, "quarters") % 2**32)
    return [quarter for _, quarter in folds.split(y, y)]


def control_labels(
    raw: Float[np.ndarray, "n features"], y: Int[np.ndarray, " n"], types: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Labels that are a random function of the type of an input: the classes are dealt out evenly among the types.

    Args:
        raw: the inputs.
        y: their true labels, which say nothing but which classes there are.
        types: how many, at most one for 20 samples; see `linear_probe`.
        seed: of the clusters and of the labels.
    """
    from sklearn.cluster import KMeans

    count = min(types, len(raw) // PER_TYPE)
    kinds = KMeans(count, n_init=1, random_state=seed_of(seed, "types") % 2**32).fit_predict(raw)
    dealt = np.random.default_rng(seed_of(seed, "control labels")).permutation(count)
    classes = np.unique(y)
    return classes[dealt[kinds] % len(classes)]


def probe(
    features: Float[np.ndarray, "n features"],
    y: Int[np.ndarray, " n"],
    quarters: Sequence[Int[np.ndarray, " _"]],
    strengths: Sequence[float],
) -> Probe:
    """Probes that are fitted on either half of the samples.

    Of the other half each quarter chooses the penalty for a test on the other one. Of probes that are as good there, it
    is the one of the strongest penalty.

    Args:
        features: of each sample.
        y: what is to be read from them.
        quarters: rows of the samples.
        strengths: the path of C.
    """
    from sklearn.metrics import recall_score

    rotations, paths = [], []
    for halves, others in HALVES:
        rows = np.concatenate([quarters[each] for each in halves])
        told = _path(features, y, rows, strengths)
        right = {each: (told[:, quarters[each]] == y[quarters[each]]).mean(1) for each in others}
        paths.append(np.mean(list(right.values()), 0))
        for validation, test in (others, others[::-1]):
            best = max(range(len(strengths)), key=lambda at: (right[validation][at], -strengths[at]))
            here = y[quarters[test]]
            recalls = {"labels": np.unique(here), "average": "macro", "zero_division": 0.0}
            balanced = recall_score(here, told[best, quarters[test]], **recalls)
            rotations.append((right[validation][best], right[test][best], balanced))
    return Probe(np.mean(paths, 0), *np.array(rotations, dtype=np.float64).T)


def _path(
    features: Float[np.ndarray, "n features"],
    y: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " m"],
    strengths: Sequence[float],
) -> Int[np.ndarray, "strengths n"]:
    """What probes that are fitted on these rows say of all samples.

    Each begins where the one of the next stronger penalty ended.
    """
    from sklearn.linear_model import LogisticRegression

    spread = features[rows].std(0)
    z = (features - features[rows].mean(0)) / (np.where(spread > 0, spread, 1) * features.shape[1] ** 0.5)
    regression = LogisticRegression(class_weight="balanced", warm_start=True, max_iter=1000)
    told = {each: regression.set_params(C=each).fit(z[rows], y[rows]).predict(z) for each in sorted(strengths)}
    return np.stack([told[each] for each in strengths])
