"""A comparison of two runs for people and for machines: Markdown, JUnit XML, a line for each thing to look at."""

import xml.etree.ElementTree as ET
from typing import Any

import pandas as pd

from harness.regressions import RED, Comparison
from harness.text import cell_text, markdown

SHOWN = [
    "model",
    "method",
    "metric",
    "outcome",
    "measure",
    "base",
    "new",
    "difference",
    "low",
    "high",
    "tolerance",
    "p_holm",
    "why",
]
QUIET = ("undecided", "not applicable", "failed before")


def headline(comparison: Comparison) -> str:
    """The outcome in one line."""
    counts = comparison.rows["outcome"].value_counts()
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{comparison.new} against {comparison.base}: {'RED' if len(comparison.red) else 'green'} ({told})"


def lines(comparison: Comparison) -> list[str]:
    """What is red, and what was changed between the runs."""
    found = [told(row) for _, row in comparison.red.iterrows()]
    found += [f"changed between the runs: {change}" for change in comparison.changes]
    if comparison.stale:
        found.append(f"{comparison.stale} finished cells in the new folder belong to no cell of its study")
    return found


def told(row: "pd.Series[Any]") -> str:
    """One row in words."""
    who = f"{row['outcome']}: {row['method']} on {row['model']}, {row['metric']}"
    if pd.isna(row["difference"]):
        return f"{who}{f' ({why})' if (why := cell_text(row['why'])) else ''}"
    values = f"{row['measure']} {row['base']:.4g} -> {row['new']:.4g}"
    by = f"by {row['difference']:.2g} [{row['low']:.2g}, {row['high']:.2g}], {row['tolerance']:.2g} allowed"
    cause = f"; {row['changed']}" if row["changed"] else ""
    return f"{who}: {values}, {by}{cause}"


def as_markdown(comparison: Comparison) -> str:
    """A summary for a merge request or a nightly mail: what is red, what was changed, and every row."""
    red = comparison.red
    parts = [f"## {headline(comparison)}\n"]
    if len(red):
        parts.append(markdown(_shown(red)))
    if comparison.changes:
        parts.append("What differs between the runs:\n\n" + "".join(f"- {change}\n" for change in comparison.changes))
    if comparison.stale:
        parts.append(f"{comparison.stale} finished cells in the new folder belong to no cell of its study.\n")
    rows = _shown(comparison.rows)
    parts.append(f"<details><summary>All {len(rows)} comparisons</summary>\n\n{markdown(rows)}\n</details>\n")
    return "\n".join(parts)


def as_junit(comparison: Comparison) -> str:
    """One test case for each model, method and metric: a failure where it is red, skipped where nothing was judged."""
    rows = comparison.rows
    suite = ET.Element(
        "testsuite",
        name=f"{comparison.new} against {comparison.base}",
        tests=str(len(rows)),
        failures=str(int(rows["outcome"].isin(RED).sum())),
        errors="0",
        skipped=str(int(rows["outcome"].isin(QUIET).sum())),
    )
    for _, row in rows.iterrows():
        case = ET.SubElement(suite, "testcase", classname=f"{row['model']}.{row['metric']}", name=str(row["method"]))
        if row["outcome"] in RED:
            ET.SubElement(case, "failure", message=told(row)).text = told(row)
        elif row["outcome"] in QUIET:
            ET.SubElement(case, "skipped", message=told(row))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    seeds = rows["model_seed"].nunique() > 1
    return rows[["model", "model_seed", *SHOWN[1:]]] if seeds else rows[SHOWN]
