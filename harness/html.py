"""Data frames as HTML, for notebooks."""

from typing import Any

import pandas as pd

from harness.text import cell_text

COLOURS = {"PASS": "#0072B2", "FAIL": "#D55E00", "INVALID": "#CC79A7", "INCONCLUSIVE": "#666666"}
"""Of words, told apart by colour-blind readers; the words say the same."""


def html(frame: pd.DataFrame) -> str:
    """A data frame as an HTML table of its own style, verdicts in colour."""
    styler = frame.style.hide(axis="index").format(cell_text).map(_style)
    styler = styler.set_table_styles([{"selector": "th, td", "props": "text-align: left; padding: 2px 10px 2px 0"}])
    return str(styler.to_html())


def _style(value: Any) -> str:
    word = next((word for word in COLOURS if word in str(value).split()), "")
    return f"color: {COLOURS[word]}; font-weight: bold" if word else ""
