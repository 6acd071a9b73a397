"""Subjects: a model together with the samples on which it is explained, checked before anything is computed."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.catalogue import DATA, MODELS
from harness.data import Data
from harness.digests import digest
from harness.findings import in_model, in_output, in_repetition, in_samples, refuse
from harness.inference import CHECKED, Inference
from harness.model_entries import DataEntry, ModelEntry, head_of
from harness.models import ModelSource
from harness.models.loaded import LoadedModel
from harness.models.loading import Wanted, load_model
from harness.planted import doubt
from harness.random import Draws
from harness.registry import split_source
from harness.space import InputSpace
from harness.study import Resolved
from harness.training import Progress
from harness.types import InputError

Target = Literal["predicted", "label", "runner_up"] | int
"""Which class is explained, as a policy."""

SAMPLES_A_BLOCK = 256
SMALLEST_READ = 16
NAMED = 5


class Reader:
    """Reads samples onto the model's device and keeps the last block, which all methods ask for in turn."""

    def __init__(self, data: Data, device: torch.device, dtype: torch.dtype) -> None:
        self.data, self.device, self.dtype = data, device, dtype
        self._rows: tuple[int, ...] = ()
        self._x: Tensor | None = None

    def read(self, rows: tuple[int, ...]) -> Float[Tensor, "m ..."]:
        """These samples."""
        if self._x is None or self._rows != rows:
            self._x = None  # before the next block comes, so that there is never room needed for two
            self._x, self._rows = self.placed(self.data.batch(rows)), rows
        return self._x

    def placed(self, values: Tensor) -> Tensor:
        """Numbers where the model is, of its type."""
        return values.to(self.device, self.dtype)


@dataclass(frozen=True)
class Subject:
    """A model, the samples it is explained on and the explained class of each.

    Attributes:
        label: the model's name in the study.
        source: the loaded model.
        reader: reads the samples.
        rows: which samples of the data they are.
        target: the explained classes.
        contents: a hash of each sample.
        skipped: what could not be read.
        no_truth: why the masks are no truth for this model, although they were planted to be; empty if they are.
    """

    label: str
    source: LoadedModel
    reader: Reader
    rows: tuple[int, ...]
    target: Int[Tensor, " n"]
    contents: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    no_truth: str = ""

    @property
    def dataset(self) -> str:
        """The name of the data."""
        return self.reader.data.name

    @property
    def space(self) -> InputSpace:
        """What the numbers in `x` mean."""
        return self.reader.data.space

    @cached_property
    def samples(self) -> tuple[str, ...]:
        """A stable id for each sample."""
        return tuple(self.reader.data.ids[row] for row in self.rows)

    @property
    def x(self) -> Float[Tensor, "n ..."]:
        """The samples on the model's device, read when they are asked for."""
        return self.reader.read(self.rows)

    @property
    def inference(self) -> Inference:
        """The form of the model for passes without a gradient."""
        return self.source.inference(lambda: self.reader.read(self.rows[:CHECKED]))

    @property
    def masks(self) -> Float[Tensor, "n ..."] | None:
        """Where in the samples the truth lies, on the model's device; None if the data do not say it."""
        masks = self.reader.data.masks(self.rows)
        return None if masks is None else self.reader.placed(masks)

    @property
    def parts(self) -> tuple[Float[Tensor, "n parts *axes"], Float[Tensor, "n parts ..."]] | None:
        """Where the parts of each sample are, and the samples without each part; None if the data have no parts."""
        read = self.reader.data.read_parts
        if read is None:
            return None
        where, without = zip(*map(read, self.rows), strict=True)
        return self.reader.placed(torch.stack(where)), self.reader.placed(torch.stack(without))

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """The true classes, on the model's device; None where the data do not say them."""
        labels = self.reader.data.labels
        return None if labels is None else labels[torch.tensor(self.rows)].to(self.target.device)

    @cached_property
    def of_another(self) -> Bool[Tensor, " n"] | None:
        """Where the masks, which are of the label, are of another class than the explained one; None without labels."""
        labels = self.labels
        return None if labels is None or self.reader.data.read_mask is None else labels != self.target

    @cached_property
    def truth_contents(self) -> str:
        """A hash of what the data say of where the truth lies."""
        return digest(self.masks, self.of_another, self.no_truth)

    @cached_property
    def parts_contents(self) -> str:
        """A hash of the parts."""
        return digest(*(self.parts or ()))

    def blocks(self) -> list["Subject"]:
        """The subject in parts of at most 256 samples."""
        return [self._part(start, start + SAMPLES_A_BLOCK) for start in range(0, len(self.rows), SAMPLES_A_BLOCK)]

    def first(self, count: int) -> "Subject":
        """The subject with its first samples only."""
        return self._part(0, count)

    def _part(self, start: int, stop: int) -> "Subject":
        part = slice(start, stop)
        return replace(self, rows=self.rows[part], target=self.target[part], contents=self.contents[part])


