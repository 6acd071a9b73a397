"""Claims of papers, judged on the rows of a run: reproduced, not reproduced, or not testable here.

A rule is a small function of the `Evidence` of one model, read by one `Protocol`. It compares `Reading`s, which know
their intervals, with bounds that are set beforehand: what is not told from its bound is not testable here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from harness.results import Results
from harness.series import Series, Stack, commonest
from harness.statistics import DEFAULT, Interval, Values, mean_interval, mean_of, shares_above

Outcome = Literal["reproduced", "not reproduced", "not testable"]
OUTCOMES: Mapping[bool | None, Outcome] = {True: "reproduced", False: "not reproduced", None: "not testable"}

VIEWS: Mapping[str, Mapping[str, str]] = {
    "signed": {"measure": "spearman", "sign": "signed"},
    "absolute": {"measure": "spearman", "sign": "absolute"},
    "up_to_sign": {"measure": "spearman", "sign": "up_to_sign"},
    "ssim": {"measure": "ssim"},
    "hog": {"measure": "hog"},
    "cosine": {"measure": "cosine"},
}
"""How two maps are compared -> the labels of the rows."""

LEVELS: Mapping[str, tuple[str, str | None]] = {
    "parameter_randomization": ("floor_shift", "ceiling_rerun"),
    "random_logit": ("floor_shift", "ceiling_rerun"),
    "label_randomization": ("floor_random", "ceiling_retrain"),
    "edge_similarity": ("floor_shift", None),
}
"""Test -> the roles of chance and of the best that can be; the latter is 1 where there is none."""

FULL: Mapping[str, Mapping[str, str | None]] = {
    "parameter_randomization": {"mode": "full", "stage": "all"},
    "random_logit": {"mode": "random", "stage": None},
    "label_randomization": {"mode": None, "stage": None},
    "edge_similarity": {"mode": None, "stage": None},
    "cosine_convergence": {"mode": None, "stage": None},
}
"""Test -> where the rows of its levels stand, and those of the test itself if nothing else is said."""

NOTHING = np.full((0, 1), np.nan)


@dataclass(frozen=True)
class Protocol:
    """One way to do a paper's tests, and to read them.

    Attributes:
        name: as in the table of claims.
        prefix: of the labels of its metrics in the study.
        above_chance: read the share of the similarity above chance and below the ceiling, with an interval over samples
            and random networks; else the similarity itself, over samples, as papers report it.
    """

    name: str
    prefix: str = ""
    above_chance: bool = True


TODAY = Protocol("today")


@dataclass(frozen=True)
class Reading:
    """A quantity with its interval.

    Attributes:
        name: what it is.
        values: numbers [samples, draws] whose mean it is.
        lacks: why there is none, if so.
        limits: its interval where it is no such mean.
    """

    name: str
    values: Values = field(default_factory=lambda: NOTHING)
    lacks: str = ""
    limits: Interval | None = None

    @property
    def interval(self) -> Interval:
        """The value with its interval."""
        return self.limits or mean_interval(self.values)

    def __str__(self) -> str:
        if self.lacks:
            return f"{self.name}: {self.lacks}"
        each = self.interval
        return f"{self.name} {each.value:.2f} [{each.low:.2f}, {each.high:.2f}]"


@dataclass(frozen=True)
class Finding:
    """What a rule says: whether the claim holds, None if that cannot be told, and the numbers behind it."""

    holds: bool | None
    said: str


@dataclass(frozen=True)
class Evidence:
    """The rows of one model, read by one protocol.

    Attributes:
        model: what to call it.
        protocol: how to read them.
        stacks: (method, label of the metric) -> its rows.
    """

    model: str
    protocol: Protocol
    stacks: Mapping[tuple[str, str], Stack]

    def labels(self, test: str) -> list[str]:
        """The labels of all entries of this metric in the study, whatever the protocol."""
        found = {label: stack for (_, label), stack in self.stacks.items()}
        return [label for label, stack in found.items() if label.partition("[")[0].endswith(test)]

    def series(self, method: str, test: str, **labels: str | None) -> list[Series]:
        """The series of a method in a test of this protocol that have these labels."""
        return self.rows(method, self.protocol.prefix + test, **labels)

    def rows(self, method: str, label: str, **labels: str | None) -> list[Series]:
        """The series of a method under one entry of the study's metrics that have these labels."""
        stack = self.stacks.get((method, label))
        scalars = stack.scalars if stack and stack.status == "done" else []
        return [each for each in scalars if all(each.labels[name] == value for name, value in labels.items())]

    def stages(self, method: str, mode: str = "top_down") -> list[str]:
        """The stages of a cascade, from the output down."""
        found = self.series(method, "parameter_randomization", mode=mode, role="test", **VIEWS["signed"])
        return [each.labels["stage"] for each in sorted(found, key=lambda each: each.labels["stage_index"])]

    def similarity(self, method: str, view: str, test: str = "parameter_randomization", **where: str | None) -> Reading:
        """The similarity of maps as it is, averaged over draws: what papers report."""
        name, values, lacks = self._found(method, view, test, where)
        return Reading(name, values if lacks else _over_draws(values), lacks)

    def left(self, method: str, view: str, test: str = "parameter_randomization", **where: str | None) -> Reading:
        """What is left of the map as the protocol reads it: see `Protocol.above_chance`.

        Args:
            method: whose maps.
            view: how they are compared, a key of `VIEWS`.
            test: the metric.
            where: labels of the rows, such as mode, stage and role, if other than those of the whole test.
        """
        name, values, lacks = self._found(method, view, test, where)
        if lacks or not self.protocol.above_chance:
            return Reading(name, values if lacks else _over_draws(values), lacks)
        (floor_role, ceiling_role), place = LEVELS[test], FULL[test]
        floors = self.series(method, test, role=floor_role, **VIEWS[view], **place)
        floor = floors[0].values if floors else NOTHING
        ceiling = np.ones((len(values), 1))
        if ceiling_role:
            ceilings = self.series(method, test, role=ceiling_role, **VIEWS[view])
            ceiling = ceilings[0].values if ceilings else NOTHING
        if len(floor) != len(values) or len(ceiling) != len(values):
            return Reading(name, NOTHING, "a level to compare with is missing")
        above = mean_of(ceiling) - mean_of(floor)
        if not above >= DEFAULT.ceiling_above_random:
            return Reading(name, NOTHING, f"nothing to lie between, the ceiling is {above:.2f} above chance")
        return Reading(name, shares_above(values, floor, ceiling))

    def _found(self, method: str, view: str, test: str, where: Mapping[str, str | None]) -> tuple[str, Values, str]:
        """Name and values of a quantity, or why there are none."""
        labels = {"role": "test", **FULL[test], **VIEWS[view], **where}
        name = f"{method} {view}" + (f" at {where['stage']}" if "stage" in where else "")
        stack = self.stacks.get((method, self.protocol.prefix + test))
        if stack is None:
            return name, NOTHING, f"no {method} with {test} in this study"
        if stack.status != "done":
            return name, NOTHING, next((s["reason"] for s in stack.states if s.get("reason")), stack.status)
        found = self.series(method, test, **labels)
        if not found:
            return name, NOTHING, f"{labels['measure']} does not apply to these maps"
        values = found[0].values
        undefined = float(np.isnan(values).mean())
        if undefined > DEFAULT.degenerate_at_most:
            return name, NOTHING, f"{undefined:.0%} undefined ({commonest(found[0].reasons)})"
        return name, values, ""


