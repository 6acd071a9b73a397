"""Past one process: Ray computes the cells of a plan, by workers of which each has an accelerator to itself."""

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from socket import create_connection
from typing import Any, Literal

from harness.entries import UnknownNameError
from harness.kept_maps import lacks_maps
from harness.plan import Group, Task
from harness.store import Folder
from harness.training import Progress
from harness.types import InputError, StoppedError
from harness.worker import Job, Order, Worker

Engine = Literal["process", "ray"]
"""Where cells are computed: in the process itself, or by the workers of a Ray cluster."""

RETRIES = 3
"""How many workers a group may cost beyond the first: one of its cells may be what kills them."""

REACHED_WITHIN = 10
"""Seconds that a cluster may take to answer."""

STORE_BYTES = 2**27
"""Of Ray's own object store on this machine. Results go through files, so that it stays almost empty."""


def check_engine(engine: Engine, address: str | None) -> None:
    """Check that cells can be computed there, before anything is.

    Raises:
        InputError: no such engine, an address where there is nothing or that nothing needs, or Ray is not installed.
    """
    if engine not in ("process", "ray"):
        raise InputError(f"--engine is process or ray, got {engine!r}")
    if address is not None and engine != "ray":
        raise InputError(f"--address {address} is that of a Ray cluster: it needs --engine ray")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs ray: pip install 'attribution-harness[ray]'")
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            # Ray itself would go on trying for minutes.
            create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--address {address}: no Ray cluster there: {error}") from None


def execute_on_ray(
    groups: Sequence[Group],
    job: Job,
    *,
    address: str | None,
    progress: Progress,
    weight: Callable[[Task], float] = lambda _: 1.0,
) -> None:
    """Compute every unfinished cell on a cluster, as `harness.engine.execute` does in the process.

    Args:
        groups: the plan.
        job: what workers need to make it themselves.
        address: of a running cluster; without one, a cluster on this machine lives as long as the call.
        progress: told after each group.
        weight: how much of the whole work a task is.

    Raises:
        InputError: there is no such cluster, it has no room for a worker, or its workers come to another plan.
        StoppedError: a worker cannot write.
    """
    store = Folder(job.folder)
    waiting: dict[tuple[str, ...], Group] = {}
    for group in groups:
        if _unfinished(group, store) or (job.save_maps and lacks_maps(group, store, job.seed)):
            # By key, so that a cell that has several labels has one writer.
            waiting.setdefault(tuple(task.cell.key for task in group.tasks), group)
    total = sum(weight(task) for group in groups for task in group.tasks) or 1.0

    def tell(left: Sequence[Group], detail: str) -> None:
        progress("cells", 1 - sum(weight(task) for group in left for task in group.tasks) / total, detail)

    if waiting:
        with _connected(address) as (ray, borrowed):
            workers = _hired(ray, job, len(waiting))
            try:
                _share_out(ray, workers, list(waiting.values()), store, tell)
            finally:
                # Otherwise they end with the connection. They do so at once, also after an interrupt: a cell is either
                # finished or not there.
                for worker in workers if borrowed else ():
                    ray.kill(worker)
    progress("cells", 1.0, "")


@contextmanager
def _connected(address: str | None) -> Iterator[tuple[Any, bool]]:
    """Ray, connected as it is already, to the cluster at the address, or to one of its own on this machine.

    Yields:
        Ray, and whether the connection is somebody else's.

    Raises:
        InputError: there is no cluster at the address, or Ray is connected to one already.
    """
    import ray

    if ray.is_initialized():
        if address:
            raise InputError(f"--address {address}: Ray is connected already; without an address that cluster is used")
        yield ray, True
        return
    # A study tells nobody that it was run.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        # Ray puts the folder that it is connected from before all modules of the workers: a user's queue.py would be
        # found there first.
        with chdir(os.sep):
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"--address {address}: no Ray cluster to join" if address else "Ray does not start"
        raise InputError(f"{where}: {error}") from error
    try:
        yield ray, False
    finally:
        ray.shutdown()


def _hired(ray: Any, job: Job, groups: int) -> list[Any]:
    """As many workers as have a place and something to do.

    Raises:
        InputError: no machine of the cluster has room for one.
    """
    if job.device.type == "cuda":
        kind, amount, hint = "GPU", 1, ""
        resources = {"num_gpus": 1, "num_cpus": 0}
    else:
        kind, amount, hint = "CPU", job.threads, ", as many as torch has threads here: set OMP_NUM_THREADS to fewer"
        resources = {"num_cpus": job.threads}
    places = sum(int(node["Resources"].get(kind, 0) // amount) for node in ray.nodes() if node["Alive"])
    if not places:
        raise InputError(f"--engine ray: no machine of the cluster has {amount} {kind} for a worker{hint}")
    hired = ray.remote(Worker).options(**resources, max_restarts=-1, max_task_retries=RETRIES)
    return [hired.remote(job) for _ in range(min(places, groups))]


def _share_out(
    ray: Any,
    workers: Sequence[Any],
    waiting: list[Group],
    store: Folder,
    tell: Callable[[Sequence[Group], str], None],
) -> None:
    """Give each worker a group, and another one when it has done that, until none is left."""
    # A worker that gets no place, in a cluster that others use as well, keeps no group from being computed.
    running: dict[Any, tuple[Any, Group | None]] = {worker.ready.remote(): (worker, None) for worker in workers}
    last = None
    while left := [*waiting, *(group for _, group in running.values() if group)]:
        cell = last.tasks[0].cell if last else None
        tell(left, f"{cell.model} · {cell.method}" if cell else f"workers: {len(workers)}")
        (done, *_), _ = ray.wait(list(running))
        worker, last = running.pop(done)
        waiting += _left_of(ray, done, last, store)
        following = _next(waiting, last, [group for _, group in running.values() if group])
        if following:
            running[worker.compute.remote(Order.of(following))] = worker, following
        else:
            # Its place is for a worker that has lost its own.
            ray.kill(worker)


def _left_of(ray: Any, done: Any, group: Group | None, store: Folder) -> list[Group]:
    """What is still to be computed of a group: nothing, unless it was the death of too many workers.

    Then each of its unfinished cells is on its own, and one that is already has failed.

    Raises:
        InputError: the worker does not come to the plan of the driver.
        StoppedError: it cannot write.
    """
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for kind, kinds in ((InputError, InputError | UnknownNameError), (StoppedError, StoppedError)):
            if isinstance(error.cause, kinds):
                raise kind(f"on a Ray worker: {error.cause}") from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        if group is None:
            raise
        unfinished = _unfinished(group, store)
        if len(unfinished) > 1:
            return [replace(group, tasks=(task,)) for task in unfinished]
        for task in unfinished:
            # One that made its worker lose the device has left more to read.
            if store.failure(task.cell) is None:
                lost = f"WorkerLost: {RETRIES + 1} Ray workers died while they computed this cell"
                store.fail(task.cell, {"error": lost, "traceback": str(error)})
    return []


def _unfinished(group: Group, store: Folder) -> list[Task]:
    return [task for task in group.tasks if store.info(task.cell) is None]


def _next(waiting: list[Group], last: Group | None, others: Sequence[Group]) -> Group | None:
    """Take what a worker computes next: a group of the model that it holds, else of one that the fewest others hold."""
    held = Counter(id(group.subject.source) for group in others)

    def costs(position: int) -> tuple[bool, int]:
        source = waiting[position].subject.source
        return not last or source is not last.subject.source, held[id(source)]

    return waiting.pop(min(range(len(waiting)), key=costs)) if waiting else None
