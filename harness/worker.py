"""A worker of a cluster: makes the driver's plan anew, holds one model with its data, and computes groups of cells."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.digests import digest
from harness.engine import execute, is_lost_device
from harness.plan import Group, numerics, plan
from harness.precision import Precision, set_precision
from harness.progress import silent
from harness.store import Folder
from harness.study import load_study
from harness.subjects import subject_of_entry
from harness.types import InputError, StoppedError

Model = tuple[str, int]
"""The label and the seed of a model: what tells it from the others of its study."""

CACHE = "ATTRIBUTION_HARNESS_CACHE"


@dataclass(frozen=True)
class Job:
    """What a worker needs to make the plan of the driver.

    Attributes:
        study: as it was given to the driver.
        folder: the run folder, absolute.
        device: where models are.
        samples: overrides how many samples of each model's data are used.
        seed: the study's.
        chunk: how many samples go through a model at once.
        cell_seconds: a cell that takes longer is a failure.
        cwd: where the driver is, which relative paths start from.
        threads: of torch; the last bits of a value may depend on it.
        precision: of convolutions and matrix products, likewise.
        cache: where trained networks are kept, if the driver was told.
        save_maps: whether maps are kept.
    """

    study: str | Path | Mapping[str, Any]
    folder: Path
    device: torch.device
    samples: int | None
    seed: int
    chunk: int
    cell_seconds: float | None = None
    cwd: Path = field(default_factory=Path.cwd)
    threads: int = field(default_factory=torch.get_num_threads)
    precision: Precision = "float32"
    cache: str = field(default_factory=lambda: os.environ.get(CACHE, ""))
    save_maps: bool = False


@dataclass(frozen=True)
class Order:
    """A group as a worker finds it in its own plan, and what the driver made it of."""

    model: Model
    block: int
    method: str
    metrics: tuple[str, ...]
    made_of: Mapping[str, str]

    @classmethod
    def of(cls, group: Group) -> "Order":
        """The order to compute a group."""
        cell = group.tasks[0].cell
        metrics = tuple(task.cell.metric for task in group.tasks)
        return cls((cell.model, cell.model_seed), cell.block, cell.method, metrics, made_of(group))


class Worker:
    """One process of the cluster, a Ray actor: it holds a model with its data, one at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model: Model | None = None
        self.groups: dict[tuple[int, str], Group] = {}
        torch.set_num_threads(job.threads)
        set_precision(job.precision)
        if job.cache:
            os.environ[CACHE] = job.cache
        # Another machine need not have it, and a study without relative paths does not need it.
        with suppress(OSError):
            os.chdir(job.cwd)

    def ready(self) -> None:
        """Return as soon as the worker has a place."""

    def compute(self, order: Order) -> None:
        """Compute the unfinished cells of a group into the run folder.

        Raises:
            InputError: the worker does not come to the plan of the driver; says what differs.
            StoppedError: nothing can be written.
        """
        if self.model != order.model:
            # The last model goes before the next one comes, so that there is never room needed for two.
            self.model, self.groups = None, {}
            self.groups = self._plan_of(order.model)
            self.model = order.model
        group = self._found(order)
        job = self.job
        try:
            execute(
                [group],
                Folder(job.folder),
                seed=job.seed,
                chunk=job.chunk,
                cell_seconds=job.cell_seconds,
                progress=silent,
                save_maps=job.save_maps,
            )
        except StoppedError as error:
            if error.__cause__ and is_lost_device(error.__cause__):
                # Another process may have it again. Ray starts that, and the engine puts the cell that did it last.
                os._exit(1)
            raise

    def _found(self, order: Order) -> Group:
        group = self.groups.get((order.block, order.method))
        if group:
            group = replace(group, tasks=tuple(task for task in group.tasks if task.cell.metric in order.metrics))
        mine = made_of(group) if group else {}
        differs = [name for name, value in order.made_of.items() if mine.get(name) != value]
        if group is None or differs:
            raise InputError(
                f"{order.model[0]} · {order.method} is not what it is in the process that planned it, and what differs "
                f"is {' and '.join(differs)}; give {platform.node()} the same code, versions and files"
            )
        return group

    def _plan_of(self, model: Model) -> dict[tuple[int, str], Group]:
        job = self.job
        resolved = load_study(job.study)
        entry = next(each for each in resolved.models if (each.name, each.model_seed) == model)
        subject = subject_of_entry(entry, resolved, device=job.device, samples=job.samples, progress=silent)
        groups = plan([subject], resolved.methods, resolved.metrics, job.seed, resolved.introspections)
        return {(group.tasks[0].cell.block, group.tasks[0].cell.method): group for group in groups}


def made_of(group: Group) -> dict[str, str]:
    """What the values of a group depend on, in words, so that what differs between two machines has a name."""
    subject = group.subject
    return {
        "torch": torch.__version__,
        "the code": digest([task.code for task in group.tasks]),
        "the weights": subject.source.weights,
        "the samples": digest(subject.samples, subject.contents),
        "the explained classes": digest(subject.target),
        "the numerics": digest(numerics(subject)),
        "the keys of the cells": digest([task.cell.key for task in group.tasks]),
    }
