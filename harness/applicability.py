"""Which methods apply to a model, which refuse it and why, and how well those that claim completeness keep it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.case import Case
from harness.catalogue import METHODS, METRICS
from harness.plan import Group, lacking, plan
from harness.remarks import in_words
from harness.study import choose
from harness.subjects import Subject
from harness.training import Progress
from harness.types import NotApplicableError

Status = Literal["works", "refused", "fails"]
COLUMNS = ("method", "status", "reason", "claim", "residual", "passes", "remarks")
FEW = 2
SAMPLING = 64
"""What is drawn of methods that draw more than this by default: whether they apply does not depend on it."""


def applicability(subject: Subject, *, chunk: int, progress: Progress, methods: Sequence[str] = ()) -> pd.DataFrame:
    """One row for each method: it works, is refused with a reason, or fails with an error.

    `residual` is the median relative residual of `completeness` on these samples, for methods that claim it. `passes`
    is what a map of one sample costs with the default options, in forward passes, a backward pass counting twice.
    `remarks` is what the method says of its maps, such as the layer that it took.

    Args:
        subject: a model with a few samples.
        chunk: how many samples go through the model at once.
        progress: told before each method.
        methods: names; all that are not controls by default.
    """
    names = list(methods) or [name for name, entry in METHODS.items() if entry.family != "control"]
    rows = []
    entries = [{"method": name, **({"samples": SAMPLING} if _drawn(name) > SAMPLING else {})} for name in names]
    for position, group in enumerate(plan([subject], choose(METHODS, entries, "methods"), [], 0)):
        progress("methods", position / len(names), group.explainer.method.name)
        rows.append(_row(group, chunk))
    progress("methods", 1.0, "")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _drawn(name: str) -> int:
    """The default of the option `samples`, 0 where there is none."""
    parameter = METHODS[name].options.get("samples")
    return 0 if parameter is None else int(parameter.default)


def _row(group: Group, chunk: int) -> dict[str, Any]:
    method, claim = group.explainer.method, group.explainer.conserves
    row: dict[str, Any] = {"method": method.name, "claim": claim or "", "residual": math.nan, "remarks": ""}

    def use(case: Case) -> None:
        cost = case.passes.forward + 2 * case.passes.backward
        row["passes"] = round(cost / len(case.samples) * max(_drawn(method.name) / SAMPLING, 1.0))
        row["remarks"] = "; ".join(f"{name}: {text}" for name, text in in_words(case.remarks).items())
        if claim:
            row["residual"] = _residual(case)

    # A median needs all samples; whether a method applies, one or two show as well.
    tried = group if claim else replace(group, subject=group.subject.first(FEW))
    row["status"], row["reason"] = attempt(tried, use, chunk=chunk)
    return row


def attempt(group: Group, use: Callable[[Case], None], *, chunk: int) -> tuple[Status, str]:
    """Compute the maps of a group and use them: whether that works, and if not, why.

    Args:
        group: a method and the samples.
        use: gets the case with finite maps.
        chunk: how many samples go through the model at once.
    """
    name = group.explainer.method.name
    status: Status = "works"
    reason = lacking(group.subject, group.explainer)
    try:
        if reason:
            status = "refused"
        else:
            case = group.case(seed=0, chunk=chunk)
            if bool(case.maps.isfinite().all()):
                use(case)
            else:
                status, reason = "fails", "the maps hold values that are not finite"
    except NotApplicableError as error:
        status, reason = "refused", str(error).removesuffix(", which the model puts between input and output")
    except Exception as error:  # whatever it is, it is what stands in the way
        status, reason = "fails", f"{type(error).__name__}: {error}".partition("\n")[0]
    return status, reason.removeprefix(f"{name}: ").removeprefix(f"{name} ")


def applicability_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Methods x models: works, with the residual where there is a claim, or the reason why not."""
    wide: dict[str, dict[str, str]] = {}
    for model, frame in tables.items():
        for _, row in frame.iterrows():
            text = str(row["status"])
            if row["status"] == "works":
                text += f", residual {row['residual']:.1%}" if row["claim"] else ""
                text += f", {row['remarks']}" if str(row["remarks"]).startswith("layer") else ""
            else:
                text += f": {row['reason']}"
            wide.setdefault(str(row["method"]), {"method": str(row["method"])})[model] = text
    return pd.DataFrame(list(wide.values()))


def _residual(case: Case) -> float:
    scores = METRICS["completeness"].function(case, **METRICS["completeness"].resolve({}))
    values = next(score.values for score in scores if score.measure == "relative_residual")
    defined = values[~values.isnan()].cpu().numpy()
    return float(np.median(defined)) if len(defined) else math.nan
