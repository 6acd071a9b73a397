"""Every two methods against each other, on the same samples: the table of paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from harness.headlines import Headline, by_metric
from harness.statistics import Contrast, Test, contrast, holm, told

COLUMNS = [
    *("model", "model_seed", "metric", "measure", "first", "second", "outcome", "difference", "low", "high", "median"),
    *("superiority", "rank_biserial", "p", "p_holm", "smallest_effect", "samples", "draws"),
]


@dataclass(frozen=True)
class Comparing:
    """How methods are compared: conventions, which can be set where tables are read.

    Attributes:
        test: over samples: `wilcoxon` (of a median of zero) or `sign_flip` (of a mean of zero).
        smallest_effect: measure or metric -> the smallest difference of interest; less is equivalent.
        level: of p-values, adjusted by Holm for all rows of the table.
    """

    test: Test = "wilcoxon"
    smallest_effect: Mapping[str, float] = field(default_factory=dict)
    level: float = 0.05

    def smallest(self, headline: Headline) -> float:
        """The smallest effect of interest of a headline; 0 where none is declared."""
        effects = self.smallest_effect
        return effects.get(headline.labels["metric"], effects.get(headline.measure, 0.0))


DEFAULT_COMPARING = Comparing()


def comparisons(headlines: Sequence[Headline], how: Comparing = DEFAULT_COMPARING) -> pd.DataFrame:
    """One row for each model, metric and pair of methods, controls left out.

    `difference` is first - second, the mean over samples and draws with its interval, or the median over samples where
    that is what stands for the metric; `superiority` the share of
    samples in which the first has the higher value; p-values are about this model, over samples
    and draws, and `p_holm` is adjusted for the whole table. `outcome` names the better method if the p-value says so
    and the interval lies beyond the smallest effect of interest; `equivalent` if it lies within.

    Args:
        headlines: of the run.
        how: methods are compared.
    """
    rows, found = [], []
    for ((model, seed), metric), group in by_metric(headlines).items():
        for first, second in combinations(group, 2):
            if len(first.values) != len(second.values) or first.measure != second.measure:
                continue
            each = contrast(first.values, second.values, how.test, first.statistic)
            found.append((first, second, each))
            rows.append(
                {
                    **{"model": model, "model_seed": seed, "metric": metric, "measure": first.measure},
                    **{"first": first.labels["method"], "second": second.labels["method"]},
                    **{"difference": each.difference.value, "low": each.difference.low, "high": each.difference.high},
                    **{"median": each.median, "superiority": each.superiority, "rank_biserial": each.rank_biserial},
                    **{"p": each.p, "smallest_effect": how.smallest(first), "samples": each.samples},
                    "draws": first.values.shape[1],
                }
            )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["p_holm"] = holm(frame["p"].to_numpy(dtype=float))
    frame["outcome"] = [_outcome(*each, p, how) for each, p in zip(found, frame["p_holm"], strict=True)]
    return frame


def _outcome(first: Headline, second: Headline, each: Contrast, p: float, how: Comparing) -> str:
    said = told(each, p, how.smallest(first), how.level)
    if said == "equivalent":
        return said
    if not said:
        return "" if np.isnan(p) else "not told apart"
    ahead = first if (said == "above") != (first.direction == "lower") else second
    return f"{ahead.labels['method']} {'better' if first.direction else 'higher'}"
