"""Tables as files and as text: CSV, Parquet, Markdown, LaTeX, HTML."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from harness.html import html
from harness.latex import latex
from harness.tables import TABLES
from harness.text import cell_text, markdown
from harness.verdicts import in_error

if TYPE_CHECKING:
    from harness.results import Results

FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "csv": lambda frame: frame.to_csv(index=False),
    "markdown": markdown,
    "latex": latex,
    "html": html,
}


def write_tables(results: "Results", folder: Path) -> list[Path]:
    """Every table as CSV, Parquet, Markdown and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in TABLES:
        frame = results.table(name)
        note = f"\n{in_error(frame)}\n" if name == "verdicts" and len(frame) else ""
        texts = {"csv": frame.to_csv(index=False), "md": markdown(frame) + note, "tex": latex(frame)}
        for ending, text in texts.items():
            (folder / f"{name}.{ending}").write_text(text)
        _typed(frame).to_parquet(folder / f"{name}.parquet", index=False)
        written += [folder / f"{name}.{ending}" for ending in (*texts, "parquet")]
    return written


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold words beside numbers, such as in the row of marks, as words."""
    mixed = [name for name in frame.columns if frame[name].dtype == object]
    return frame.assign(**{name: frame[name].map(cell_text) for name in mixed}).rename(columns=str)
