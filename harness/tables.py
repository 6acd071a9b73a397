"""Tables: views of the rows. Nothing here computes a score, and nothing needs a model."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from harness.agreement import agreement, fills, setups
from harness.comparisons import DEFAULT_COMPARING, Comparing, comparisons
from harness.glance import GROUP, INDEX, below_marks, glance, marks_of, one_word
from harness.headlines import headline
from harness.learnt import learnt, partly
from harness.marks import DESCRIBES, Marks, published
from harness.rankings import across_models, classes, families, rankings
from harness.series import FIELDS, UNFINISHED, Stack, commonest
from harness.statistics import DEFAULT, Thresholds, mean_interval, median_interval
from harness.text import interval_text
from harness.verdicts import NOTHING, Row, cascade, curve, sensitivity, verdicts

HEADLINE = [*GROUP, "status", "measure", "statistic", "value", "low", "high", "undefined", "reason", "exam"]
COSTS = ("maps_forward", "maps_backward", "maps_seconds", "forward", "backward", "seconds")


def summary(stack: Stack) -> Iterator[Row]:
    """One row for each number that is not a point of a curve: mean with its interval, median, what is undefined."""
    for series in stack.scalars:
        values = series.values
        yield {
            **stack.labels,
            **{name: series.labels[name] for name in FIELDS if name != "step"},
            **asdict(mean_interval(values)),
            "median": float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan,
            "samples": values.shape[0],
            "draws": values.shape[1],
            "undefined": int(np.isnan(values).sum()),
            "reason": commonest(series.reasons),
        }


def headlines(stack: Stack) -> Iterator[Row]:
    """One row for each model, method and metric: the metric's headline with its interval, its status and its mark."""
    status = stack.status
    row = {**stack.labels, "status": status}
    if status == "done":
        info = stack.states[0]
        found = stack.headline
        values, reasons = (found.values, found.reasons) if found else (NOTHING, Counter[str]())
        median = info["summary_statistic"] == "median"
        row |= {"measure": info["headline"], "statistic": info["summary_statistic"]}
        row |= asdict(median_interval(values.mean(1)) if median else mean_interval(values))
        reason = commonest(reasons) if found else f"{info['headline']} is not among the measures"
        row |= {"undefined": int(np.isnan(values).sum()), "reason": reason}
        row |= {name: info[f"metric_{name}"] for name in ("function", "version")}
        row |= {"direction": info["direction"] or "", "fill": info.get("metric_options", {}).get("fill", "")}
    elif status == "not_applicable":
        row["reason"] = commonest(Counter(s["reason"] for s in stack.states if s["status"] == status))
    elif status == "failed":
        row["reason"] = status
    yield row


def cost(stack: Stack) -> Iterator[Row]:
    """Sample-passes and seconds of each method's maps and of each metric, summed over blocks; remarks on the maps."""
    done = [state for state in stack.states if state["status"] == "done"]
    if done:
        said = [f"{name}: {text}" for state in done for name, text in state.get("remarks", {}).items()]
        costs = {name: sum(state[name] for state in done) for name in COSTS}
        yield {**stack.labels, **costs, "remarks": "; ".join(dict.fromkeys(said))}


def outcomes(stack: Stack) -> Iterator[Row]:
    """The method's family, and how many cells came out how. Not written: `Results.outcomes`."""
    counts = Counter(state["status"] for state in stack.states)
    family = next((state["method_family"] for state in stack.states if "method_family" in state), "")
    kinds = ("done", "not_applicable", *UNFINISHED)
    yield {**stack.labels, "method_family": family, **{kind: counts[kind] for kind in kinds}}


