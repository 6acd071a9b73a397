"""What cells cost before they are computed: passes counted on a few samples, times what one measured batch takes."""

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from math import isnan, nan

from torch import nn

from harness.case import Case, Passes
from harness.costs import TRIES, Cost, cost_of, seconds_of
from harness.entries import Introspection
from harness.interrupts import OutOfTimeError, can_limit, within
from harness.introspecting import Samples, introspect
from harness.plan import Cell, Group, Task
from harness.space import InputSpace
from harness.store import Store
from harness.subjects import Subject
from harness.training import Progress
from harness.types import Score

FEW = 2
"""How many samples passes are counted on."""

PATIENCE = 60.0
"""Seconds after which nobody waits for a count."""

TRAINS = {"recipe"}
"""What metrics need that train networks while they are at it, which is not tried out."""


@dataclass(frozen=True)
class Estimate:
    """What a cell costs: sample-passes, and seconds; NaN where it is not known."""

    forward: float
    backward: float
    seconds: float


@dataclass(frozen=True)
class Speed:
    """What a model takes for one sample: seconds without a graph, in the form for that, and with both passes.

    Attributes:
        cost: of one batch of the model as it is.
        inference: seconds of a forward pass in the model's form for inference.
    """

    cost: Cost
    inference: float

    def seconds(self, forward: float, backward: float) -> float:
        """How long so many passes take."""
        both = (self.cost.forward_seconds + self.cost.backward_seconds) / self.cost.batch
        return max(forward - backward, 0.0) * self.inference + backward * both


@dataclass(frozen=True)
class _Count:
    """What a metric needs for one sample besides maps, and how many maps; statistics for each of the model's own."""

    forward: float
    backward: float
    explained: float
    statistics: float = 0.0


def estimates_of(
    groups: Sequence[Group], store: Store, *, chunk: int, progress: Progress
) -> tuple[dict[Cell, Estimate], dict[str, Speed]]:
    """The cost of every cell of a plan, and what was measured of each model.

    Passes of a method, and of a metric besides its maps, are counted on two samples; the first method of a block also
    pays for what all share. Seconds are those of the passes alone, so at least, unless cells of the same metric are
    finished already: then by as much more as these have taken. An introspection looks at all samples at once, and much
    of what it does are no passes: it is asked of the trained network once, and that counts for each network that is to
    be asked.

    Args:
        groups: the plan.
        store: what is finished.
        chunk: the size of the batch that is measured.
        progress: told before each count.
    """
    found: dict[Cell, Estimate] = {}
    speeds: dict[str, Speed] = {}
    models: dict[int, list[Group]] = {}
    for group in groups:
        models.setdefault(id(group.subject.source), []).append(group)
    for position, members in enumerate(models.values()):
        subject = members[0].subject
        speed = speeds.setdefault(subject.label, _speed(subject, chunk))

        def tell(what: str, share: float, position: int = position, label: str = subject.label) -> None:
            progress("estimate", (position + share) / len(models), f"{label} · {what}")

        of_maps = [group for group in members if not isinstance(group.explainer.method, Introspection)]
        if of_maps:
            found |= _of_model(of_maps, speed, tell)
        of_networks = [group for group in members if isinstance(group.explainer.method, Introspection)]
        tried = _few(subject) if of_networks else subject
        for index, group in enumerate(of_networks):
            tell(group.explainer.method.name, index / len(of_networks))
            found |= _of_networks(group, tried, chunk, speed)
    progress("estimate", 1.0, "")
    return _as_experienced(found, store), speeds


def makespan(groups: Sequence[Group], seconds: Mapping[Cell, float], workers: int) -> float:
    """How long so many workers take that each compute one group at a time, the longest first."""
    loads = [0.0] * workers
    for load in sorted((sum(seconds.get(task.cell, 0.0) for task in group.tasks) for group in groups), reverse=True):
        heapq.heapreplace(loads, loads[0] + load)
    return max(loads)


def _speed(subject: Subject, chunk: int) -> Speed:
    x, form = subject.first(chunk).x, subject.inference
    cost = cost_of(subject.source.model, x)
    return Speed(cost, min(seconds_of(lambda: form.logits(x), x.device) for _ in range(TRIES)) / len(x))


def _of_model(groups: Sequence[Group], speed: Speed, tell: Callable[[str, float], None]) -> dict[Cell, Estimate]:
    """The cost of the cells of one model."""
    first = [group for group in groups if group.tasks and group.tasks[0].cell.block == 0]
    tried = _few(groups[0].subject)
    total = len(first) + (len(first[0].tasks) if first else 0)
    methods: dict[str, Passes | None] = {}
    for position, group in enumerate(first):
        label = group.tasks[0].cell.method
        tell(label, position / total)
        methods[label] = _passes(replace(group, subject=tried).case(seed=0, chunk=FEW), lambda case: case.maps)
    metrics: dict[str, tuple[_Count, _Count] | None] = {}
    for position, task in enumerate(first[0].tasks if first else ()):
        label = task.cell.metric
        tell(label, (len(first) + position) / total)
        metrics[label] = _counts(label, first, methods, tried)
    found: dict[Cell, Estimate] = {}
    paid: set[tuple[int, str]] = set()
    for group in groups:
        found |= _of_group(group, methods, metrics, paid, speed)
    return found


def _few(subject: Subject) -> Subject:
    """A few samples of the subject, with a source that shares its form for inference only, and cheap statistics."""
    few = subject.first(FEW)
    x = few.x
    return replace(few, source=replace(subject.source, shared={}, calibrate=lambda: x))


