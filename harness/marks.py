"""Marks: which metrics passed their exam. Every leaderboard carries them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

PASSED, FAILED = "passed", "failed"
NOT_EXAMINED, DESCRIBES = "not examined", "describes"

PUBLISHED = Path(__file__).parent / "marks.csv"
"""Of our own metrics with default options: `python -m harness.marks RUN` writes it from the exam in that folder."""

COLUMNS = ["function", "version", "mark", "faults"]


@dataclass(frozen=True)
class Marks:
    """What is known of metrics, by name and version."""

    found: Mapping[tuple[str, int], tuple[str, str]]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Marks":
        """Those of the table of an exam."""
        return cls({}).and_of(rows_of(frame))

    def and_of(self, rows: Sequence[Mapping[str, Any]]) -> "Marks":
        """These and those of an exam of the user's own, which count where both know a metric."""
        return Marks({**self.found, **{(r["function"], int(r["version"])): (r["mark"], r["faults"]) for r in rows}})

    def of_metric(self, name: str, version: int, direction: str | None) -> str:
        """What a leaderboard says of a metric: passed, failed and why, not examined, or that it describes."""
        if not direction:
            return DESCRIBES
        mark, faults = self.found.get((name, version), (NOT_EXAMINED, ""))
        return f"{mark}: {faults}" if faults else mark


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What is kept of the table of an exam."""
    return [dict(zip(COLUMNS, row, strict=True)) for row in frame[COLUMNS].fillna("").itertuples(index=False)]


def read(folder: Path) -> list[dict[str, Any]]:
    """The marks of the exam in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    return rows_of(pd.read_csv(folder / "tables" / "exam.csv"))


@cache
def published() -> Marks:
    """The marks that ship with the harness."""
    return Marks.of(pd.read_csv(PUBLISHED))


def main(folder: str) -> None:
    """Write the published marks from the exam in a folder."""
    frame = pd.read_csv(Path(folder) / "tables" / "exam.csv")
    frame.sort_values("function")[COLUMNS].to_csv(PUBLISHED, index=False)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