def leaderboard(long: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Methods x metrics, for reading: the headline with its interval, and the verdict of the randomization test.

    Rows are not ordered by quality: no single number says which method is best. The first one says how each metric did
    in its exam (`harness.exam`). Metrics that only describe maps stand behind those that grade them.

    Args:
        long: the table of headlines.
        judged: the verdicts that stand for tests, from `harness.glance.one_word`.
    """
    if long.empty:
        return long
    words = {tuple(v[GROUP]): v["verdict"] for _, v in judged.iterrows()}
    text = [" ".join(filter(None, [_cell(row), words.get(tuple(row[GROUP]), "")])) for _, row in long.iterrows()]
    wide = long.assign(text=text).pivot_table(index=INDEX, columns="metric", values="text", aggfunc="first", sort=False)
    marks = marks_of(long)
    columns = sorted(wide.columns, key=lambda metric: marks.get(metric) == DESCRIBES)
    return below_marks(wide, marks).reindex(columns=[*INDEX, *columns]).rename_axis(columns=None)


def stages(long: pd.DataFrame) -> pd.DataFrame:
    """Methods x stages, for reading: the signed rows of the cascade, `long`, with a column for each stage."""
    if long.empty:
        return long
    long = long[long["sign"] == "signed"]
    long = long.assign(text=[interval_text(row, ".2f") for _, row in long.iterrows()])
    wide = long.pivot_table(index=[*GROUP, "mode"], columns="stage", values="text", aggfunc="first", sort=False)
    in_order = long[long["mode"] == long["mode"].iloc[0]].sort_values("stage_index")["stage"]
    return wide[list(in_order.unique())].reset_index().rename_axis(columns=None)


ROWS: dict[str, Callable[[Stack], Iterator[Row]]] = {
    "headlines": headlines,
    "summary": summary,
    "partly_random": partly,
    "cost": cost,
    "outcomes": outcomes,
    "setups": setups,
    "held": headline,
}
"""What a stack adds to a table."""

HELD = ("setups", "held")
"""What tables are made of and is none itself."""

TABLES = (
    "glance",
    "leaderboard",
    "headlines",
    "verdicts",
    "thresholds",
    "sensitivity",
    "cascade",
    "stages",
    "global",
    "partly_random",
    "comparisons",
    "rankings",
    "families",
    "left_out",
    "across_models",
    "classes",
    "agreement",
    "fills",
    "summary",
    "cost",
)


def build(
    stacks: Iterable[Stack],
    thresholds: Thresholds = DEFAULT,
    marks: Marks | None = None,
    comparing: Comparing = DEFAULT_COMPARING,
) -> dict[str, pd.DataFrame]:
    """Every table in one pass: a stack is read, gives its rows to each table, and is forgotten."""
    rows: dict[str, list[Row]] = {name: [] for name in (*ROWS, "verdicts", "global", "cascade")}
    for stack in stacks:
        for name, rows_of_stack in ROWS.items():
            rows[name] += rows_of_stack(stack)
        rows["verdicts"] += verdicts(stack, thresholds)
        rows["global"] += learnt(stack, thresholds)
        rows["cascade"] += cascade(stack, thresholds)
    frames = {name: pd.DataFrame(found) for name, found in rows.items() if name not in HELD}
    frames["agreement"], frames["fills"] = agreement(rows["setups"]), fills(rows["setups"])
    frames["headlines"] = _marked(frames["headlines"], marks or published()).reindex(columns=HEADLINE)
    held = [row["headline"] for row in rows["held"]]
    frames["comparisons"], frames["rankings"] = comparisons(held, comparing), rankings(held)
    frames["families"], frames["left_out"] = families(held)
    frames["across_models"], frames["classes"] = across_models(held), classes(held)
    judged = one_word(frames["verdicts"], frames["global"])
    frames["glance"] = glance(frames["headlines"], judged, frames["rankings"], frames["cost"])
    frames["leaderboard"] = leaderboard(frames["headlines"], judged)
    frames["thresholds"] = curve(frames["verdicts"], thresholds)
    frames["sensitivity"] = sensitivity(frames["cascade"], thresholds)
    frames["stages"] = stages(frames["cascade"])
    return frames


def _marked(frame: pd.DataFrame, marks: Marks) -> pd.DataFrame:
    """The headlines with the mark of each metric; nothing where no number tells which version it is."""
    if frame.empty or "function" not in frame:
        return frame.assign(exam="")
    told = [
        "" if pd.isna(function) else marks.of_metric(function, int(version), direction, fill)
        for function, version, direction, fill in frame[["function", "version", "direction", "fill"]].itertuples(
            index=False
        )
    ]
    return frame.assign(exam=told)


def _cell(row: "pd.Series[Any]") -> str:
    if row["status"] == "not_applicable":
        return "n/a"
    if row["status"] != "done":
        return str(row["status"])
    if str(row["reason"]).startswith("invalid") and np.isnan(row["value"]):
        return "invalid"
    return interval_text(row, ".2g")