def _passes(case: Case, use: Callable[[Case], object]) -> Passes | None:
    """What the case counts meanwhile; None if it cannot be done, or not soon."""
    case.passes = Passes()
    try:
        with within(PATIENCE if can_limit() else None):
            use(case)
    except (Exception, OutOfTimeError):  # it will say so itself when it is its turn
        return None
    return case.passes


def _counts(
    metric: str, groups: Sequence[Group], methods: Mapping[str, Passes | None], tried: Subject
) -> tuple[_Count, _Count] | None:
    """What a metric costs the first method of a block, and every other, counted on the cheapest one that it suits."""
    suiting: list[tuple[float, int, Task, Group, Passes]] = []
    for group in groups:
        task = next(task for task in group.tasks if task.cell.metric == metric)
        passes = methods[task.cell.method]
        if not task.lacks and passes and not TRAINS & set(task.metric.needs):
            suiting.append((passes.forward + passes.backward, len(suiting), task, group, passes))
    if not suiting:
        return None
    _, _, task, group, maps = min(suiting, key=lambda each: each[:2])
    tried.source.shared.clear()
    found = []
    for _ in range(2):
        case = replace(group, subject=tried).case(seed=0, chunk=FEW)
        if _passes(case, lambda case: case.maps) is None:
            return None
        passes = _passes(case, lambda case: list(task.metric.function(case, **task.options)))
        if passes is None:
            return None
        found.append(_besides(maps, passes))
    return found[0], found[1]


def _besides(maps: Passes, passes: Passes) -> _Count:
    """What is left of the passes of a metric without those that made maps, for one sample."""
    explained = passes.explained / FEW
    forward = passes.forward - passes.statistics - explained * maps.forward
    backward = passes.backward - explained * maps.backward
    return _Count(max(forward, 0.0) / FEW, max(backward, 0.0) / FEW, explained, passes.statistics / FEW)


def _of_group(
    group: Group,
    methods: Mapping[str, Passes | None],
    metrics: Mapping[str, tuple[_Count, _Count] | None],
    paid: set[tuple[int, str]],
    speed: Speed,
) -> dict[Cell, Estimate]:
    """The cost of the cells of one group; `paid` holds the blocks and metrics whose shared part is accounted for."""
    found: dict[Cell, Estimate] = {}
    samples, made = len(group.subject.rows), False
    for task in group.tasks:
        cell, maps = task.cell, methods[task.cell.method]
        counts = metrics[cell.metric]
        if task.lacks:
            found[cell] = Estimate(0.0, 0.0, 0.0)
        elif maps is None or counts is None:
            found[cell] = Estimate(nan, nan, nan)
        else:
            count = counts[(cell.block, cell.metric) in paid]
            # The maps of the trained model are made once, for the first metric.
            explained = count.explained + (not made)
            forward = samples * (count.forward + explained * maps.forward / FEW)
            backward = samples * (count.backward + explained * maps.backward / FEW)
            if cell.block == 0:
                forward += count.statistics * len(group.subject.source.calibration)
            paid.add((cell.block, cell.metric))
            made = True
            found[cell] = Estimate(forward, backward, speed.seconds(forward, backward))
    return found


def _of_networks(group: Group, tried: Subject, chunk: int, speed: Speed) -> dict[Cell, Estimate]:
    """The cost of the cells of one introspection; the first of a model also pays for statistics that all share."""
    found = {task.cell: Estimate(0.0, 0.0, 0.0) if task.lacks else Estimate(nan, nan, nan) for task in group.tasks}
    applies = [task for task in group.tasks if not task.lacks]
    if not applies or TRAINS & set(group.explainer.method.needs):
        return found
    case = replace(group, subject=replace(group.subject, source=tried.source)).case(seed=0, chunk=chunk)
    started = time.perf_counter()
    once = _passes(case, introspect)
    seconds = time.perf_counter() - started
    for task in applies:
        asked = _asked(case, task) if once else None
        if once and asked:
            networks, statistics = asked[0], asked[1].statistics / FEW * len(group.subject.source.calibration)
            found[task.cell] = Estimate(
                networks * once.forward + statistics,
                float(networks * once.backward),
                networks * seconds + speed.seconds(statistics, 0.0),
            )
    return found


def _asked(case: Case, task: Task) -> tuple[int, Passes] | None:
    """Of how many networks a metric asks an introspection, and its passes besides; None if that cannot be tried."""
    asked, entry = 0, case.explainer.method

    @wraps(entry.function)
    def says_nothing(model: nn.Module, space: InputSpace, data: Samples, **options: object) -> Iterator[Score]:
        nonlocal asked
        asked += 1
        return iter(())

    case = replace(case, explainer=replace(case.explainer, method=replace(entry, function=says_nothing)))
    passes = _passes(case, lambda case: list(task.metric.function(case, **task.options)))
    return (asked, passes) if passes else None


def _as_experienced(found: Mapping[Cell, Estimate], store: Store) -> dict[Cell, Estimate]:
    """The same, with the seconds that finished cells of the same metric have taken beyond those of their passes."""
    spent: dict[str, list[tuple[float, float]]] = {}
    for cell, estimate in found.items():
        info = store.info(cell)
        if info and info["status"] == "done":
            spent.setdefault(cell.metric, []).append((float(info["seconds"]), estimate.seconds))
    told = {}
    for cell, estimate in found.items():
        known = [(taken, guess) for taken, guess in spent.get(cell.metric, []) if guess > 0]
        if known and not isnan(estimate.seconds):
            factor = sum(taken for taken, _ in known) / sum(guess for _, guess in known)
            estimate = replace(estimate, seconds=estimate.seconds * factor)
        elif isnan(estimate.seconds) and cell.metric in spent:
            taken = [seconds for seconds, _ in spent[cell.metric]]
            estimate = replace(estimate, seconds=sum(taken) / len(taken))
        told[cell] = estimate
    return told
