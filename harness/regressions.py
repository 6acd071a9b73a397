"""Two runs of a study, paired by label and sample: what became worse, what is new or gone, and what was changed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from harness.catalogue import METRICS
from harness.causes import causes
from harness.glance import GROUP
from harness.results import Results
from harness.series import Series, Stack, commonest
from harness.statistics import (
    Estimate,
    Statistic,
    Values,
    difference_of,
    holm,
    mean_of,
    median_interval,
    over_draws,
    sign_test,
)
from harness.types import InputError

Outcome = Literal[
    "same", "better", "worse", "changed", "undecided", "new", "missing", "failed", "failed before", "not applicable"
]
RED: tuple[Outcome, ...] = ("worse", "missing", "failed")
NUMBERS = ["base", "new", "difference", "low", "high", "tolerance", "p", "p_holm", "samples"]
COLUMNS = [*GROUP, "outcome", "measure", "direction", *NUMBERS, "why", "changed"]

ROUNDING = 1e-3
"""Of the mean: what another order of sums may change in single precision."""

TRAINED = {"partner", "recipe"}
"""Needs of metrics that train networks, which are other ones with another seed."""

UNMATCHED = "the seeds differ, and one draw each does not say how far draws lie apart"


@dataclass(frozen=True)
class Tolerance:
    """By how much a measure may change before it counts.

    Attributes:
        spread: as a share of the standard deviation of the base's samples, where nothing is said of the measure; for a
            metric whose headline is a median, of its robust estimate. A thousandth of the headline is always allowed.
        measures: measure -> by how much, in its own units.
    """

    spread: float = 0.1
    measures: Mapping[str, float] = field(default_factory=dict)

    def of(self, measure: str, base: Values, statistic: Statistic) -> float:
        """In the units of the measure."""
        if measure in self.measures:
            return self.measures[measure]
        each = over_draws(base)[:, 0]
        each = each[~np.isnan(each)]
        if len(each) < 2:
            return ROUNDING * float(np.abs(each).sum())
        if statistic == "median":
            middle = float(np.median(each))
            return max(self.spread * float(stats.median_abs_deviation(each, scale="normal")), ROUNDING * abs(middle))
        return max(self.spread * float(each.std(ddof=1)), ROUNDING * abs(float(each.mean())))


DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True)
class Comparison:
    """What came of comparing two runs.

    Attributes:
        base: the name of the one.
        new: the name of the other.
        rows: one for each model, method and metric of either, with `COLUMNS`.
        stale: how many finished cells lie in the new folder that its study no longer names.
    """

    base: str
    new: str
    rows: pd.DataFrame
    stale: int

    @cached_property
    def red(self) -> pd.DataFrame:
        """The rows for which a nightly run turns red: worse, missing, or failed for the first time."""
        return self.rows[self.rows["outcome"].isin(RED)]

    @cached_property
    def changes(self) -> list[str]:
        """What differs between the two runs, what most rows have in common first."""
        found = self.rows["changed"].str.split("; ").explode()
        return list(found[found.notna() & (found != "")].value_counts(sort=True).index)


def compare(
    base: Results | str | Path,
    new: Results | str | Path,
    *,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    level: float = 0.05,
) -> Comparison:
    r"""Compare two runs by the headline of each model, method and metric.

    A headline is worse or better if its mean paired difference $\Delta$ is beyond the tolerance $\tau$ in the one
    direction or the other: two-sided p-values are where an interval ends at $\tau$, by Holm over all rows that can be
    compared; of medians, those of the sign test. `changed`: so for a metric without a better direction. Samples are
    paired by id; draws by number if both studies have the same seed. Else draws of either run vary on their own, and
    one each leaves a row `undecided`.

    Args:
        base: what is known to be right, or its folder.
        new: what is to be judged, or its folder.
        tolerance: by how much a measure may change.
        level: of the p-values.

    Raises:
        InputError: a folder holds no run, or the two have no label in common.
    """
    one, other = (run if isinstance(run, Results) else Results.load(run) for run in (base, new))
    before, after = ({tuple(stack.labels.values()): stack for stack in run.stacks()} for run in (one, other))
    if not before.keys() & after.keys():
        raise InputError(
            "nothing to compare: no model, method and metric is in both runs; the base has "
            f"{_named(before)}, the new one {_named(after)}"
        )
    seeds = one.manifest["study"].get("seed", 0), other.manifest["study"].get("seed", 0)
    # Taken out one by one, because a stack keeps what was read of it.
    rows = [
        dict(zip(GROUP, key, strict=True)) | _row(before.pop(key, None), after.pop(key, None), seeds, tolerance)
        for key in dict.fromkeys([*before, *after])
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["p_holm"] = holm(frame["p"].to_numpy(dtype=float))
    frame["outcome"] = [_judged(row, level) for _, row in frame.iterrows()]
    return Comparison(one.manifest["run"], other.manifest["run"], frame, len(other.stale))


def _row(base: Stack | None, new: Stack | None, seeds: tuple[int, int], tolerance: Tolerance) -> dict[str, Any]:
    """Everything but the adjusted p-value, and the outcome that depends on it."""
    if base is None or new is None:
        return {
            "outcome": "new" if base is None else "missing",
            "why": f"not in the {'base' if base is None else 'new run'}",
        }
    row: dict[str, Any] = {"changed": "; ".join(_causes(base, new, seeds))}
    if base.status != "done" or new.status != "done":
        return row | _unfinished(base.status, new)
    before, after = base.headline, new.headline
    row |= {"measure": new.info["headline"], "direction": new.info["direction"] or ""}
    if before is None or after is None or before.labels["measure"] != after.labels["measure"]:
        return row | {"outcome": "undecided", "why": "the two have no headline in common"}
    pair = _paired(before, after)
    if pair is None:
        return row | {"outcome": "undecided", "why": "no sample is in both runs"}
    first, second = pair
    statistic: Statistic = new.info["summary_statistic"]
    allowed = tolerance.of(row["measure"], first, statistic)
    apart = (over_draws(second) - over_draws(first))[:, 0]
    known = apart[~np.isnan(apart)]
    middle = mean_of if statistic == "mean" else median_of
    row |= {"base": middle(first), "new": middle(second), "samples": len(known), "tolerance": allowed, "why": ""}
    if np.array_equal(first, second, equal_nan=True):
        return row | {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    why = _unmatched(new, before, after) if seeds[0] != seeds[1] else ""
    if why or len(known) < 2:
        return row | {"outcome": "undecided", "why": why or "fewer than two samples have values"}
    if statistic == "median":
        interval, p = median_interval(known), sign_test(known, allowed)
    else:
        matched = seeds[0] == seeds[1] and np.array_equal(before.draws, after.draws, equal_nan=True)
        found = difference_of(second, first, matched=matched)
        interval, p = found.interval(), _p(found, allowed)
    return row | {"difference": interval.value, "low": interval.low, "high": interval.high, "p": p}


def median_of(values: Values) -> float:
    """The median over samples of their means over draws."""
    return float(np.nanmedian(over_draws(values)))


def _causes(base: Stack, new: Stack, seeds: tuple[int, int]) -> list[str]:
    cells = list(zip(base.states, new.states, base.cells, new.cells, strict=False))
    found = [causes(*states, seeds=seeds, same_key=one.key == other.key) for *states, one, other in cells]
    return list(dict.fromkeys(cause for each in found for cause in each))


def _unfinished(before: str, new: Stack) -> dict[str, Any]:
    """The outcome where either has no values."""
    after = new.status
    said = _reason(new)
    if after == "failed":
        return {"outcome": "failed before" if before == "failed" else "failed", "why": said}
    if after == "done":
        return {"outcome": "new", "why": f"the base is {before.replace('_', ' ')}"}
    if after == before:
        return {"outcome": "not applicable" if after == "not_applicable" else "missing", "why": said}
    return {"outcome": "missing", "why": said or "not finished"}


def _reason(stack: Stack) -> str:
    """Why a stack has no values."""
    errors = [failure["error"] for cell in stack.cells if (failure := stack.store.failure(cell))]
    return commonest(Counter(errors or [state["reason"] for state in stack.states if state.get("reason")]))


def _paired(base: Series, new: Series) -> tuple[Values, Values] | None:
    """The values of the samples that are in both; None without any."""
    if base.about_model or new.about_model:
        return (base.values, new.values) if base.about_model and new.about_model else None
    places = {name: index for index, name in enumerate(base.samples)}
    common = [(places[name], index) for index, name in enumerate(new.samples) if name in places]
    if not common:
        return None
    one, other = map(list, zip(*common, strict=True))
    return base.values[one], new.values[other]


def _unmatched(stack: Stack, base: Series, new: Series) -> str:
    """Why draws of two seeds cannot be compared; empty if they can."""
    metric = METRICS.get(stack.info["metric_function"])
    if metric and TRAINED & set(metric.needs):
        return "the seeds differ, and with them the networks that the metric trains"
    drawn = [len(series.draws) for series in (base, new) if not np.isnan(series.draws).all()]
    return UNMATCHED if 1 in drawn else ""


def _p(found: Estimate, allowed: float) -> float:
    """How often a mean would lie as far beyond the tolerance, or farther, on either side."""
    if abs(found.mean) <= allowed:
        return 1.0
    return min(2 * found.chance(float(np.copysign(allowed, found.mean))), 1.0)


def _judged(row: "pd.Series[Any]", level: float) -> Outcome:
    """What is known without a p-value; else what the adjusted one says."""
    if np.isnan(row["p"]):
        outcome: Outcome = row["outcome"]
        return outcome
    if row["p_holm"] >= level:
        return "same"
    if not row["direction"]:
        return "changed"
    return "better" if (row["difference"] > 0) == (row["direction"] == "higher") else "worse"


def _named(stacks: Mapping[tuple[Any, ...], Stack]) -> str:
    some = [" · ".join(map(str, (key[0], *key[2:]))) for key in list(stacks)[:2]]
    return ", ".join(some) + (" ..." if len(stacks) > 2 else "") if some else "nothing"
