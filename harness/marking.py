"""How a metric is marked by its scores of maps of known quality. Arithmetic only: nothing here runs a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from harness.statistics import kendall_b, krippendorff, samples_needed

Scores = Float[np.ndarray, " samples"]

QUALITIES = (1.0, 0.9, 0.75, 0.6, 0.4, 0.2, 0.1, 0.0)
TRUTH, MIDDLE, LOW, WRONG = 1.0, 0.6, 0.4, 0.0

ERRORS = 4.0
"""How many standard errors are no chance."""

NEGLIGIBLE = 0.02
"""Of what the truth gains over a wrong map: a smaller step in the wrong order is none."""

ROUNDING = 1e-9
"""Of the range of all scores: a smaller difference is none."""

SAME = 1e-3
"""Of the range of all scores: what two computations of one score may differ by in 99 % of the samples."""

UNDEFINED = 0.1
"""The largest share of samples of which a score may be undefined."""

FAULTS = {
    "undefined": "more than a tenth of the samples has no score",
    "blind": "does not tell the truth from a wrong map, or from noise",
    "order": "scores a worse map higher",
    "chance": "noise is not at the level stated for chance",
    "picture": "scores a copy of the input higher than the truth",
    "reversal": "does not say that a reversed map is no better than noise",
    "scale": "depends on the scale of the map",
    "company": "depends on the other samples, their order or the batch",
}


@dataclass(frozen=True)
class Answers:
    """The scores that one metric gave in one task, a number for each sample, higher for better.

    Scores may be undefined for a map that has none by definition, such as a negated one; only those of graded maps and
    of noise must be there.

    Attributes:
        graded: quality -> scores; 0 is a plausible map that is wrong.
        noise: of white noise.
        picture: of a map that is the input itself.
        negated: of the truth with its sign reversed.
        inverted: of the truth with its order reversed and no value negative.
        rescaled: of the map of middle quality, each sample by a factor of its own.
        in_company: of the same map with the samples in another order, in small batches.
        again: of the map of middle quality less those of low quality, with other draws of the metric.
        chance: what is stated for noise; None if nothing is.
    """

    graded: Mapping[float, Scores]
    noise: Scores
    picture: Scores
    negated: Scores
    inverted: Scores
    rescaled: Scores
    in_company: Scores
    again: Scores
    chance: float | None = None

    @property
    def gain(self) -> float:
        """How much higher the truth scores than noise."""
        return mean(self.graded[TRUTH]) - mean(self.noise)

    @cached_property
    def span(self) -> float:
        """The range of all scores."""
        every = np.concatenate([*self.graded.values(), self.noise, self.picture, self.negated, self.inverted])
        return float(np.nanmax(every) - np.nanmin(every)) if np.isfinite(every).any() else 0.0

    def faults(self) -> tuple[str, ...]:
        """What is wrong with the metric, by the names in `FAULTS`; nothing if it passes."""
        if any(np.isnan(scores).mean() > UNDEFINED for scores in (*self.graded.values(), self.noise)):
            return ("undefined",)
        truth, middle, wrong = (self.graded[quality] for quality in (TRUTH, MIDDLE, WRONG))
        found = {
            "blind": not (self._above(truth, wrong) and self._above(truth, self.noise)),
            "order": any(
                self._higher(self.graded[worse], self.graded[better]) for better, worse in pairwise(QUALITIES)
            ),
            "chance": self.chance is not None and abs(self._errors(self.noise - self.chance)) > ERRORS,
            "picture": self._higher(self.picture, truth),
            "reversal": not any(self._loses(each) for each in (self.negated, self.inverted)),
            "scale": self._differ(middle, self.rescaled),
            "company": self._differ(middle, self.in_company),
        }
        return tuple(name for name, wrong in found.items() if wrong)

    def reversed_gain(self, other: Scores) -> float:
        """Where a reversed map scores: -1 as far below noise as the truth is above it, 0 as noise, 1 as the truth."""
        return (mean(other) - mean(self.noise)) / self.gain if self.gain else np.nan

    def needed(self, better: float, worse: float) -> float:
        """How many samples tell two qualities apart, in 80 % of all studies at a level of 5 %."""
        return samples_needed(self.graded[better] - self.graded[worse])

    @property
    def least_quality(self) -> float:
        """The smallest quality that as many samples as here tell from a wrong map; NaN if they tell none."""
        return self._told([(quality, quality, WRONG) for quality in reversed(QUALITIES[:-1])])

    @property
    def least_loss(self) -> float:
        """The smallest loss of quality that they tell from the truth; NaN if they tell none."""
        return self._told([(round(TRUTH - quality, 6), TRUTH, quality) for quality in QUALITIES[1:]])

    @property
    def needed_if_averaged(self) -> float:
        """How many samples tell middle from low quality if each score were the mean over very many draws.

        The variance that two draws do not share is the metric's own: half the mean square of what they differ by.
        """
        first, known = self._differences
        both = (first[known] + self.again[known]) / 2
        if len(both) < 2:
            return np.nan
        own = self._own_variance
        # The mean of two draws has half of it, and it is taken out by drawing samples nearer to their mean.
        variance = float(both.var(ddof=1))
        left = max(variance - own / 2, 0.0)
        return samples_needed(both.mean() + (both - both.mean()) * (left / variance) ** 0.5 if variance else both)

    @property
    def own_share(self) -> float:
        """The share of the variance of that difference that is the metric's own, from its draws."""
        first, known = self._differences
        variance = float(np.concatenate([first[known], self.again[known]]).var()) if known.sum() > 1 else 0.0
        return min(self._own_variance / variance, 1.0) if variance else 0.0

    @property
    def _differences(self) -> tuple[Scores, Bool[np.ndarray, " samples"]]:
        """What middle and low quality differ by, and where that is known under both draws."""
        first = self.graded[MIDDLE] - self.graded[LOW]
        return first, ~np.isnan(first + self.again)

    @property
    def _own_variance(self) -> float:
        first, known = self._differences
        return float(np.mean((first - self.again)[known] ** 2)) / 2 if known.any() else 0.0

    @property
    def reliability(self) -> float:
        """Krippendorff's alpha of the samples as raters that rank the qualities."""
        scores = np.stack([self.graded[quality] for quality in QUALITIES], 1)
        return krippendorff(rankdata(scores[~np.isnan(scores).any(1)], axis=1)) if len(scores) else np.nan

    def _told(self, steps: Sequence[tuple[float, float, float]]) -> float:
        for step, better, worse in steps:
            known = ~np.isnan(self.graded[better] - self.graded[worse])
            if self.needed(better, worse) <= known.sum():
                return step
        return np.nan

    def _above(self, higher: Scores, lower: Scores) -> bool:
        """Whether one is above the other by more than chance, sample by sample."""
        return self._errors(higher - lower) > ERRORS

    def _errors(self, differences: Scores) -> float:
        """The mean in standard errors; infinitely many where all are alike, none where they are rounding."""
        known = differences[~np.isnan(differences)]
        if len(known) < 2 or abs(known.mean()) <= ROUNDING * self.span:
            return 0.0
        error = float(known.std(ddof=1) / len(known) ** 0.5)
        return float(known.mean()) / error if error else float(np.sign(known.mean())) * np.inf

    def _higher(self, worse: Scores, better: Scores) -> bool:
        """Whether a worse map scores higher than a better one, by more than chance and by more than next to nothing."""
        gain = mean(self.graded[TRUTH]) - mean(self.graded[WRONG])
        return self._above(worse, better) and mean(worse - better) > NEGLIGIBLE * abs(gain)

    def _loses(self, other: Scores) -> bool:
        return self._above(self.graded[TRUTH], other) and not self._above(other, self.noise)

    def _differ(self, first: Scores, second: Scores) -> bool:
        same = (np.abs(first - second) <= SAME * self.span) | (np.isnan(first) & np.isnan(second))
        return float(same.mean()) < 0.99


def rank_agreement(first: Mapping[float, Scores], second: Mapping[float, Scores]) -> float:
    r"""Kendall's $\tau_b$ between the orders in which two metrics put the qualities, averaged over samples."""
    one, other = (np.stack([scores[quality] for quality in QUALITIES], 1) for scores in (first, second))
    taus = kendall_b(one, other)
    return float(np.nanmean(taus)) if np.isfinite(taus).any() else np.nan


def mean(scores: Scores) -> float:
    """The mean of the scores that are known; NaN if none is."""
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan
