"""The gallery: the maps of every method on a few samples, to be looked at before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from harness.applicability import attempt
from harness.case import Case
from harness.catalogue import METHODS
from harness.data import Data
from harness.drawn import maps_as_drawn, samples_as_drawn
from harness.heads import Regression
from harness.model_entries import DataEntry, ModelEntry
from harness.models import ModelSource
from harness.models.loaded import RANDOM
from harness.plan import plan
from harness.space import Kind
from harness.study import Chosen
from harness.subjects import Subject, Target, checked_subject, load_entry, load_source
from harness.training import Progress
from harness.types import InputError

SAMPLES = 2
LEAST = 0.001
"""The smallest probability that is written out."""


@dataclass(frozen=True)
class Shown:
    """One sample: its id, what is drawn of it, what the model says of it, and what is explained."""

    name: str
    values: Float[np.ndarray, "..."]
    predicted: str
    about: str


@dataclass
class Gallery:
    """Samples with the maps of all methods.

    Attributes:
        label: the model.
        kind: of the samples.
        samples: what is explained.
        maps: method -> maps [n, *axes] as they are drawn; None if it failed.
        failed: method -> why it raised.
        refused: method -> why it does not apply.
        notes: what had to be assumed.
    """

    label: str
    kind: Kind
    samples: list[Shown]
    maps: dict[str, Float[np.ndarray, "n ..."] | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def all_methods() -> list[str]:
    """Every registered method, family by family, the controls last."""
    families = list(dict.fromkeys(entry.family for entry in METHODS.values()))

    def place(name: str) -> tuple[bool, int]:
        family = METHODS[name].family
        return family == "control", families.index(family)

    return sorted(METHODS, key=place)


def subject_to_show(
    entry: ModelEntry, base: Path, *, target: Target, samples: int | None, device: torch.device, progress: Progress
) -> Subject:
    """The model with the samples to show: pictures that were named one by one, or the first few of other data.

    Samples stand for the data only where there is a training part: those that are shown are too few.

    Args:
        entry: the model and its data.
        base: what paths are relative to.
        target: the explained class.
        samples: how many; by default all pictures that were named, or two.
        device: where.
        progress: told what happens.

    Raises:
        InputError: there are no data, the model does not take them, or something is wrong with either.
    """
    if not isinstance(entry.data, DataEntry):
        raise InputError(f"{entry.name} brings no data: name pictures, or one data source, after the model")
    model, data = load_entry(entry, base, seed=0, device=device, progress=progress)
    count = samples or entry.data.samples or (len(data) if entry.data.source == "pictures" else SAMPLES)
    wanted = entry.data.model_copy(update={"samples": min(count, len(data))})
    try:
        with torch.no_grad():
            model.model(model.example.clone())
    except Exception as error:  # of any kind, and most often because the samples have another size or form
        shape = list(model.example.shape[1:])
        raise InputError(f"{entry.name} raises on samples of shape {shape}: {type(error).__name__}: {error}") from error
    if data.train is None and model.school is None:
        model.read_background = None
    return checked_subject(entry.name, model, data, wanted, target, progress)


def names_of(source: ModelSource, weights: str | None, data: Data, outputs: int) -> tuple[tuple[str, ...], str]:
    """The names of the classes by index, empty if nobody knows them, and what had to be assumed for them."""
    if len(data.classes) == outputs:
        return data.classes, ""
    published = {name: each.classes for name, each in source.pretrained.items() if len(each.classes) == outputs}
    if weights in source.pretrained or weights == RANDOM or not published:
        return published.get(weights or "", ()), ""
    name, classes = next(iter(published.items()))
    return classes, f"nothing names the classes: those of the published weights {name} are assumed"


def gallery_of(
    entry: ModelEntry, base: Path, subject: Subject, methods: Sequence[Chosen], *, chunk: int, progress: Progress
) -> Gallery:
    """Compute the maps of these methods; what one of them raises is kept, and the others go on.

    Args:
        entry: the model and its data, for the names of the classes.
        base: what paths are relative to.
        subject: see `subject_to_show`.
        methods: with their options.
        chunk: how many samples go through the model at once.
        progress: told before each method.
    """
    with torch.no_grad():
        logits = torch.cat([subject.source.model(x.clone()) for x in subject.x.split(chunk)])
    names, note = names_of(load_source(entry, base), entry.weights, subject.reader.data, logits.shape[1])
    gallery = Gallery(subject.label, subject.space.kind, _shown(subject, logits, names))
    gallery.notes += [note] if note else []
    for position, chosen in enumerate(methods):
        progress("methods", position / len(methods), chosen.label)
        cases: list[Case] = []
        outcomes = [attempt(group, cases.append, chunk=chunk) for group in plan([subject], [chosen], [], 0)]
        status, reason = next((each for each in outcomes if each[0] != "works"), ("works", ""))
        if status == "refused":
            gallery.refused[chosen.label] = reason
        elif status == "fails":
            gallery.failed[chosen.label], gallery.maps[chosen.label] = reason, None
        else:
            drawn = [maps_as_drawn(case.maps, case.x, gallery.kind).cpu().numpy() for case in cases]
            gallery.maps[chosen.label] = np.concatenate(drawn)
    progress("methods", 1.0, "")
    return gallery


def _shown(subject: Subject, logits: Float[Tensor, "n classes"], names: tuple[str, ...]) -> list[Shown]:
    picture = subject.space.kind in ("image", "bands")
    values = subject.space.within_box(subject.x).clamp(0, 1) if picture else subject.x
    values = samples_as_drawn(values, subject.space.kind)
    number = isinstance(subject.source.model, Regression)

    labels = _labels(subject, logits.shape[1])

    def named(index: int) -> str:
        return names[index] if names else f"class {index}"

    def told(row: int, index: int) -> str:
        if number:
            return f"output {float(logits[row, 0]):.3g}"
        probability = float(logits[row].double().softmax(0)[index])
        return f"{named(index)} {probability:.1%}" if probability >= LEAST else f"{named(index)} <{LEAST:.1%}"

    shown = []
    for row, (name, target) in enumerate(zip(subject.samples, subject.target.tolist(), strict=True)):
        predicted = int(logits[row].argmax())
        about = f"explained: {'the predicted class' if target == predicted else told(row, target)}"
        about += f", label: {named(labels[row])}" if labels else ""
        shown.append(Shown(name, values[row].cpu().numpy(), told(row, predicted), about))
    return shown


def _labels(subject: Subject, outputs: int) -> list[int]:
    """The label of each sample; empty if there are none, or nobody knows which output they mean."""
    data = subject.reader.data
    if data.labels is None or len(data.classes) not in (0, outputs):
        return []
    labels: list[int] = data.labels[torch.tensor(subject.rows)].tolist()
    return labels if all(0 <= label < outputs for label in labels) else []
