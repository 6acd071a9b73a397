"""Progress on the terminal: a bar for each thing being done."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.training import Progress as Report


def silent(task: str, fraction: float, detail: str) -> None:
    """Report nothing."""


@contextmanager
def bars(console: Console) -> Iterator[Report]:
    """A report that draws: one bar a task, what exactly is being done, time spent and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as display:
        tasks: dict[str, TaskID] = {}

        def report(task: str, fraction: float, detail: str) -> None:
            if task not in tasks:
                tasks[task] = display.add_task(task, total=1.0, detail=detail)
            display.update(tasks[task], completed=fraction, detail=detail)

        yield report
