"""Which methods apply to a model, which refuse it and why, and how well those that claim completeness keep it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.case import Case
from harness.catalogue import METHODS, METRICS
from harness.plan import lacking, plan
from harness.study import choose
from harness.subjects import Subject
from harness.training import Progress
from harness.types import NotApplicableError

COLUMNS = ("method", "status", "reason", "claim", "residual")


def applicability(subject: Subject, *, chunk: int, progress: Progress, methods: Sequence[str] = ()) -> pd.DataFrame:
    """One row for each method: it works, is refused with a reason, or fails with an error.

    `residual` is the median relative residual of `completeness` on these samples, for methods that claim it.

    Args:
        subject: a model with a few samples.
        chunk: how many samples go through the model at once.
        progress: told before each method.
        methods: names; all that are not controls by default.
    """
    names = list(methods) or [name for name, entry in METHODS.items() if entry.family != "control"]
    rows = []
    for position, group in enumerate(plan([subject], choose(METHODS, names, "methods"), [], 0)):
        method, claim = group.explainer.method, group.explainer.conserves
        progress("methods", position / len(names), method.name)
        row: dict[str, Any] = {"method": method.name, "claim": claim or "", "residual": math.nan}
        status, reason = "works", lacking(subject, group.explainer)
        try:
            case = group.case(seed=0, chunk=chunk)
            if reason:
                status = "refused"
            elif not bool(case.maps.isfinite().all()):
                status, reason = "fails", "the maps hold values that are not finite"
            elif claim:
                row["residual"] = _residual(case)
        except NotApplicableError as error:
            status, reason = "refused", str(error).removesuffix(", which the model puts between input and output")
        except Exception as error:  # whatever it is, it is what stands in the way
            status, reason = "fails", f"{type(error).__name__}: {error}".partition("\n")[0]
        row |= {"status": status, "reason": reason.removeprefix(f"{method.name}: ").removeprefix(f"{method.name} ")}
        rows.append(row)
    progress("methods", 1.0, "")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def applicability_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Methods x models: works, with the residual where there is a claim, or the reason why not."""
    wide: dict[str, dict[str, str]] = {}
    for model, frame in tables.items():
        for _, row in frame.iterrows():
            text = str(row["status"])
            if row["status"] == "works" and row["claim"]:
                text = f"works, residual {row['residual']:.1%}"
            elif row["status"] != "works":
                text = f"{row['status']}: {row['reason']}"
            wide.setdefault(str(row["method"]), {"method": str(row["method"])})[model] = text
    return pd.DataFrame(list(wide.values()))


def _residual(case: Case) -> float:
    scores = METRICS["completeness"].function(case, **METRICS["completeness"].resolve({}))
    values = next(score.values for score in scores if score.measure == "relative_residual")
    defined = values[~values.isnan()].cpu().numpy()
    return float(np.median(defined)) if len(defined) else math.nan
