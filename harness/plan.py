"""From subjects, methods and metrics to cells, each with the key under which its result is stored."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness import catalogue
from harness.case import Case, Explainer
from harness.digests import digest
from harness.entries import FILLED_BY_NAME, GLOBAL, Introspection, Method, Metric
from harness.models.loaded import LoadedModel
from harness.space import SPATIAL_AXES, InputSpace
from harness.study import Chosen
from harness.subjects import Subject
from harness.types import InputError

NEEDS: dict[str, Callable[[Subject, Explainer], str]] = {
    "claim": lambda _, explainer: "" if explainer.conserves else "makes no completeness claim",
    "partner": lambda subject, _: (
        "" if subject.source.school else "the model has no recipe, so no partner trained on permuted labels"
    ),
    "recipe": lambda subject, _: (
        ""
        if subject.source.school and subject.source.school.teachable
        else "the model has no recipe with a labelled training part, so nothing can be re-trained"
    ),
    "background": lambda subject, _: (
        ""
        if subject.source.read_background
        else "needs background samples: pass background=, a tensor of them, such as training data"
    ),
    "masks": lambda subject, _: (
        "" if subject.reader.data.read_mask else "the data say of no sample where the truth lies"
    ),
    "truth": lambda subject, _: (
        "" if hasattr(subject.source.model, "contributions") else "no map is known to be right for this model"
    ),
    "parts": lambda subject, _: "" if subject.reader.data.read_parts else "the data do not say what parts samples have",
    "labels": lambda subject, _: "" if subject.reader.data.labels is not None else "the samples have no labels",
    "image": lambda subject, _: "" if subject.space.kind == "image" else f"needs images, got a {subject.space.kind}",
    "spatial": lambda subject, _: "" if SPATIAL_AXES[subject.space.kind] else "needs positions, got a table",
}
"""Name of a need -> why a subject and explainer lack it; empty if they do not."""

USES: dict[str, Callable[[LoadedModel], str]] = {
    "recipe": lambda source: source.recipe_identity,
    "retrained": lambda source: source.retrained_weights,
    "second_partner": lambda source: source.second_partner_weights,
}
"""Name of what a metric may use -> a hash of it, empty if there is none; asking for a network trains it."""

CONTENTS: dict[str, Callable[[Subject], str]] = {
    "masks": lambda subject: subject.truth_contents,
    "parts": lambda subject: subject.parts_contents,
}
"""Name of a need of a metric that the data meet -> a hash of what they say."""


@dataclass(frozen=True)
class Cell:
    """One (model, method, metric, block). The key says what its values depend on, the labels what it is called."""

    key: str
    model: str
    model_seed: int
    dataset: str
    method: str
    metric: str
    block: int


@dataclass(frozen=True)
class Task:
    """A cell with what it takes to compute it.

    Attributes:
        cell: its key and labels.
        metric: the metric.
        options: the metric's options.
        lacks: why it is not applicable, or empty.
        code: a hash of the code that computes it.
    """

    cell: Cell
    metric: Metric
    options: dict[str, Any]
    lacks: str
    code: str


@dataclass(frozen=True)
class Group:
    """The tasks that share maps: one block of one subject, one method."""

    subject: Subject
    explainer: Explainer
    tasks: tuple[Task, ...]

    def case(self, *, seed: int, chunk: int) -> Case:
        """What the metrics of this group see."""
        subject = self.subject
        parts = any("parts" in task.metric.needs for task in self.tasks)
        return Case(
            model=subject.source.model,
            source=subject.source,
            explainer=self.explainer,
            x=subject.x,
            target=subject.target,
            samples=subject.samples,
            space=subject.space,
            seed=seed,
            chunk=chunk,
            inference=subject.inference,
            masks=subject.masks,
            of_another=subject.of_another,
            no_truth=subject.no_truth,
            parts=subject.parts if parts else None,
            labels=subject.labels,
            classes=tuple(subject.reader.data.classes),
        )


def plan(
    subjects: Sequence[Subject],
    methods: Sequence[Chosen],
    metrics: Sequence[Chosen],
    seed: int,
    introspections: Sequence[Chosen] = (),
) -> list[Group]:
    """All groups of cells, in the order in which they are computed.

    Metrics of the family `global` ask introspections, each of which sees all samples of a model at once; the others
    test the maps of methods.

    Raises:
        InputError: a named fill or baseline cannot be had in a subject's input space, or maps that were made elsewhere
            are not those of its samples.
    """
    groups = []
    of_networks = [metric for metric in metrics if metric.entry.family == GLOBAL]
    of_maps = [metric for metric in metrics if metric.entry.family != GLOBAL]
    for subject in subjects:
        _check_fixed(subject, methods, len(subjects))
        for index, block in enumerate(subject.blocks()):
            for chosen in methods:
                assert isinstance(chosen.entry, Method)
                explainer = Explainer(chosen.entry, _named(chosen, subject.space))
                if chosen.added and lacking(subject, explainer):
                    continue
                tasks = tuple(_task(block, index, chosen, explainer, metric, seed) for metric in of_maps)
                groups.append(Group(block, explainer, tasks))
        for chosen in introspections:
            assert isinstance(chosen.entry, Introspection)
            explainer = Explainer(chosen.entry, dict(chosen.options))
            tasks = tuple(_task(subject, 0, chosen, explainer, metric, seed) for metric in of_networks)
            groups.append(Group(subject, explainer, tasks))
    return groups


def lacking(subject: Subject, explainer: Explainer, needs: tuple[str, ...] = ()) -> str:
    """Why a method, and a metric with these needs, do not apply to a subject; empty if they do."""
    reasons = (NEEDS[need](subject, explainer) for need in (*explainer.method.needs, *needs))
    return next((f"{explainer.method.name}: {reason}" for reason in reasons if reason), "")


def identity_of(explainer: Explainer, subject: Subject) -> tuple[object, ...]:
    """What maps depend on besides the model, the samples, the seed and the numerics."""
    method = explainer.method
    # Appended and not always there, so that the keys of all others stay what they were.
    background = (subject.source.background_contents,) if "background" in method.needs else ()
    masks = (subject.masks,) if "masks" in method.needs else ()
    contents: tuple[object, ...] = (method.contents,) if method.contents else ()
    if isinstance(method, Introspection):
        contents = (subject.labels, subject.reader.data.classes, *(USES[each](subject.source) for each in method.uses))
    return (method.name, method.version, sorted(explainer.options.items()), *background, *masks, *contents)


def numerics(subject: Subject) -> tuple[str, str, str, str]:
    """(device type, dtype, matmul precision, model form): what may change the last bits of a value."""
    return (
        subject.reader.device.type,
        str(subject.reader.dtype),
        torch.get_float32_matmul_precision(),
        subject.inference.form,
    )


def code_hash(*functions: Callable[..., Any]) -> str:
    """A hash of our own source files and of those of the functions; stored with every cell, not part of its key."""
    packages = (catalogue.__file__, catalogue.methods.__file__, catalogue.metrics.__file__)
    files = {file for package in packages for file in Path(str(package)).parent.rglob("*.py")}
    files |= {Path(file) for each in functions if (file := inspect.getsourcefile(inspect.unwrap(each)))}
    return digest(*(content_of(file) for file in sorted(files, key=lambda f: f.parts[-2:]) if file.is_file()))


@cache
def content_of(file: Path) -> bytes:
    """The bytes of a source file, as they were when they were first asked for."""
    return file.read_bytes()


def _check_fixed(subject: Subject, methods: Sequence[Chosen], subjects: int) -> None:
    """Check that methods whose maps exist already have them for this subject.

    Raises:
        InputError: they do not, or nobody knows of which of several models they are.
    """
    for chosen in methods:
        assert isinstance(chosen.entry, Method)
        reason = chosen.entry.refusal(subject.samples, subject.target, tuple(subject.source.example.shape[1:]))
        if chosen.entry.fixed and subjects > 1:
            reason = f"maps that were made elsewhere are of one model, and the study has {subjects}: give each a study"
        if reason:
            raise InputError(f"{chosen.label}: {reason}")


def _task(block: Subject, index: int, method: Chosen, explainer: Explainer, metric: Chosen, seed: int) -> Task:
    assert isinstance(metric.entry, Metric)
    options = _named(metric, block.space)
    key = digest(
        block.source.identity,
        block.source.partner_weights if "partner" in metric.entry.needs else "",
        block.samples,
        block.contents,
        block.target,
        block.space,
        identity_of(explainer, block),
        (metric.entry.name, metric.entry.version, sorted(options.items())),
        seed,
        numerics(block),
        # Appended and not always there, so that the keys of all others stay what they were.
        *(USES[each](block.source) for each in metric.entry.uses),
        *(CONTENTS[each](block) for each in metric.entry.needs if each in CONTENTS),
    )
    cell = Cell(key, block.label, block.source.model_seed, block.dataset, method.label, metric.label, index)
    code = code_hash(explainer.method.function, metric.entry.function)
    # A fill that nobody named, and that cannot be had, is no fault of the study.
    lacks = block.space.refusal(options["fill"], "fill") if "fill" in options else ""
    return Task(cell, metric.entry, options, lacks or lacking(block, explainer, metric.entry.needs), code)


def _named(chosen: Chosen, space: InputSpace) -> dict[str, Any]:
    """The options, with fills and baselines that were not named: the entry's own, else those of the input space.

    Raises:
        InputError: a named one cannot be had there.
    """
    options = dict(chosen.options)
    for name in FILLED_BY_NAME:
        if name in chosen.entry.options:
            own = chosen.entry.options[name].default
            options.setdefault(name, space.default_fill if own is inspect.Parameter.empty else own)
            reason = space.refusal(options[name], name)
            if reason and name in chosen.options:
                raise InputError(f"{chosen.label}: {name}: {reason}")
    return options
