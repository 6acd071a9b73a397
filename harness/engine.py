"""Computes the cells of a plan that are not finished, one after the other, and loses none to another's failure."""

import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness.case import Passes
from harness.plan import Group, Task, numerics
from harness.remarks import in_words
from harness.rows import rows_of
from harness.store import Part, Store
from harness.training import Progress
from harness.types import NotApplicableError, Score


def execute(groups: Sequence[Group], store: Store, *, seed: int, chunk: int, progress: Progress) -> None:
    """Compute every unfinished cell. A cell that raises becomes a failure; the others go on.

    Args:
        groups: the plan.
        store: where results go, and what is finished already.
        seed: the study's seed.
        chunk: how many samples go through a model at once.
        progress: told before each cell.
    """
    total, done = sum(len(group.tasks) for group in groups), 0
    previous = None
    for group in groups:
        if previous and previous is not group.subject.source:
            # What was kept for the other methods of a model that is done.
            previous.shared.clear()
        previous = group.subject.source
        pending = [task for task in group.tasks if store.info(task.cell) is None]
        done += len(group.tasks) - len(pending)
        if not pending:
            continue
        runner = _Runner(group, seed, chunk)
        for task in pending:
            progress("cells", done / total, f"{task.cell.model} · {task.cell.method} · {task.cell.metric}")
            runner.run(task, store)
            done += 1
    progress("cells", 1.0, "")


class _Runner:
    """Runs the tasks of one group. The maps are computed once, also if that fails."""

    def __init__(self, group: Group, seed: int, chunk: int) -> None:
        self.group = group
        self.case = group.case(seed=seed, chunk=chunk)
        self.maps_cost: dict[str, Any] | None = None
        self.maps_error: Exception | None = None
        self.maps_version = 0

    def run(self, task: Task, store: Store) -> None:
        """Compute one cell and store what came of it: rows, the reason why it is not applicable, or the failure."""
        scores: list[Score] = []
        status, reason, started = "not_applicable", task.lacks, time.perf_counter()
        try:
            if not task.lacks:
                self._compute_maps()
                self.case.passes, started = Passes(), time.perf_counter()
                scores = list(task.metric.function(self.case, **task.options))
                self._check_untouched(task)
                status = "done"
            rows = rows_of(scores, self.case.samples, self.case.target)
        except NotApplicableError as lack:
            rows, reason = rows_of([], self.case.samples, self.case.target), str(lack)
        except Exception as error:
            store.fail(task.cell, _failure(error))
            return
        store.put(task.cell, Part(rows, self._info(task, status, reason, time.perf_counter() - started)))

    def _check_untouched(self, task: Task) -> None:
        """Check that a metric left the maps to the next one as it got them.

        Raises:
            RuntimeError: it wrote into them; they are computed anew for the next metric.
        """
        if self.case.maps._version != self.maps_version:
            del self.case.maps
            self.maps_cost = None
            raise RuntimeError(f"{task.metric.name} wrote into the maps, which other metrics share: clone them first")

    def _compute_maps(self) -> None:
        if self.maps_error is not None:
            raise self.maps_error
        if self.maps_cost is None:
            started = time.perf_counter()
            self.case.passes = Passes()
            try:
                self.maps_version = self.case.maps._version
            except Exception as error:
                self.maps_error = error
                raise
            self.maps_cost = {
                "maps_forward": self.case.passes.forward,
                "maps_backward": self.case.passes.backward,
                "maps_seconds": time.perf_counter() - started,
            }

    def _info(self, task: Task, status: str, reason: str, seconds: float) -> dict[str, Any]:
        device, dtype, precision, form = numerics(self.group.subject)
        method = self.group.explainer.method
        return {
            "status": status,
            "reason": reason,
            "samples": len(self.case.samples),
            "method_function": method.name,
            "method_version": method.version,
            "method_family": method.family,
            "method_options": dict(self.group.explainer.options),
            "method_expected": dict(method.expected),
            "metric_function": task.metric.name,
            "metric_version": task.metric.version,
            "metric_options": task.options,
            "headline": task.metric.headline,
            "direction": task.metric.direction,
            "summary_statistic": task.metric.summary_statistic,
            "forward": self.case.passes.forward if status == "done" else 0,
            "backward": self.case.passes.backward if status == "done" else 0,
            "seconds": seconds,
            **(self.maps_cost or {"maps_forward": 0, "maps_backward": 0, "maps_seconds": 0.0}),
            "remarks": in_words(self.case.remarks),
            "weights": self.group.subject.source.weights,
            "twins": self.group.subject.source.note,
            "device": device,
            "dtype": dtype,
            "matmul_precision": precision,
            "model_form": form,
            "chunk": self.case.chunk,
            "code": task.code,
            "torch": torch.__version__,
        }


def _failure(error: Exception) -> Mapping[str, Any]:
    return {
        "error": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }
