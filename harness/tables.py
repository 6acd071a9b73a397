"""Tables: views of the rows. Nothing here computes a score, and nothing needs a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.statistics import Interval, mean_interval, median_interval, survival

if TYPE_CHECKING:
    from harness.results import Results

GROUP = [
    "model",
    "method",
    "metric",
    "measure",
    "channels",
    "sign",
    "normalization",
    "role",
    "mode",
    "stage_index",
    "stage",
]


def summary(results: "Results") -> pd.DataFrame:
    """One row for each number that is not a point of a curve: mean with its interval, median, what is undefined."""
    rows = []
    for labels, group in _groups(results.scalars, GROUP):
        values = matrix(group)
        rows.append(
            {
                **labels,
                **_columns(mean_interval(values)),
                "median": float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan,
                "samples": values.shape[0],
                "draws": values.shape[1],
                "undefined": int(np.isnan(values).sum()),
                "reason": _commonest(group["reason"]),
            }
        )
    return pd.DataFrame(rows)


def headlines(results: "Results") -> pd.DataFrame:
    """One row for each model, method and metric: the metric's headline with its interval, and its status."""
    records, rows = results.scalars, []
    records = records[(records["role"] == "test") & (records["mode"].isna() | (records["mode"] == "full"))]
    by_cell = dict(list(records.groupby(["model", "method", "metric"], observed=True)))
    for labels, cells in _groups(results.cells, ["model", "method", "metric"]):
        status = next((s for s in ("failed", "missing", "not_applicable") if s in set(cells["status"])), "done")
        row: dict[str, Any] = {**labels, "status": status}
        if status == "done":
            info = cells.iloc[0]
            group = by_cell.get(tuple(labels.values()), records.iloc[:0])
            group = group[group["measure"] == info["headline"]]
            group = group[group["sign"] == "signed"] if (group["sign"] == "signed").any() else group
            values = matrix(group)
            median = info["summary_statistic"] == "median"
            row |= {"measure": info["headline"], "statistic": info["summary_statistic"]}
            row |= _columns(median_interval(values.mean(1)) if median else mean_interval(values))
            row |= {"undefined": int(np.isnan(values).sum()), "reason": _commonest(group["reason"])}
        elif status != "missing":
            row["reason"] = _commonest(cells["reason" if status == "not_applicable" else "status"])
        rows.append(row)
    columns = [
        "model",
        "method",
        "metric",
        "status",
        "measure",
        "statistic",
        "value",
        "low",
        "high",
        "undefined",
        "reason",
    ]
    return pd.DataFrame(rows).reindex(columns=columns)


def verdicts(results: "Results") -> pd.DataFrame:
    """One row for each model, method and randomization test: what survives full randomization, and the verdict."""
    records = results.scalars
    rows: list[dict[str, Any]] = []
    cells = results.cells
    if "metric_function" not in cells:
        return pd.DataFrame(rows)
    tested = cells[(cells["metric_function"] == "parameter_randomization") & (cells["status"] == "done")]
    unfinished = cells[~cells["status"].isin(["done", "not_applicable"])]
    partial = set(unfinished[["model", "method", "metric"]].itertuples(index=False, name=None))
    records = records[records["metric"].isin(set(tested["metric"]))]
    expected = {
        (cell["model"], cell["method"]): (cell["method_expected"] or {}).get("parameter_randomization", "")
        for _, cell in tested.iterrows()
    }
    for labels, group in _groups(records, ["model", "method", "metric"]):
        if tuple(labels.values()) in partial:
            continue
        full = group[group["mode"] == "full"]
        output = full.loc[full["measure"] == "output_pearson", "value"].mean()
        similar = group[group["measure"].isin(["spearman", "ssim"])]
        for view, part in _groups(similar, ["measure", "channels", "sign", "normalization"]):
            part = part[part["mode"] != "top_down"]
            by_role = {
                r: matrix(part[part["role"] == r]) for r in ("test", "floor_shift", "floor_random", "ceiling_rerun")
            }
            result = survival(
                by_role["test"],
                by_role["floor_shift"],
                by_role["floor_random"],
                by_role["ceiling_rerun"],
                float(output),
            )
            rows.append(
                {
                    **labels,
                    **view,
                    "verdict": result.verdict,
                    "expected": expected[labels["model"], labels["method"]],
                    "survival": result.survival.value,
                    "low": result.survival.low,
                    "high": result.survival.high,
                    "similarity": result.similarity,
                    "floor_shift": result.floor_shift,
                    "floor_random": result.floor_random,
                    "ceiling_rerun": result.ceiling,
                    "reason": result.reason,
                }
            )
    return pd.DataFrame(rows)


