"""What the report says of introspections in words and tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.learnt import COLUMNS
from harness.report.parts import KINDS as WORDS
from harness.report.parts import Cell, Row, Table, numeric
from harness.text import cell_text, sentence

if TYPE_CHECKING:
    from harness.results import Results

TITLES = {"full": "re-initialized", "shuffled": "shuffled weights"}
"""Mode of a row -> what its columns are called."""


@dataclass(frozen=True)
class Asked:
    """An introspection in the report: its label, what it asks, when it misleads, and why it says nothing."""

    label: str
    question: str
    misleads: str
    reasons: tuple[str, ...]


def asked(results: "Results") -> list[Asked]:
    """The introspections of a run."""
    found = []
    for label in results.introspections:
        cells = results.cells[results.cells["method"] == label]
        known = {name: _first(cells, name) for name in ("question", "misleads")}
        lacking = cells[cells["status"] == "not_applicable"]
        reasons = dict.fromkeys(str(reason) for reason in lacking["reason"]) if len(lacking) else ()
        found.append(Asked(label, known["question"], sentence(known["misleads"]), tuple(reasons)))
    return found


def _first(cells: pd.DataFrame, name: str) -> str:
    """What the first finished cell has recorded; runs of plugins of earlier versions have not."""
    values = list(cells[name].dropna()) if name in cells else []
    return str(values[0]) if values else ""


def network_tables(results: "Results") -> list[Table]:
    """The verdicts on measures of whole networks, and on those of layers; those that have rows."""
    frame = results.table("global")
    if frame.empty:
        return []
    whole, layers = frame[frame["stage"].isna()], frame[frame["stage"].notna()]
    tables = (
        _table(results, whole, "global", "What is asked of whole networks"),
        _table(results, layers, "global-layers", "The same, layer by layer"),
    )
    return [table for table in tables if table.rows]


def _table(results: "Results", frame: pd.DataFrame, name: str, caption: str) -> Table:
    layer = ["layer"] if name != "global" else []
    columns = ["introspection", "measure", *layer, "verdict", "trained", *TITLES.values()]
    columns += [f"{what}, {title}" for what in ("effect", "p") for title in TITLES.values()]
    rows = [_row(results, row, bool(layer)) for _, row in frame.iterrows()]
    return Table(name, caption, [*columns, "why"], rows, numeric=numeric(rows, len(columns) + 1))


def _row(results: "Results", row: "pd.Series[Any]", layer: bool) -> Row:
    verdict = str(row["verdict"])
    nulls = [Cell(_spread(row[name], row[f"{name}_deviation"]), value=_value(row[name])) for name in COLUMNS.values()]
    told = [_plain(row[f"{name}_{what}"]) for what in ("effect", "p") for name in COLUMNS.values()]
    cells = [
        Cell(str(row["method"]), value=str(row["method"])),
        Cell(str(row["measure"]), value=str(row["measure"])),
        *([Cell(str(row["stage"]), value=float(row["stage_index"]))] if layer else []),
        Cell("", verdict, WORDS.get(verdict, ""), verdict),
        _plain(row["trained"]),
        *nulls,
        *told,
        Cell(str(row["reason"]), value=str(row["reason"])),
    ]
    return Row(results.subjects[row["model"], row["model_seed"]], cells)


def _spread(mean: float, deviation: float) -> str:
    return cell_text(mean) + (f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{deviation:.2g}" if np.isfinite(deviation) else "")


def _plain(number: float) -> Cell:
    return Cell(cell_text(float(number)), value=_value(number))


def _value(number: float) -> float | str:
    return float(f"{number:.6g}") if np.isfinite(number) else ""
