"""What the command line prints: tables, warnings, the outcome of a run and of an examination."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from harness.doctor import Diagnosis
    from harness.results import Results

# A pipe has no width to fit: whoever reads it wants whole words.
console = Console(width=None if os.isatty(1) else 500, highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Device = Literal["auto", "cpu", "cuda"]
"""What every verb with a model takes as --device."""

SHOWN = ("leaderboard", "sensitivity", "stages")


@contextmanager
def warnings_told() -> Iterator[None]:
    """Print the warnings of the block after it, so that they do not get into the bars."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        errors.print(f"[yellow]warning:[/] {plain(str(warning.message))}")


def show_results(results: "Results", folder: Path) -> None:
    """The tables that say most, what failed, and the outcome in three lines."""
    from harness.words import conclusion

    for name in SHOWN:
        print_table(results.table(name), name)
    for _, failure in results.failures.iterrows():
        errors.print(
            f"[red]failed[/] {failure['model']} · {failure['method']} · {failure['metric']}: {plain(failure['error'])}"
        )
    if results.stale:
        errors.print(
            f"{len(results.stale)} stale cells in {folder}: finished, but no longer named by the study; not shown"
        )
    console.print(
        f"tables and figures: {folder}/tables, {folder}/figures; the report: {folder}/report.html\n", markup=False
    )
    for title, line in conclusion(results).items():
        console.print(f"[bold]{title}[/]: {plain(line)}", soft_wrap=True)


def tell_diagnosis(diagnosis: "Diagnosis") -> None:
    """What a model is, what it costs, which methods apply, and what was found wrong."""
    console.print(f"\n[bold]{plain(diagnosis.label)}[/]")
    for name, fact in diagnosis.facts.items():
        console.print(f"  {name}: {plain(fact)}", soft_wrap=True)
    if len(diagnosis.blocks):
        print_table(diagnosis.blocks.rename_axis("order").reset_index(), "blocks in execution order")
    if diagnosis.cost:
        cost = diagnosis.cost
        console.print(
            f"a batch of {cost.batch}: {cost.forward_seconds:.3g} s forward, {cost.backward_seconds:.3g} s backward, "
            f"{cost.graph_bytes / 2**20:.3g} MiB kept for the backward pass; largest batch that fits: "
            f"{cost.largest_batch:,} ({cost.how})\n",
            soft_wrap=True,
        )
    if len(diagnosis.methods):
        print_table(diagnosis.methods, "methods")
    for finding in diagnosis.findings:
        console.print(f"[bold red]finding:[/] {plain(finding.problem)}", soft_wrap=True)
    if not diagnosis.findings:
        console.print("no findings")


def print_table(frame: "pd.DataFrame", title: str) -> None:
    """A data frame under a title; what is the same in every row stands in the title."""
    from harness.text import cell_text

    same = {c: frame[c].iloc[0] for c in frame.columns if len(frame) > 1 and frame[c].astype(str).nunique() == 1}
    said = ", ".join(f"{name} {text}" for name, value in same.items() if (text := cell_text(value)))
    varying = frame.drop(columns=list(same))
    shown = Table(title=plain(f"{title}: {said}" if said else title), title_justify="left", title_style="bold")
    for column in varying.columns:
        shown.add_column(plain(str(column)), overflow="fold")
    for row in varying.itertuples(index=False):
        shown.add_row(*(plain(cell_text(value)) for value in row))
    console.print(shown)


def plain(text: str) -> str:
    """Text that is printed as it is."""
    # Square brackets are markup to rich and intervals to us.
    return text.replace("[", "\\[")