def cascade(results: "Results") -> pd.DataFrame:
    """Signed Spearman correlation with the trained network's map, stage by stage from the output down."""
    records = results.scalars
    records = records[
        (records["mode"] == "top_down") & (records["measure"] == "spearman") & (records["sign"] == "signed")
    ]
    rows = []
    for labels, group in _groups(records, ["model", "method", "metric", "stage_index", "stage"]):
        rows.append({**labels, **_columns(mean_interval(matrix(group)))})
    return pd.DataFrame(rows)


def cost(results: "Results") -> pd.DataFrame:
    """Sample-passes and seconds of each method's maps and of each metric, summed over blocks."""
    cells = results.cells
    if "forward" not in cells:
        return pd.DataFrame()
    cells = cells[cells["status"] == "done"]
    columns = ["maps_forward", "maps_backward", "maps_seconds", "forward", "backward", "seconds"]
    return cells.groupby(["model", "method", "metric"], sort=False)[columns].sum().reset_index()


def leaderboard(results: "Results") -> pd.DataFrame:
    """Methods x metrics, for reading: the headline with its interval, and the verdict of the randomization test.

    Rows are not ordered by quality: no single number says which method is best.
    """
    long = results.table("headlines")
    if long.empty:
        return long
    judged = results.table("verdicts")
    if not judged.empty:
        judged = judged[(judged["measure"] == "spearman") & (judged["sign"] == "signed")]
    words = {(v["model"], v["method"], v["metric"]): v["verdict"] for _, v in judged.iterrows()}
    text = [
        " ".join(filter(None, [_cell(row), words.get((row["model"], row["method"], row["metric"]), "")]))
        for _, row in long.iterrows()
    ]
    wide = long.assign(text=text).pivot_table(
        index=["model", "method"], columns="metric", values="text", aggfunc="first", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)


def stages(results: "Results") -> pd.DataFrame:
    """Methods x stages, for reading: the cascade table with a column for each stage."""
    long = results.table("cascade")
    if long.empty:
        return long
    long = long.assign(text=[interval_text(row, ".2f") for _, row in long.iterrows()])
    index = ["model", "method", "metric"]
    wide = long.pivot_table(index=index, columns="stage", values="text", aggfunc="first", sort=False, observed=True)
    return wide[list(long.sort_values("stage_index")["stage"].unique())].reset_index().rename_axis(columns=None)


TABLES: dict[str, Callable[["Results"], pd.DataFrame]] = {
    "leaderboard": leaderboard,
    "headlines": headlines,
    "verdicts": verdicts,
    "cascade": cascade,
    "stages": stages,
    "summary": summary,
    "cost": cost,
}


def write_tables(results: "Results", folder: Path) -> list[Path]:
    """Every table as CSV and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in TABLES:
        frame = results.table(name)
        frame.to_csv(folder / f"{name}.csv", index=False)
        (folder / f"{name}.md").write_text(markdown(frame))
        written += [folder / f"{name}.csv", folder / f"{name}.md"]
    return written


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    rows = [[cell_text(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def matrix(group: pd.DataFrame) -> np.ndarray:
    """The values as [samples, draws], both in sorted order, so that matrices of one study match.

    A number without draws has one draw, and one about the model has one sample.
    """
    samples, _ = pd.factorize(group["sample"].astype(object), sort=True, use_na_sentinel=False)
    draws, _ = pd.factorize(group["draw"], sort=True, use_na_sentinel=False)
    if len(group) == 0:
        return np.full((0, 1), np.nan)
    values = np.full((samples.max() + 1, draws.max() + 1), np.nan)
    values[samples, draws] = group["value"]
    return values


def _groups(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    if len(frame):
        for values, group in frame.groupby(columns, sort=False, observed=True, dropna=False):
            yield dict(zip(columns, values, strict=True)), group


def _columns(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _commonest(reasons: "pd.Series[Any]") -> str:
    counts = reasons.dropna().astype(str)
    return str(counts.mode().iloc[0]) if len(counts) else ""


def _cell(row: "pd.Series[Any]") -> str:
    if row["status"] == "not_applicable":
        return "n/a"
    if row["status"] != "done":
        return str(row["status"])
    if str(row["reason"]).startswith("invalid") and np.isnan(row["value"]):
        return "invalid"
    return interval_text(row, ".2g")


def interval_text(row: "pd.Series[Any]", form: str) -> str:
    """A value with its interval, or `undefined`."""
    if np.isnan(row["value"]):
        return "undefined"
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def cell_text(value: object) -> str:
    """A value as it is printed: four significant digits, nothing for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