def load_source(entry: ModelEntry, base: Path) -> ModelSource:
    """The model source that an entry names."""
    kind, argument = split_source(entry.source, MODELS)
    source: ModelSource = kind.load(argument, entry.options, base=base)
    return source


def load_data(wanted: DataEntry, base: Path, source: ModelSource | None = None, weights: str | None = None) -> Data:
    """The data that an entry names, prepared as the model's weights want it where the entry does not say how."""
    kind, argument = split_source(wanted.source, DATA)
    preprocessing = source.preprocessing(weights) if source else None
    data: Data = kind.load(argument, wanted.options, base=base, preprocessing=preprocessing)
    return data


def load_entry(
    entry: ModelEntry, base: Path, *, seed: int, device: torch.device, progress: Progress
) -> tuple[LoadedModel, Data]:
    """The model and the data that a study's model entry names; trains the model if that has not been done before."""
    assert isinstance(entry.data, DataEntry)
    source = load_source(entry, base)
    data = load_data(entry.data, base, source, entry.weights)
    wanted = Wanted(entry.weights, head_of(entry), entry.model_seed, base, entry.recipe, entry.compiled)
    return load_model(source, data, wanted, seed=seed, device=device, progress=progress), data


def subject_of_entry(
    entry: ModelEntry, resolved: Resolved, *, device: torch.device, samples: int | None, progress: Progress
) -> Subject:
    """The subject that a study's model entry names, after everything that would make results wrong is ruled out.

    Raises:
        InputError: the model or the samples cannot give right numbers; says which and what to do.
    """
    assert isinstance(entry.data, DataEntry)
    study = resolved.study
    model, data = load_entry(entry, resolved.base, seed=study.seed, device=device, progress=progress)
    wanted = entry.data.model_copy(update={"samples": samples or entry.data.samples})
    return checked_subject(entry.name, model, data, wanted, study.target, progress)


def candidates(data: Data, select: str) -> Sequence[int]:
    """The rows of the data in the order in which a selection goes through them.

    `first` takes them as they come. Otherwise one of each class after the other, in an order within the class that
    is random but fixed by the ids, so that a smaller selection is the beginning of a larger one.

    Raises:
        InputError: the selection needs labels, and there are none.
    """
    if select == "first":
        return range(len(data))
    if data.labels is None:
        raise InputError(f"{data.name}: select: {select} needs labels, and these samples have none")
    shuffled = Draws.of([data.name], "selection").permutation(len(data))[0].numpy()
    labels = data.labels.numpy()[shuffled]
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.arange(len(order)) - starts  # how many of its class come before it
    rows: list[int] = shuffled[order][np.lexsort((labels[order], turn))].tolist()
    return rows


