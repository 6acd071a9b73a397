"""What a study will cost, for reading: by model, method and metric, what is done, and how long it takes on how many."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from statistics import median

import pandas as pd

from harness.estimates import Estimate, Speed, estimates_of, makespan
from harness.plan import Cell, Group, Task
from harness.preparation import Prepared
from harness.store import write_atomically
from harness.training import Progress

WORKERS = (1, 2, 4, 8)
KEPT = "estimates.json"


@dataclass(frozen=True)
class Forecast:
    """The cells of a plan and what each costs.

    Attributes:
        groups: the plan.
        estimates: of each cell.
        speeds: of each model.
        chunk: how many samples go through a model at once.
        finished: the keys of the cells that are done.
    """

    groups: Sequence[Group]
    estimates: Mapping[Cell, Estimate]
    speeds: Mapping[str, Speed]
    chunk: int
    finished: frozenset[str]

    @property
    def cells(self) -> pd.DataFrame:
        """One row for each cell: labels, whether it is done, passes and seconds; NaN where a cost is not known."""
        rows = [{**asdict(cell), "done": cell.key in self.finished, **asdict(e)} for cell, e in self.estimates.items()]
        return pd.DataFrame(rows)

    def by(self, what: str) -> pd.DataFrame:
        """The cost of each method, or of each metric; `unknown` counts cells of which it is not known."""
        cells = self.cells
        cells = cells.assign(unknown=cells["seconds"].isna(), cells=1)
        sums = cells.groupby(["model", what], sort=False)[
            ["cells", "done", "unknown", "forward", "backward", "seconds"]
        ].sum()
        return sums.round({"forward": 0, "backward": 0}).astype({"forward": int, "backward": int}).reset_index()

    @property
    def models(self) -> pd.DataFrame:
        """What was measured of each model: how fast it is in which form, and the memory of one chunk."""
        rows = []
        for group in self.groups:
            subject = group.subject
            speed, parameters = self.speeds[subject.label], list(subject.source.model.parameters())
            graph = speed.cost.graph_bytes / speed.cost.batch * self.chunk
            rows.append(
                {
                    "model": subject.label,
                    "form": subject.inference.form,
                    "forward a second": round(1 / speed.inference),
                    "forward and backward a second": round(1 / speed.seconds(1.0, 1.0)),
                    "weights, MiB": sum(each.numel() * each.element_size() for each in parameters) / 2**20,
                    f"graph of {self.chunk}, MiB": graph / 2**20,
                }
            )
        return pd.DataFrame(rows).drop_duplicates("model").reset_index(drop=True)

    def left(self, workers: int) -> float:
        """Seconds until everything is done, on so many accelerators."""
        open_ = {cell: e.seconds for cell, e in self.estimates.items() if cell.key not in self.finished}
        return makespan(
            self.groups, {cell: 0.0 if isnan(seconds) else seconds for cell, seconds in open_.items()}, workers
        )

    @property
    def lines(self) -> list[str]:
        """All of it in a few lines."""
        cells = self.cells
        left, unknown = cells[~cells["done"]], int((cells["seconds"].isna() & ~cells["done"]).sum())
        lines = [f"{len(cells)} cells, {int(cells['done'].sum())} of them done"]
        if len(left):
            times = ", ".join(f"{duration(self.left(workers))} on {workers}" for workers in WORKERS)
            lines += [
                f"left: {left['forward'].sum():,.0f} forward and {left['backward'].sum():,.0f} backward sample-passes",
                f"about {times} accelerators like this one: what the passes take, and what cells of a metric took "
                "beyond that where some are done",
            ]
        if unknown:
            kinds = "train networks or could not be tried"
            lines.append(f"not in these numbers: {unknown} cells that {kinds}")
        return lines


def forecast(ready: Prepared, progress: Progress) -> Forecast:
    """What a prepared study will cost: see `harness.estimates`."""
    estimates, speeds = estimates_of(ready.groups, ready.folder, chunk=ready.chunk, progress=progress)
    finished = frozenset(cell.key for cell in estimates if ready.folder.info(cell) is not None)
    return Forecast(ready.groups, estimates, speeds, ready.chunk, finished)


class Weights:
    """How much of the whole work of a run each task is: its estimated seconds, counted once and kept in the folder."""

    def __init__(self, ready: Prepared, progress: Progress) -> None:
        path = ready.folder.path / KEPT
        if not path.exists():
            # First of all, so that what kills the process while it is counted does so only once.
            write_atomically(path, b"{}")
            known = {cell.key: e.seconds for cell, e in forecast(ready, progress).estimates.items()}
            write_atomically(path, json.dumps({key: value for key, value in known.items() if value == value}).encode())
        self._seconds: dict[str, float] = json.loads(path.read_text())
        self._usual = median(self._seconds.values()) if self._seconds else 1.0

    def __call__(self, task: Task) -> float:
        """Seconds, or those of the usual task where they are not known; a little for what costs nothing."""
        return max(self._seconds.get(task.cell.key, self._usual), self._usual / 100, 1e-6)


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
