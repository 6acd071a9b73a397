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
"""Of our own metrics, at black fill: `python -m harness.marks RUN` writes it from the exam in that folder."""

COLUMNS = ["function", "version", "fill", "mark", "faults"]


@dataclass(frozen=True)
class Marks:
    """What is known of metrics.

    Attributes:
        found: name and version of a metric -> fill with which it was examined (empty if it has none) -> what came out.
    """

    found: Mapping[tuple[str, int], Mapping[str, str]]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Marks":
        """Those of the table of an exam."""
        return cls({}).and_of(rows_of(frame))

    def and_of(self, rows: Sequence[Mapping[str, Any]]) -> "Marks":
        """These and those of an exam of the user's own, which count where both know a metric."""
        found: dict[tuple[str, int], dict[str, str]] = {}
        for row in rows:
            here = found.setdefault((row["function"], int(row["version"])), {})
            said = f"{row['mark']}: {row['faults']}" if row["faults"] else row["mark"]
            # Of several options the worst counts.
            here[row["fill"]] = max(said, here.get(row["fill"], ""), key=lambda mark: mark.startswith(FAILED))
        return Marks({**self.found, **found})

    def of_metric(self, name: str, version: int, direction: str | None, fill: str = "") -> str:
        """What a leaderboard says of a metric: passed, failed and why, not examined, or that it describes.

        With the fill where it was examined with others only.
        """
        if not direction:
            return DESCRIBES
        found = self.found.get((name, version), {})
        if fill in found or not found:
            return found.get(fill, NOT_EXAMINED)
        return "; ".join(f"{mark} (at {other})" if other else mark for other, mark in found.items())


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