def _over_draws(values: Values) -> Float[np.ndarray, "samples 1"]:
    means = np.full((len(values), 1), np.nan)
    known = ~np.isnan(values).all(1)
    means[known, 0] = np.nanmean(values[known], 1)
    return means


@dataclass(frozen=True)
class Claim:
    """What a paper says, and when that is reproduced.

    Attributes:
        id: short, for tables.
        words: the claim.
        source: a key of references.bib, and where in it.
        rule: when it is reproduced, in words, with `{name}` in the place of each bound; set down before the run.
        check: the same as a function: `check(evidence, **tolerance)` of the evidence of one model.
        tolerance: the bounds, by name.
        figure: the file that shows it, with `{model}` in the place of the model.
    """

    id: str
    words: str
    source: str
    rule: str
    check: Callable[..., Finding]
    tolerance: Mapping[str, float] = field(default_factory=dict)
    figure: str = ""


def above(reading: Reading, bound: float) -> Finding:
    """Whether the quantity is above a bound: told only if all of its interval is on one side."""
    return _told(reading, reading.interval, bound, f"{reading}, more than {bound:g} wanted")


def below(reading: Reading, bound: float) -> Finding:
    """Whether the quantity is below a bound."""
    found = above(reading, bound)
    said = f"{reading}, less than {bound:g} wanted"
    return Finding(found.holds if found.holds is None else not found.holds, said)


