"""Linear probes: what a linear classifier reads from each layer, beyond what it reads from the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from harness.introspecting import Samples
from harness.methods.activations import activations, layers_of
from harness.random import seed_of
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, Distinct, NotApplicableError, Score

POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
FEWEST = 4
"""Samples of a class, so that each part has one."""

PER_TYPE = 20
"""Samples for each type of the control task, at least on average: half of them are learnt from."""

Strengths = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""A path of C."""


@dataclass(frozen=True)
class Parts:
    """Rows of samples: a probe is fitted on the first part, its penalty chosen on the second, and told on the third."""

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


@dataclass(frozen=True)
class Probe:
    """How well the best probe of a regularization path does.

    Attributes:
        path: the accuracy on the validation part by strength of the penalty.
        validation: the highest of them.
        accuracy: of that probe on the test part.
        balanced_accuracy: the mean of its recalls of all classes there.
    """

    path: tuple[float, ...]
    validation: float
    accuracy: float
    balanced_accuracy: float


@introspection(
    compares={"gain": "higher", "accuracy": "higher", "selectivity": "higher"},
    cite="alain2016understanding",
    needs=("labels",),
    question="What does a linear classifier read from each layer that it does not read from the input?",
    misleads="random features alone are far above chance, often above the input itself: a layer of random weights is a "
    "non-linear expansion in which classes are easier to separate, so that an absolute accuracy says little about what "
    "was learnt and only the difference to random networks does; and what can be read need not be used.",
)
def linear_probe(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    layers: Annotated[list[str], Distinct] = [],  # noqa: B006 (options are never written to)
    strengths: Strengths = [1.0, 10.0, 100.0],  # noqa: B006
    features: Count = 512,
    types: Count = 50,
    seed: int,
    chunk: int,
) -> Iterator[Score | Artifact]:
    r"""Logistic regression on each layer's frozen features, beside the raw input and a control task.

    `alain2016understanding`. Positions are averaged to the finest grid that leaves a layer, and the input likewise, at
    most `features` numbers. Half of the samples of each class train the probes, a quarter chooses the penalty, a
    quarter tells the accuracy. Features are standardized on the training part and divided by the root of their number,
    so that a penalty $\|w\|^2 / 2C$ means the same for layers of any width; all probes have the same path of C, and
    classes weigh the same.

    The control task (`hewitt2019designing`) has labels that are a random function of the type of an input. Words have
    types, images have none: here a type is a cluster of similar inputs, by k-means of the raw input, and the classes
    are dealt out evenly among the types. Nothing but telling inputs apart and memorizing leads to these labels, so that
    a probe which does as well on them says what a probe can do and not what a layer holds.

    Yields:
        By layer `accuracy`, `balanced_accuracy`, `gain`, the accuracy minus the `raw_input_accuracy`, and
        `selectivity`, the accuracy minus the `control_accuracy`. Of the whole network, those of the layer with the
        highest accuracy on the validation part, or with the highest selectivity there. `chance` is the accuracy of
        the commonest class.

    Args:
        model: returns logits [n, classes].
        space: what the numbers in the samples mean.
        data: samples with labels, on which the network was not trained; classes with fewer than 4 of them do not count.
        layers: names of modules; without, some from the input to the output.
        strengths: the path of C, the inverse of the penalty's weight.
        features: how many numbers of a layer at most, unless it has more channels.
        types: of inputs in the control task, at most one for 20 samples.
        seed: of the parts, the types and their labels.
        chunk: how many samples go through the network at once.

    Raises:
        NotApplicableError: fewer than two classes, or than 40 samples of them.
    """
    assert data.labels is not None
    wanted = layers_of(model, data.x, layers)
    labels = data.labels.cpu().numpy()
    rows = np.flatnonzero(np.bincount(labels)[labels] >= FEWEST)
    y = labels[rows]
    if len(np.unique(y)) < 2 or len(rows) < 2 * PER_TYPE:
        raise NotApplicableError(
            f"linear_probe: {len(rows)} samples of {len(np.unique(y))} classes with at least {FEWEST} of each, "
            f"expected {2 * PER_TYPE} of at least 2"
        )
    x = data.x[torch.from_numpy(rows).to(data.x.device)]

    def pooled(output: Tensor) -> Tensor:
        return on_a_grid(output, features)

    raw = _on_the_cpu(pooled(x))
    held = activations(model, x, wanted, chunk, of=pooled)
    parts, control = parts_of(y, seed), control_labels(raw, y, types, seed)
    of_input = probe(raw, y, parts, strengths)
    found = [
        (layer, *(probe(z, task, parts, strengths) for task in (y, control)))
        for layer, z in ((layer, _on_the_cpu(held[layer.name])) for layer in wanted)
    ]
    best = max(found, key=lambda each: each[1].validation)
    purest = max(found, key=lambda each: each[1].validation - each[2].validation)
    for layer, (_, read, _), (_, selective, memorized) in [
        (None, best, purest),
        *((each[0], each, each) for each in found),
    ]:
        numbers = {
            "accuracy": read.accuracy,
            "gain": read.accuracy - of_input.accuracy,
            "selectivity": selective.accuracy - memorized.accuracy,
            "balanced_accuracy": read.balanced_accuracy,
            "control_accuracy": memorized.accuracy,
        }
        where, index = (None, None) if layer is None else (layer.name, layer.index)
        for measure, value in numbers.items():
            yield Score(measure, torch.tensor(value), stage=where, stage_index=index)
    chance = float(np.bincount(y[parts.test]).max() / len(parts.test))
    yield Score("raw_input_accuracy", torch.tensor(of_input.accuracy))
    yield Score("chance", torch.tensor(chance))
    names = tuple(layer.name for layer, *_ in found)
    flat = {"raw input": of_input.accuracy, "chance": chance}
    lines = {"this network": [read.accuracy for _, read, _ in found]}
    lines |= {"control task": [memorized.accuracy for *_, memorized in found]}
    lines |= {name: [value] * len(found) for name, value in flat.items()}
    yield Artifact(
        "accuracy by depth",
        "curves",
        torch.tensor(list(lines.values())),
        labels=tuple(lines),
        columns=names,
        axes=("accuracy on the test part", "layer"),
        caption=f"What linear probes read from each layer; {best[0].name} is best on the validation part. The gap to "
        "the control task is selectivity. A network of random weights, too, is far above chance.",
    )
    yield Artifact(
        "regularization path",
        "curves",
        torch.tensor([of_input.path, *(read.path for _, read, _ in found)]),
        labels=("raw input", *names),
        columns=tuple(strengths),
        axes=("accuracy on the validation part", "C, the inverse of the penalty's weight"),
        caption="The same path for all: where a line still rises at its end, the penalty was too strong.",
    )


