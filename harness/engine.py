"""Computes the cells of a plan that are not finished, one after the other, and loses none to another's failure."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from harness.artifacts import as_shown, distinct, keep_artifacts
from harness.case import Passes
from harness.entries import Introspection
from harness.interrupts import OutOfTimeError, finishing, within
from harness.kept_maps import about, keep_maps, lacks_maps
from harness.plan import Group, Task, lacking, numerics
from harness.remarks import in_words
from harness.rows import rows_of
from harness.snapshot import Snapshot
from harness.store import Part, Store
from harness.training import Progress
from harness.types import Artifact, NotApplicableError, Score, StoppedError

TOLD = ("compares", "question", "misleads")
"""What a cell records of an introspection, so that a report needs no plugin."""

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
LOST_DEVICE = ("CUDA error", "device-side assert", "CUDNN_STATUS_EXECUTION_FAILED", "HIP error")


def execute(
    groups: Sequence[Group],
    store: Store,
    *,
    seed: int,
    chunk: int,
    progress: Progress,
    cell_seconds: float | None = None,
    weight: Callable[[Task], float] = lambda _: 1.0,
    save_maps: bool = False,
) -> None:
    """Compute every unfinished cell. A cell that raises becomes a failure; the others go on.

    Cells that have failed before come last, so that one which takes the whole process with it does not stand in the way
    of the others.

    Args:
        groups: the plan.
        store: where results go, and what is finished already.
        seed: the study's seed.
        chunk: how many samples go through a model at once, at most: fewer where memory runs out.
        progress: told before each cell.
        cell_seconds: a cell that takes longer is a failure; None: each may take what it needs.
        weight: how much of the whole work a task is.
        save_maps: whether the maps of each group are kept once its cells are computed.

    Raises:
        KeyboardInterrupt: somebody interrupted it; the cell that was on its way was finished.
        StoppedError: the device was lost, or nothing can be written.
    """
    tasks = [task for group in groups for task in group.tasks]
    failed = {task.cell.key for task in tasks if store.failure(task.cell)}
    total, done = sum(map(weight, tasks)) or 1.0, 0.0
    with finishing(lambda: progress("interrupted", 0.0, "finishing this cell; Ctrl-C again stops at once")) as stopping:
        for again in (False, True):
            for group in forgetting(groups):
                mine = [task for task in group.tasks if (task.cell.key in failed) == again]
                pending = [task for task in mine if store.info(task.cell) is None]
                done += sum(weight(task) for task in mine if task not in pending)
                last = again == any(task.cell.key in failed for task in group.tasks)
                keeping = save_maps and last and lacks_maps(group, store, seed)
                needed = pending or keeping
                runner = Runner(group, store, seed=seed, chunk=chunk, cell_seconds=cell_seconds) if needed else None
                for task in pending:
                    if stopping():
                        raise KeyboardInterrupt
                    progress("cells", done / total, f"{task.cell.model} · {task.cell.method} · {task.cell.metric}")
                    # Two labels of a study may be of one cell.
                    if runner and store.info(task.cell) is None:
                        runner.run(task)
                    done += weight(task)
                if runner and keeping:
                    runner.keep_maps()
    progress("cells", 1.0, "")


def forgetting(groups: Sequence[Group]) -> Iterator[Group]:
    """The groups; what was kept for the methods of a model is forgotten when the next model comes."""
    previous = None
    for group in groups:
        if previous and previous is not group.subject.source:
            previous.shared.clear()
        previous = group.subject.source
        yield group


class Runner:
    """Runs the tasks of one group. The maps are computed once, also if that fails."""

    def __init__(self, group: Group, store: Store, *, seed: int, chunk: int, cell_seconds: float | None = None) -> None:
        self.group, self.store, self.seed, self.cell_seconds = group, store, seed, cell_seconds
        self.has_maps = not isinstance(group.explainer.method, Introspection)
        self.before = Snapshot(group.subject.source.model)
        self._begin(min([chunk, *self._known_chunks()]))

    def _known_chunks(self) -> Iterator[int]:
        """What fitted into memory in cells that are finished: the same again, for the same bits."""
        for task in self.group.tasks:
            info = self.store.info(task.cell)
            if info and info["status"] == "done":
                yield info["chunk"]

    def _begin(self, chunk: int) -> None:
        self.case = self.group.case(seed=self.seed, chunk=chunk)
        self.maps_cost: dict[str, Any] | None = None
        self.maps_error: Exception | None = None
        self.maps_version = 0

    def run(self, task: Task) -> None:
        """Compute one cell and store what came of it: rows, the reason why it is not applicable, or the failure.

        Raises:
            StoppedError: the device was lost, or nothing can be written.
        """
        while True:
            outcome = self._outcome(task)
            if not isinstance(outcome, Exception) or not is_out_of_memory(outcome) or self.case.chunk == 1:
                break
            # Out of the block that caught it, because its traceback holds the tensors that took the memory.
            del outcome
            self._begin(self.case.chunk // 2)
            gc.collect()
            torch.cuda.empty_cache()
        if isinstance(outcome, Part):
            # First, so that a finished cell has them.
            keep_artifacts(outcome.artifacts, task.cell, self.store)
            self.store.put(task.cell, outcome)
        else:
            self.store.fail(task.cell, _failure(outcome))
        if isinstance(outcome, Exception) and is_lost_device(outcome):
            raise StoppedError(
                f"the device was lost in {task.cell.model} · {task.cell.method} · {task.cell.metric} ({outcome}): "
                "finished cells are kept; run the same command again, this cell comes last then"
            ) from outcome

    def keep_maps(self) -> None:
        """Keep the maps; a method that raises or does not apply keeps none, and its cells say why.

        Raises:
            StoppedError: nothing can be written.
        """
        if lacking(self.group.subject, self.group.explainer):
            return
        try:
            with within(self.cell_seconds):
                self._compute_maps()
        except BaseException as error:
            if not is_lost_device(error):
                self._restored()
            if not isinstance(error, (Exception, OutOfTimeError)):
                raise
        else:
            keep_maps(self.group, self.case, self.store)

    def _outcome(self, task: Task) -> Part | Exception:
        """The finished cell, or what it raised; the model is left as it was."""
        artifacts: tuple[Artifact, ...] = ()
        status, reason, started = "not_applicable", task.lacks, time.perf_counter()
        try:
            with within(self.cell_seconds):
                scores: list[Score] = []
                if not task.lacks:
                    self._compute_maps()
                    self.case.passes, started = Passes(), time.perf_counter()
                    found = list(task.metric.function(self.case, **task.options))
                    self._check_untouched(task)
                    scores = [each for each in found if isinstance(each, Score)]
                    shown = (as_shown(each, self.case.space) for each in found if isinstance(each, Artifact))
                    artifacts = distinct(shown)
                    status = "done"
                rows = rows_of(scores, self.case.samples, self.case.target)
        except NotApplicableError as lack:
            self._restored()
            rows, reason = rows_of([], self.case.samples, self.case.target), str(lack)
        except OutOfTimeError:
            late = TimeoutError(f"took longer than the {self.cell_seconds:g} seconds that a cell may take")
            self._restored()
            if self.maps_cost is None:
                self.maps_error = late
            return late
        except BaseException as error:
            if not is_lost_device(error):  # on which nothing can be restored
                self._restored()
            if isinstance(error, Exception):
                return error
            raise
        return Part(rows, self._info(task, status, reason, time.perf_counter() - started), artifacts)

    def _check_untouched(self, task: Task) -> None:
        """Check that a metric left maps and model to the next one as it got them.

        Raises:
            RuntimeError: it wrote into the maps, which are computed anew for the next metric, or changed the model.
        """
        if self.has_maps and self.case.maps._version != self.maps_version:
            self._forget_maps()
            raise RuntimeError(f"{task.metric.name} wrote into the maps, which other metrics share: clone them first")
        self._check_model(f"{task.metric.name}, or {self.group.explainer.method.name} called by it,")

    def _check_model(self, who: str) -> None:
        """Check that the model is as it was.

        Raises:
            RuntimeError: it is not; it is restored.
        """
        changes = self._restored()
        if changes:
            raise RuntimeError(f"{who} left a trace in the model: {changes}. It was restored for what comes next")

    def _restored(self) -> str:
        """What is not as it was in the model, in words, once it is again; empty if nothing was changed."""
        changes = self.before.changes()
        if changes:
            self.before.restore()
            self._forget_maps()
        return changes

    def _forget_maps(self) -> None:
        self.case.__dict__.pop("maps", None)
        self.maps_cost = None

    def _compute_maps(self) -> None:
        if self.maps_error is not None:
            raise self.maps_error
        if self.maps_cost is None:
            started = time.perf_counter()
            self.case.passes = Passes()
            try:
                self.maps_version = self.case.maps._version if self.has_maps else 0
                self._check_model(self.group.explainer.method.name)
            except Exception as error:
                # With less memory for each pass there may be maps.
                self.maps_error = None if is_out_of_memory(error) else error
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
            **about(self.group),
            "method_family": method.family,
            "method_expected": dict(method.expected),
            **({name: getattr(method, name) for name in TOLD} if isinstance(method, Introspection) else {}),
            "metric_function": task.metric.name,
            "metric_version": task.metric.version,
            "metric_family": task.metric.family,
            "metric_options": task.options,
            "headline": task.metric.headline or (method.headline if isinstance(method, Introspection) else ""),
            "direction": task.metric.direction,
            "summary_statistic": task.metric.summary_statistic,
            "forward": self.case.passes.forward if status == "done" else 0,
            "backward": self.case.passes.backward if status == "done" else 0,
            "seconds": seconds,
            **(self.maps_cost or {"maps_forward": 0, "maps_backward": 0, "maps_seconds": 0.0}),
            "remarks": in_words(self.case.remarks),
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no room, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def is_lost_device(error: BaseException) -> bool:
    """Whether nothing can be computed any more on the device in this process."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return any(words in str(error) for words in LOST_DEVICE)
