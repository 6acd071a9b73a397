"""The outcome of a run in plain words: what held, what did not, what to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.glance import GROUP
from harness.learnt import KINDS, TEST, WRONG_SIDE
from harness.marks import DESCRIBES, FAILED, PASSED
from harness.series import where
from harness.statistics import share_interval
from harness.verdicts import in_error

if TYPE_CHECKING:
    from harness.results import Results

COMPLETE_WITHIN = 0.01
SUBJECT = ["model", "model_seed"]
WHO = [*SUBJECT, "method"]

STATEMENTS = {
    "parameter_randomization": (
        "the map depends on what the network has learnt",
        "the map survives the randomization of the network",
        {
            "absolute": "passes signed, but fails as an absolute map (the input shows through)",
            "up_to_sign": "passes by its sign alone (the shape of the map survives)",
        },
    ),
    "random_logit": (
        "the map depends on the class",
        "the map stays whatever class is explained",
        {
            "absolute": "fails to tell classes apart as an absolute map",
            "up_to_sign": "tells classes apart by the sign of the whole map alone",
        },
    ),
}
"""Test -> what a PASS says, what a FAIL says, and what it says if the signed map passes but not another view."""

OUTCOMES = {
    "relative_residual": ("adds up to within 1 %", "does not add up to within 1 %", ""),
    "symmetric_relevance_gain": (
        "removing what it calls relevant costs more than removing the rest",
        "removing what it calls relevant costs less than removing the rest",
        "gain from flipping not told from chance",
    ),
    "lift": ("finds the truth better than chance", "finds the truth worse than chance", ""),
}
"""Headline -> what is said of a method where it is good, where it is bad, and where nobody knows (empty: nothing)."""

ON_EVERY_MODEL = ("lift",)
"""Headlines of which only what holds on every model is said, because tasks differ and a figure shows them all."""

LEARNT = "what it shows is not there in networks that have learnt nothing"
"""What a PASS of an introspection says."""

SHOWN = {
    TEST: "what introspections show beside networks that have learnt nothing",
    "parameter_randomization": "the cascade",
    "symmetric_relevance_gain": "the flipping curves",
    "loss_beyond_random": "the accuracy of networks that were trained again",
}
"""Test or headline -> what is drawn of it or stands in a table, and is looked at where nothing else asks for it."""

Subjects = Mapping[tuple[str, int], str]


def conclusion(results: "Results") -> dict[str, str]:
    """The statements of a run, each kind in one line."""
    return {title: "; ".join(said) for title, said in statements(results).items()}


def statements(results: "Results") -> dict[str, list[str]]:
    """What is said of a run as `held`, `did not hold` and `look at`; never nothing.

    Of several models a method holds only if it does on each of them; the first kind names no others. Controls count
    in the third kind only, and only when they come out wrong: the outcome is known beforehand.
    """
    judged = _without_controls(results, results.table("verdicts"))
    long = _without_controls(results, results.table("headlines"))
    networks = results.table("global")
    account = _Account(results.subjects, look=problems(results))
    if len(judged):
        _say_of_maps(account, judged, results.thresholds.fail_above)
    if len(networks):
        _say_of_networks(account, networks)
    _say_of_headlines(account, long, results)
    _say_of_metrics(account, long, results)
    tests = [frame["test"] for frame in (judged, networks) if len(frame)]
    there = {name for names in (long["measure"], *tests) for name in names}
    shown = [what for name, what in SHOWN.items() if name in there]
    return {
        "held": _said(account.held, "nothing was tested that can hold"),
        "did not hold": _said(account.failed, "nothing that was tested"),
        "look at": _said(
            [*account.look, *account.partly, in_error(results.table("verdicts"))],
            " and ".join(shown) or "the leaderboard",
        ),
    }


@dataclass
class _Account:
    """What has been said so far: what holds on every model, on some, or on none, and what is doubtful."""

    subjects: Subjects
    held: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    look: list[str] = field(default_factory=list)

    def hold(self, statement: str, rows: pd.DataFrame, or_on_some: bool = True) -> None:
        everywhere = rows["method"].isin(_everywhere(self.subjects, rows))
        self.held.append(_names(self.subjects, statement, rows[everywhere]))
        if or_on_some:
            self.partly.append(_names(self.subjects, f"on some models only: {statement}", rows[~everywhere]))

    def fail(self, statement: str, rows: pd.DataFrame) -> None:
        self.failed.append(_names(self.subjects, statement, rows))

    def look_at(self, statement: str, rows: pd.DataFrame) -> None:
        self.look.append(_names(self.subjects, statement, rows))

    def doubt(self, test: str, rows: pd.DataFrame) -> None:
        """Say why verdicts of a test say nothing, or not enough."""
        for word in ("INVALID", "INCONCLUSIVE"):
            for reason, some in rows[rows["verdict"] == word].groupby("reason", sort=False):
                self.look_at(f"{word.lower()} by {test}, {reason}", some)


def _say_of_maps(account: _Account, judged: pd.DataFrame, fail_above: float) -> None:
    """Say what the verdicts on maps are."""
    for test, (good, bad, hidden) in STATEMENTS.items():
        rows = judged[judged["test"] == test]
        signed = _view(rows, "signed")
        passed = signed[signed["verdict"] == "PASS"]
        account.hold(good, passed)
        account.fail(bad, signed[signed["verdict"] == "FAIL"])
        account.doubt(test, signed)
        for sign, hides in hidden.items():
            others = _view(rows, sign)
            account.look_at(hides, others[(others["verdict"] == "FAIL") & _among(others, passed)])
    partner = _view(judged[judged["test"] == "label_randomization"], "signed")
    account.look_at(
        "nearly the same for a network that has learnt permuted labels", partner[partner["low"] > fail_above]
    )


def _say_of_networks(account: _Account, networks: pd.DataFrame) -> None:
    """Say what the verdicts on introspections are, by the measures of the whole network."""
    whole = networks[networks["stage"].isna()]
    whole = whole.assign(method=whole["method"] + " (" + whole["measure"] + ")")
    account.hold(LEARNT, whole[whole["verdict"] == "PASS"])
    alike = whole[whole["verdict"] == "FAIL"]
    for said, some in alike.groupby(alike["reason"].map(_same), sort=False):
        account.fail(str(said), some)
    account.doubt(TEST, whole)


def _say_of_headlines(account: _Account, long: pd.DataFrame, results: "Results") -> None:
    """Say which headlines are good and which are bad."""
    for measure, (good, bad, unknown) in OUTCOMES.items():
        rows = long[(long["measure"] == measure) & long["value"].notna()]
        rows = _by_hits(results, rows) if measure == "lift" else rows
        residual = measure == "relative_residual"
        fine = rows["value"] <= COMPLETE_WITHIN if residual else rows["low"] > 0
        wrong = ~fine if residual else rows["high"] < 0
        outcome = pd.Series(np.select([fine, wrong], [good, bad], unknown), rows.index)
        # What comes out differently under several fills, or by several metrics, is said of each of them.
        outcomes = rows.assign(outcome=outcome).groupby(WHO, observed=True)["outcome"].transform("nunique")
        said = outcome.where(outcomes == 1, outcome + " (" + rows["metric"].astype(str) + ")")
        for statement, some in rows[outcome != ""].groupby(said[outcome != ""], sort=False):
            if str(statement).startswith(good):
                account.hold(str(statement), some, measure not in ON_EVERY_MODEL)
            elif str(statement).startswith(bad):
                account.fail(str(statement), some)
            else:
                account.look_at(str(statement), some)


def _say_of_metrics(account: _Account, long: pd.DataFrame, results: "Results") -> None:
    """Say which metrics grade nothing, failed their exam, or have no number for a model."""
    marks = set(long.loc[~long["method"].isin(results.introspections), "exam"])
    if DESCRIBES in marks and not any(mark.startswith((PASSED, FAILED)) for mark in marks):
        account.look.append(
            "descriptors say nothing of quality: set a metric of faithfulness beside them, such as pixel_flipping"
        )
    for metric, mark in dict(long[long["exam"].str.startswith(FAILED)][["metric", "exam"]].to_numpy()).items():
        account.look.append(f"{metric} {mark.replace(FAILED, f'{FAILED} its exam', 1)}")
    lost = long[long["value"].isna() & long["reason"].astype(str).str.startswith("invalid: ")]
    for reason, model, seed in dict.fromkeys(lost[["reason", *SUBJECT]].itertuples(index=False, name=None)):
        account.look.append(f"{reason} ({account.subjects[model, seed]})" if len(account.subjects) > 1 else reason)


def _by_hits(results: "Results", rows: pd.DataFrame) -> pd.DataFrame:
    """Lifts over chance, with exact limits where every score is a hit or a miss, as in the pointing game.

    Student's interval has no width where all are misses, and so little truth is often missed by chance. Where the
    level of chance differs between samples, the number of hits is less spread than at its mean, in both tails
    (`hoeffding1956distribution`), so that such limits are on the safe side.
    """
    rows = rows.set_index(GROUP)
    for stack in results.stacks() if len(rows) else ():
        key = tuple(stack.labels[name] for name in GROUP)
        lift = stack.headline if key in rows.index else None
        chance = where(stack.scalars, role="test", measure="chance") if lift else []
        if lift is None or not chance:
            continue
        known = ~np.isnan(lift.values)
        level = chance[0].values[known]
        hits = lift.values[known] * (1 - level) + level
        if np.allclose(hits, hits.round(), rtol=0, atol=1e-9):
            share = share_interval(hits.round())
            rows.loc[key, ["low", "high"]] = share.low - level.mean(), share.high - level.mean()
    return rows.reset_index()


def problems(results: "Results") -> list[str]:
    """What makes the numbers of this run doubtful: failed or missing cells, and controls that came out wrong."""
    found = []
    for state in ("failed", "missing"):
        if count := results.outcomes[state].sum():
            found.append(f"{count} {state} cells, see the table of failures")
    judged = results.table("verdicts")
    if not judged.empty:
        signed = _view(judged, "signed")
        # Too few draws leave a control undecided; that is no sign of a broken test.
        right = (signed["verdict"] == signed["expected"]) | (signed["verdict"] == "INCONCLUSIVE")
        for _, row in signed[(signed["expected"] != "") & ~right].iterrows():
            name = _on(results.subjects, row["model"], row["model_seed"], row["method"])
            found.append(f"BROKEN CONTROL: {name} is {row['verdict']}, must be {row['expected']} ({row['reason']})")
    return found


def _same(reason: str) -> str:
    """What the reason of a FAIL says of networks that have learnt nothing, without numbers."""
    kinds = " and ".join(kind for kind in KINDS.values() if kind in reason)
    return f"{WRONG_SIDE if reason.startswith(WRONG_SIDE) else 'it shows the same of'} {kinds}"


def _view(judged: pd.DataFrame, sign: str) -> pd.DataFrame:
    return judged[(judged["measure"] == "spearman") & (judged["sign"] == sign)]


def _without_controls(results: "Results", frame: pd.DataFrame) -> pd.DataFrame:
    outcomes = results.outcomes
    controls = outcomes.loc[outcomes["method_family"] == "control", "method"]
    return frame if frame.empty else frame[~frame["method"].isin(controls)]


def _among(rows: pd.DataFrame, others: pd.DataFrame) -> np.ndarray:
    """Whether each row is about a model and method that is among the others."""
    return pd.MultiIndex.from_frame(rows[WHO]).isin(pd.MultiIndex.from_frame(others[WHO]))


def _everywhere(subjects: Subjects, rows: pd.DataFrame) -> list[str]:
    """The methods that are named on every model of the run."""
    counts = rows[WHO].drop_duplicates()["method"].value_counts()
    return list(counts.index[counts == len(subjects)])


def _names(subjects: Subjects, statement: str, rows: pd.DataFrame) -> str:
    """The statement with the methods it is about: by name if on every model, else with the model."""
    everywhere = _everywhere(subjects, rows)
    names = [
        method if method in everywhere else _on(subjects, model, seed, method)
        for model, seed, method in rows[WHO].itertuples(index=False, name=None)
    ]
    return f"{statement}: {', '.join(dict.fromkeys(names))}" if names else ""


def _on(subjects: Subjects, model: str, seed: int, method: str) -> str:
    return f"{method} ({subjects[model, seed]})" if len(subjects) > 1 else method


def _said(parts: Sequence[str], otherwise: str) -> list[str]:
    return [part for part in parts if part] or [otherwise]
