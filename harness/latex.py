"""Data frames as LaTeX tables, with the rules of the package booktabs."""

import re
from typing import Any

import pandas as pd

from harness.text import cell_text

NAMED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SYMBOLS = {
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "·": r"$\cdot$",
    "<": "$<$",
    ">": "$>$",
}
WRAPPED, LONG = r"p{5cm}", 40
"""The column of texts that are longer than so many characters."""


def latex(table: pd.DataFrame) -> str:
    r"""A `tabular`, ready for a paper: numbers to the right, words to the left, long words wrapped.

    It needs `\usepackage{booktabs}` and nothing else. A table without columns is a comment, because LaTeX has
    no such `tabular`.
    """
    if table.shape[1] == 0:
        return "% no rows\n"
    texts = [[cell_text(value) for value in row] for row in table.itertuples(index=False)]
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in [[str(name) for name in table.columns], *texts]]
    kinds = "".join(_kind(table.iloc[:, index], [row[index] for row in texts]) for index in range(table.shape[1]))
    inside = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{{kinds}}}\n{inside}\n\\end{{tabular}}\n"


def escaped(text: str) -> str:
    """Text in which nothing means anything to LaTeX."""
    text = re.sub(r"[&%$#_{}\\~^]", lambda found: NAMED.get(found[0], f"\\{found[0]}"), text)
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    return text.replace("\n", " ")


def _kind(column: "pd.Series[Any]", texts: list[str]) -> str:
    if pd.api.types.is_numeric_dtype(column):
        return "r"
    return WRAPPED if max(map(len, texts), default=0) > LONG else "l"
