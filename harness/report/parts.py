"""What the template of the report is filled with: tables whose cells have a text, a kind and a value to sort by."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.glance import EXAM, INDEX
from harness.marks import DESCRIBES, FAILED, PASSED
from harness.text import cell_text

if TYPE_CHECKING:
    from harness.results import Results

KINDS = {
    "PASS": "pass",
    "FAIL": "fail",
    "INVALID": "invalid",
    "INCONCLUSIVE": "unsure",
    "invalid": "invalid",
    "failed": "fail",
    "missing": "unsure",
    "n/a": "none",
    "not ranked": "none",
}
"""Word -> what kind of a word it is: its colour and its sign."""

SIGNS = {"pass": "✓", "fail": "✗", "invalid": "⊘", "unsure": "?", "none": "·"}
"""Kind -> what says the same without colour."""

RANK = re.compile(r"^(\d+)(?:-(\d+))? of (\d+)$")
MOST_ROWS = 600
"""A longer table stands in the folder of tables only."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the word in it that is marked, what it is sorted by, and notes that unfold."""

    text: str
    word: str = ""
    kind: str = ""
    value: float | str = ""
    notes: Sequence[str] = ()
    rank: tuple[int, int, int] | None = None

    @property
    def sign(self) -> str:
        """What says without colour what kind of a word it is."""
        return SIGNS.get(self.kind, "")


@dataclass(frozen=True)
class Row:
    """One row: the model it is about, empty for all, and its cells."""

    subject: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table of the report; `marks` is a row above all others that is not sorted."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    marks: Sequence[Cell] = ()
    numeric: Sequence[bool] = field(default=())


def counted(number: int, what: str) -> str:
    """How many there are, in words: `1 row`, `2 rows`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def matrix(results: "Results") -> Table:
    """Methods x metrics in words: the table `glance`, with reasons that unfold."""
    frame = _of_maps(results, results.table("glance"))
    names = [name for name in frame.columns if name not in (*INDEX, "reasons", "passes", "seconds")]
    # A reason may have a semicolon of its own.
    begins = re.compile(f"; (?=(?:{'|'.join(re.escape(str(name)) for name in names)}): )")

    def cells(row: "pd.Series[Any]") -> list[Cell]:
        reasons = [part for part in begins.split(str(row.get("reasons") or "")) if part]
        why = Cell(counted(len(reasons), "note") if reasons else "", notes=reasons, value=float(len(reasons)))
        return [*(_word(row[name]) for name in names), why]

    return _table(results, frame, "glance", "Verdicts at a glance", [*names, "why"], cells)


def leaderboard(results: "Results") -> Table:
    """Methods x metrics in numbers, sorted by their values."""
    frame = _of_maps(results, results.table("leaderboard"))
    names = [name for name in frame.columns if name not in INDEX]
    long = results.table("headlines")
    values = {(*row[:3], row[3]): row[4] for row in long[[*INDEX, "metric", "value"]].itertuples(index=False)}

    def cells(row: "pd.Series[Any]") -> list[Cell]:
        return [_number(row[name], values.get((*(row[each] for each in INDEX), name))) for name in names]

    return _table(results, frame, "leaderboard", "Headlines with 95 % intervals", names, cells)


def _of_maps(results: "Results", frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that have maps, and the columns of metrics that they have something of."""
    if frame.empty or not results.introspections:
        return frame
    rows = frame[~frame["method"].isin(results.introspections)]
    maps = rows[rows["method"] != EXAM]
    return rows[[name for name in rows.columns if name in (*INDEX, "reasons") or maps[name].notna().any()]]


def plain_table(results: "Results", name: str, caption: str, columns: Mapping[str, str] | None = None) -> Table:
    """A table of the run as it is, or some of its columns under other names."""
    frame = results.table(name)
    shown = dict(columns or {each: each for each in frame.columns if each not in ("model", "model_seed")})
    shown = {each: title for each, title in shown.items() if each in frame}
    subjects = results.subjects if {"model", "model_seed"} <= set(frame.columns) else {}
    rows = [
        Row(
            subjects.get((row["model"], row["model_seed"]), "") if subjects else "",
            [_plain(row[each]) for each in shown],
        )
        for _, row in frame.iterrows()
    ]
    return Table(name, caption, list(shown.values()), rows, numeric=numeric(rows, len(shown)))


def _table(
    results: "Results",
    frame: pd.DataFrame,
    name: str,
    caption: str,
    columns: Sequence[str],
    cells: Callable[["pd.Series[Any]"], list[Cell]],
) -> Table:
    """A table of methods, with the row of marks above it."""
    marks: list[Cell] = []
    rows = []
    for _, row in frame.iterrows():
        if row["method"] == EXAM:
            marks = [Cell("exam of the metric"), *(_mark(row.get(each)) for each in columns)]
        else:
            subject = results.subjects[row["model"], row["model_seed"]]
            rows.append(Row(subject, [Cell(str(row["method"]), value=str(row["method"])), *cells(row)]))
    titles = ["method", *columns]
    return Table(name, caption, titles, rows, marks, numeric(rows, len(titles)))


def numeric(rows: Sequence[Row], size: int) -> list[bool]:
    """Of each column whether it is sorted as numbers."""
    return [any(isinstance(row.cells[place].value, float) for row in rows) for place in range(size)]


def _word(value: object) -> Cell:
    text = cell_text(value)
    found = RANK.match(text)
    if found:
        low, high, of = int(found[1]), int(found[2] or found[1]), int(found[3])
        return Cell(text, rank=(low, high, of), value=float(low + high) / 2)
    kind = KINDS.get(text, "")
    return Cell("" if kind else text, text if kind else "", kind, text)


def _number(value: object, number: float | None) -> Cell:
    text = cell_text(value)
    word = next((word for word in KINDS if text.endswith(word)), "")
    known = number is not None and number == number
    return Cell(text.removesuffix(word).strip(), word, KINDS.get(word, ""), float(number or 0) if known else "")


def _mark(value: object) -> Cell:
    text = cell_text(value)
    kind = "pass" if text.startswith(PASSED) else "fail" if text.startswith(FAILED) else ""
    kind = "none" if text == DESCRIBES else kind
    return Cell("" if kind else text, text if kind else "", kind)


def _plain(value: object) -> Cell:
    text = cell_text(value)
    kind = KINDS.get(text, "") if text.isupper() else ""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    # Six digits put rows in their order, and the file holds thousands of them.
    shown = float(f"{value:.6g}") if numeric else text
    return Cell("" if kind else text, text if kind else "", kind, shown)
