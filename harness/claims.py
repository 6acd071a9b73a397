"""Claims of papers, judged on the rows of a run: reproduced, not reproduced, or not testable here.

A rule is a small function of the `Evidence` of one model. It compares `Reading`s, which know their intervals, with
bounds that are set beforehand: what is not told from its bound is not testable here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.evidence import Evidence, Reading

Outcome = Literal["reproduced", "not reproduced", "not testable"]
OUTCOMES: Mapping[bool | None, Outcome] = {True: "reproduced", False: "not reproduced", None: "not testable"}


@dataclass(frozen=True)
class Finding:
    """What a rule says: whether the claim holds, None if that cannot be told, and the numbers behind it."""

    holds: bool | None
    said: str


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

    def __post_init__(self) -> None:
        """Check that the texts can be filled in, before anything is run."""
        self.rule.format(**self.tolerance)
        self.figure.format(model="")


def above(reading: Reading, bound: float) -> Finding:
    """Whether the quantity is above a bound: told only if all of its interval is on one side."""
    return _told(reading, bound, "more than")


def below(reading: Reading, bound: float) -> Finding:
    """Whether the quantity is below a bound."""
    return _told(reading, bound, "less than")


def more(first: Reading, second: Reading, margin: float) -> Finding:
    """Whether one quantity is larger than another by more than a margin, compared in pairs of samples and draws."""
    for each in (first, second):
        if each.lacks:
            return Finding(None, str(each))
    name = f"({first}) minus ({second})"
    if first.values.shape != second.values.shape:
        return Finding(None, f"{name}: of other samples or draws")
    return _told(Reading(name, first.values - second.values), margin, "more than")


def near(reading: Reading, expected: float, within: float) -> Finding:
    """Whether the quantity is within a distance of what is expected."""
    each = reading.interval
    low, high = expected - within, expected + within
    inside = low < each.low and each.high < high
    outside = each.high < low or each.low > high
    return _said(reading, f"{expected:.3f} ± {within:g}", True if inside else False if outside else None)


def every(findings: Iterable[Finding]) -> Finding:
    """All of them hold; one that does not decides, then one that is not told. What decides is said first."""
    listed = sorted(findings, key=lambda each: {False: 0, None: 1, True: 2}[each.holds])
    if not listed:
        return Finding(None, "nothing to judge: none of the methods or stages is there")
    return Finding(listed[0].holds, "; ".join(each.said for each in listed))


def several(findings: Iterable[Finding], least: int) -> Finding:
    """At least so many of them hold."""
    listed = sorted(findings, key=lambda each: {True: 0, None: 1, False: 2}[each.holds])
    sure, possible = (sum(each.holds in among for each in listed) for among in ((True,), (True, None)))
    holds = True if sure >= least else False if possible < least else None
    return Finding(holds, "; ".join(each.said for each in listed))


def _told(reading: Reading, bound: float, side: Literal["more than", "less than"]) -> Finding:
    each = reading.interval
    higher = True if each.low > bound else False if each.high < bound else None
    return _said(reading, f"{side} {bound:g}", higher if higher is None or side == "more than" else not higher)


def _said(reading: Reading, wanted: str, holds: bool | None) -> Finding:
    if reading.lacks:
        return Finding(None, str(reading))
    if np.isnan(reading.interval.low):
        return Finding(None, f"{reading}: too few samples for an interval")
    return Finding(holds, f"{reading}, {wanted} wanted")


def judge(claims: Sequence[Claim], evidence: Sequence[Evidence]) -> pd.DataFrame:
    """One row for each claim, model and protocol: the outcome, the numbers, the rule."""
    rows: list[dict[str, Any]] = []
    for claim in claims:
        for each in evidence:
            try:
                found = claim.check(each, **claim.tolerance)
            except Exception as error:
                error.add_note(f"in claim {claim.id} on {each.model}")
                raise
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