def more(first: Reading, second: Reading, margin: float) -> Finding:
    """Whether one quantity is larger than another by more than a margin, compared in pairs of samples and draws."""
    said = f"{first} against {second}, {margin:g} more wanted"
    lacking = next((each for each in (first, second) if each.lacks), None)
    if lacking or first.values.shape != second.values.shape:
        return Finding(None, str(lacking) if lacking else f"{said}: of other samples or draws")
    return _told(first, mean_interval(first.values - second.values), margin, said)


def near(reading: Reading, expected: float, within: float) -> Finding:
    """Whether the quantity is within a distance of what is expected."""
    said = f"{reading}, {expected:.3f} ± {within:g} expected"
    each = reading.interval
    if reading.lacks or np.isnan(each.low):
        return Finding(None, said)
    inside = expected - within < each.low and each.high < expected + within
    outside = each.high < expected - within or each.low > expected + within
    return Finding(True if inside else False if outside else None, said)


def every(findings: Iterable[Finding]) -> Finding:
    """All of them hold; one that does not decides, then one that is not told. What decides is said first."""
    listed = sorted(findings, key=lambda each: {False: 0, None: 1, True: 2}[each.holds])
    return Finding(listed[0].holds if listed else None, "; ".join(each.said for each in listed))


def several(findings: Iterable[Finding], least: int) -> Finding:
    """At least so many of them hold."""
    listed = sorted(findings, key=lambda each: {True: 0, None: 1, False: 2}[each.holds])
    sure, possible = (sum(each.holds in among for each in listed) for among in ((True,), (True, None)))
    holds = True if sure >= least else False if possible < least else None
    return Finding(holds, "; ".join(each.said for each in listed))


def _told(reading: Reading, each: Interval, bound: float, said: str) -> Finding:
    if reading.lacks or np.isnan(each.low):
        return Finding(None, str(reading) if reading.lacks else f"{said}: too few samples for an interval")
    return Finding(True if each.low > bound else False if each.high < bound else None, said)


def evidence_of(results: Results, protocols: Sequence[Protocol]) -> list[Evidence]:
    """The evidence in a run: one for each model and protocol."""
    stacks: dict[tuple[str, int], dict[tuple[str, str], Stack]] = {key: {} for key in results.subjects}
    for stack in results.stacks():
        labels = stack.labels
        stacks[labels["model"], labels["model_seed"]][labels["method"], labels["metric"]] = stack
    return [Evidence(name, protocol, stacks[key]) for key, name in results.subjects.items() for protocol in protocols]


def judge(claims: Sequence[Claim], evidence: Sequence[Evidence]) -> pd.DataFrame:
    """One row for each claim, model and protocol: the outcome, the numbers, the rule."""
    rows: list[dict[str, Any]] = []
    for claim in claims:
        for each in evidence:
            found = claim.check(each, **claim.tolerance)
            rows.append(
                {
                    "claim": claim.id,
                    "words": claim.words,
                    "model": each.model,
                    "protocol": each.protocol.name,
                    "outcome": OUTCOMES[found.holds],
                    "numbers": found.said,
                    "rule": claim.rule.format(**claim.tolerance),
                    "source": claim.source,
                    "figure": claim.figure.format(model=each.model),
                }
            )
    return pd.DataFrame(rows)