def on_a_grid(output: Float[Tensor, "n k *axes"], most: int) -> Float[Tensor, "n features"]:
    """Averages over positions, on the finest grid with at most `most` numbers, or one position if no grid has so few.

    The longest axis is made shorter first.
    """
    channels, *axes = output.shape[1:]
    while channels * prod(axes) > most and max(axes, default=1) > 1:
        longest = max(axes)
        axes = [min(length, longest - 1) for length in axes]
    return POOLS[len(axes)](output, axes).flatten(1) if axes else output


def parts_of(y: Int[np.ndarray, " n"], seed: int) -> Parts:
    """Half, a quarter and a quarter of the samples of each class."""
    rows = np.arange(len(y))
    states = (seed_of(seed, "parts", each) % 2**32 for each in range(2))
    train, rest = train_test_split(rows, train_size=0.5, stratify=y, random_state=next(states))
    validation, test = train_test_split(rest, train_size=0.5, stratify=y[rest], random_state=next(states))
    return Parts(train, validation, test)


def control_labels(
    raw: Float[np.ndarray, "n features"], y: Int[np.ndarray, " n"], types: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Labels that are a random function of the type of an input: the classes are dealt out evenly among the types.

    Args:
        raw: the inputs.
        y: their true labels, which say nothing but which classes there are.
        types: how many, at most one for 20 samples; see `linear_probe`.
        seed: of the clusters and of the labels.
    """
    count = min(types, len(raw) // PER_TYPE)
    kinds = KMeans(count, n_init=1, random_state=seed_of(seed, "types") % 2**32).fit_predict(raw)
    dealt = np.random.default_rng(seed_of(seed, "control labels")).permutation(count)
    classes = np.unique(y)
    return classes[dealt[kinds] % len(classes)]


def probe(
    features: Float[np.ndarray, "n features"], y: Int[np.ndarray, " n"], parts: Parts, strengths: list[float]
) -> Probe:
    """The best probe of the path; of probes that are as good on the validation part, the one of the strongest penalty.

    Args:
        features: of each sample.
        y: what is to be read from them.
        parts: of the samples.
        strengths: the path of C. Each probe begins where the one of the next stronger penalty ended.
    """
    train = features[parts.train]
    spread = train.std(0)
    scale = np.where(spread > 0, spread, 1) * features.shape[1] ** 0.5
    z = (features - train.mean(0)) / scale
    regression = LogisticRegression(class_weight="balanced", warm_start=True, max_iter=1000)
    told: dict[float, tuple[float, np.ndarray]] = {}
    for strength in sorted(strengths):
        regression.set_params(C=strength).fit(z[parts.train], y[parts.train])
        right = accuracy_score(y[parts.validation], regression.predict(z[parts.validation]))
        told[strength] = (float(right), regression.predict(z[parts.test]))
    validation, predicted = max(told.values(), key=lambda each: each[0])
    here = y[parts.test]
    balanced = recall_score(here, predicted, labels=np.unique(here), average="macro", zero_division=0.0)
    path = tuple(told[strength][0] for strength in strengths)
    return Probe(path, validation, float(accuracy_score(here, predicted)), float(balanced))


def _on_the_cpu(features: Float[Tensor, "n features"]) -> Float[np.ndarray, "n features"]:
    return features.detach().cpu().numpy()
