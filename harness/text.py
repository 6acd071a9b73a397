"""Tables and values as text."""

from typing import Any

import numpy as np
import pandas as pd


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    rows = [[cell_text(value).replace("|", r"\|") for value in row] for row in frame.itertuples(index=False)]
    lines = [[str(name) for name in frame.columns], ["---"] * len(frame.columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval_text(row: "pd.Series[Any]", form: str) -> str:
    """A value with its interval, if it has one, or `undefined`."""
    if np.isnan(row["value"]):
        return "undefined"
    limits = "" if np.isnan(row["low"]) else f" [{row['low']:{form}}, {row['high']:{form}}]"
    return f"{row['value']:{form}}{limits}"


def cell_text(value: object) -> str:
    """A value as it is printed: four significant digits, nothing for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sentence(words: str) -> str:
    """Words as a sentence: a capital at its start, a full stop at its end; nothing of nothing."""
    return f"{words[0].upper()}{words[1:].rstrip('.')}." if words else ""