def checked_subject(
    label: str,
    model: LoadedModel,
    data: Data,
    wanted: DataEntry,
    policy: Target,
    progress: Progress,
) -> Subject:
    """The subject, once all its samples went through the model and nothing was wrong.

    Raises:
        InputError: something is, or there are not enough samples.
    """
    parameter = next(model.model.parameters(), model.example)
    reader = Reader(data, model.example.device, parameter.dtype)
    notes = dict.fromkeys(refuse(in_model(model.model)))
    rows: list[int] = []
    explained: list[Tensor] = []
    contents: list[str] = []
    skipped: list[str] = []
    order = candidates(data, wanted.select)
    count = wanted.samples or len(order)
    for batch in _batches(order, count, rows):
        readable, cpu, errors = data.readable(batch)
        skipped += errors
        if not readable:
            continue
        ids = [data.ids[row] for row in readable]
        x = cpu.to(reader.device, reader.dtype)
        data.space.check(x)
        logits = _logits(model.model, x, ids, data.space, notes, first=not rows)
        y = None if data.labels is None else data.labels[torch.tensor(readable)].to(reader.device)
        if wanted.select == "correct" or policy == "label":
            _check_classes(data, logits.shape[1])
        target = targets(policy, logits, y, ids)
        right = torch.ones_like(target, dtype=torch.bool)
        if wanted.select == "correct" and y is not None:
            right = logits.argmax(1) == y
        kept = right.nonzero()[: count - len(rows), 0]
        explained.append(target[kept])
        rows += [readable[each] for each in kept.tolist()]
        contents += [digest(cpu[each]) for each in kept.tolist()]
        progress("samples", len(rows) / count, label)
    progress("samples", 1.0, label)
    if not rows or (wanted.samples and len(rows) < wanted.samples):
        asked = f"{wanted.samples} samples asked for" if wanted.samples else "no samples"
        raise InputError(f"{label}: {asked}, {data.name} has {len(rows)} ({wanted.select})")
    if skipped:
        notes[f"{len(skipped)} samples were skipped: {'; '.join(skipped[:NAMED])}"] = None
    target = torch.cat(explained)
    no_truth = ""
    if data.planted:
        no_truth = doubt(model.model, data, partial(_explained, policy, data), reader.placed)
        notes |= dict.fromkeys([no_truth] if no_truth else [])
    for note in notes:
        warnings.warn(f"{label}: {note}", stacklevel=5)
    return Subject(label, model, reader, tuple(rows), target, tuple(contents), tuple(skipped), no_truth)


def _explained(
    policy: Target, data: Data, logits: Float[Tensor, "n classes"], rows: Sequence[int]
) -> Int[Tensor, " n"]:
    """The explained class of these rows of the data."""
    labels = None if data.labels is None else data.labels[torch.tensor(rows)].to(logits.device)
    return targets(policy, logits, labels, [data.ids[row] for row in rows])


def _logits(
    model: nn.Module, x: Tensor, ids: Sequence[str], space: InputSpace, notes: dict[str, None], *, first: bool
) -> Float[Tensor, "n classes"]:
    """The model's output for samples with which nothing is wrong; adds to `notes` what there is to warn of.

    Raises:
        InputError: the samples or the output cannot give right numbers.
    """
    notes |= dict.fromkeys(refuse(in_samples(x, space, ids)))
    with torch.no_grad():
        logits = model(x.clone())
    notes |= dict.fromkeys(refuse(in_output(logits, ids)))
    if first:
        notes |= dict.fromkeys(refuse(in_repetition(model, x, logits, ids)))
    return logits


def _check_classes(data: Data, outputs: int) -> None:
    """Check that labels can mean the outputs of the model.

    Raises:
        InputError: there are other numbers of names and outputs, so that nobody knows which is which.
    """
    if data.classes and len(data.classes) != outputs:
        raise InputError(
            f"{data.name} has {len(data.classes)} classes by name, the model {outputs} outputs: "
            "`classes` in the data entry lists the names of all outputs in their order"
        )


def _batches(order: Sequence[int], count: int, found: list[int]) -> Iterator[Sequence[int]]:
    """The rows in batches until enough are found, and never many more than are still needed."""
    start = 0
    while start < len(order) and len(found) < count:
        size = min(SAMPLES_A_BLOCK, max(count - len(found), SMALLEST_READ))
        yield order[start : start + size]
        start += size


def targets(
    policy: Target,
    logits: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"] | None,
    ids: Sequence[str],
) -> Int[Tensor, " n"]:
    """The explained class of each sample, frozen from here on.

    Raises:
        InputError: labels are missing or out of range, or the fixed class is.
    """
    classes = logits.shape[1]
    wrong = None if labels is None else ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if labels is not None and wrong:
        label = int(labels[wrong[0]])
        raise InputError(f"the label of sample {ids[wrong[0]]} is {label}, outside 0 to {classes - 1}")
    if policy == "predicted":
        return logits.argmax(1)
    if policy == "runner_up":
        return logits.topk(2, dim=1).indices[:, 1]
    if policy == "label":
        if labels is None:
            raise InputError("target='label' needs labels: pass y, or explain the predicted class")
        return labels
    if isinstance(policy, np.integer):
        policy = int(policy)
    if isinstance(policy, bool) or not isinstance(policy, int):
        raise InputError(f"target is predicted, label, runner_up or a class index, got {policy!r}")
    if not 0 <= policy < classes:
        raise InputError(f"target {policy} is outside 0 to {classes - 1}")
    return torch.full((len(logits),), policy, dtype=torch.int64, device=logits.device)
