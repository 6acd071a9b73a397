"""The outcome of a run in three lines of plain words: what held, what did not, what to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from harness.results import Results

COMPLETE_WITHIN = 0.01


def conclusion(results: "Results") -> dict[str, str]:
    """`held`, `did not hold` and `look at`, each one line.

    Controls count in the third line only, and only when they come out wrong: the outcome is known beforehand.
    """
    judged = _without_controls(results, results.table("verdicts"))
    long = _without_controls(results, results.table("headlines"))
    held, failed, look = [], [], problems(results)
    if not judged.empty:
        signed, absolute = _view(judged, "signed"), _view(judged, "absolute")
        passed = signed[signed["verdict"] == "PASS"]
        held.append(_names("the map depends on what the network has learnt", passed))
        failed.append(_names("the map survives the randomization of the network", signed[signed["verdict"] == "FAIL"]))
        for word in ("INVALID", "INCONCLUSIVE"):
            for reason, rows in signed[signed["verdict"] == word].groupby("reason", sort=False):
                look.append(_names(f"{word.lower()}, {reason}", rows))
        hidden = absolute[(absolute["verdict"] == "FAIL") & absolute["method"].isin(passed["method"])]
        look.append(_names("passes signed, but fails as an absolute map (the input shows through)", hidden))
    for measure, good, bad in (
        ("relative_residual", "adds up to within 1 %", "does not add up to within 1 %"),
        (
            "symmetric_relevance_gain",
            "removing what it calls relevant costs more than removing the rest",
            "removing what it calls relevant costs less than removing the rest",
        ),
    ):
        rows = long[(long["measure"] == measure) & long["value"].notna()]
        residual = measure == "relative_residual"
        fine = rows["value"] <= COMPLETE_WITHIN if residual else rows["low"] > 0
        wrong = ~fine if residual else rows["high"] < 0
        # With several fills a method holds only if it does under each of them.
        held.append(_names(good, rows[~rows["method"].isin(rows[~fine]["method"])]))
        failed.append(_names(bad, rows[wrong]))
        look.append(_names("gain from flipping not told from chance", rows[~fine & ~wrong]))
    return {
        "held": _line(held, "nothing was tested that can hold"),
        "did not hold": _line(failed, "nothing that was tested"),
        "look at": _line(look, "the cascade picture and the flipping curves"),
    }


def problems(results: "Results") -> list[str]:
    """What makes the numbers of this run doubtful: failed or missing cells, and controls that came out wrong."""
    found = []
    states = results.cells["status"].value_counts()
    for state in ("failed", "missing"):
        if states.get(state, 0):
            found.append(f"{states[state]} {state} cells, see the table of failures")
    judged = results.table("verdicts")
    if not judged.empty:
        signed = _view(judged, "signed")
        # Too few draws leave a control undecided; that is no sign of a broken test.
        right = (signed["verdict"] == signed["expected"]) | (signed["verdict"] == "INCONCLUSIVE")
        wrong = signed[(signed["expected"] != "") & ~right]
        found += [
            f"BROKEN CONTROL: {row['method']} is {row['verdict']}, must be {row['expected']} ({row['reason']})"
            for _, row in wrong.iterrows()
        ]
    return found


def _view(judged: pd.DataFrame, sign: str) -> pd.DataFrame:
    return judged[(judged["measure"] == "spearman") & (judged["sign"] == sign)]


def _without_controls(results: "Results", frame: pd.DataFrame) -> pd.DataFrame:
    cells = results.cells
    if frame.empty or "method_family" not in cells:
        return frame
    controls = set(cells.loc[cells["method_family"] == "control", "method"])
    return frame[~frame["method"].isin(controls)]


def _names(statement: str, rows: pd.DataFrame) -> str:
    names = list(dict.fromkeys(rows["method"]))
    return f"{statement}: {', '.join(names)}" if names else ""


def _line(parts: Sequence[str], otherwise: str) -> str:
    return "; ".join(part for part in parts if part) or otherwise
