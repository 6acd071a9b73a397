"""Linear probes: what a linear classifier reads from each layer, beyond what it reads from the input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from harness.introspecting import Samples
from harness.methods.activations import Layer, activations, layers_of
from harness.methods.probes import FEWEST, PER_TYPE, Probe, control_labels, on_a_grid, probe, quarters_of
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, Distinct, NotApplicableError, Score

Strengths = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""A path of C."""


@dataclass(frozen=True)
class Read:
    """The probes of a layer: of the task and of the control task."""

    layer: Layer
    task: Probe
    control: Probe


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
    features: Count = 256,
    types: Count = 50,
    seed: int,
    chunk: int,
) -> Iterator[Score | Artifact]:
    r"""Logistic regression on each layer's frozen features, beside the raw input and a control task.

    `alain2016understanding`. Positions are averaged to the finest grid that leaves a layer, and the input likewise, at
    most `features` numbers. Half of the samples of each class train the probes, a quarter chooses the penalty, a
    quarter tells the accuracy, in four rotations by which each sample is tested once. Features are standardized on the
    training part and divided by the root of their number, so that a penalty $\|w\|^2 / 2C$ means the same for layers
    of any width; all probes have the same path of C, and classes weigh the same.

    The control task (`hewitt2019designing`) has labels that are a random function of the type of an input. Words have
    types, images have none: here a type is a cluster of similar inputs, by k-means of the raw input, and the classes
    are dealt out evenly among the types. Nothing but telling inputs apart and memorizing leads to these labels, so that
    a probe which does as well on them says what a probe can do and not what a layer holds.

    Yields:
        By layer `accuracy`, `balanced_accuracy`, `gain`, the accuracy minus the `raw_input_accuracy`, and
        `selectivity`, the accuracy minus the `control_accuracy`. Of the whole network, those of the layer that in
        each rotation has the highest accuracy on the validation part, or the highest selectivity there. `chance` is the
        accuracy of the commonest class.

    Args:
        model: returns logits [n, classes].
        space: what the numbers in the samples mean.
        data: samples with labels, on which the network was not trained; classes with fewer than 4 of them do not count.
        layers: names of modules; without, some from the input to the output.
        strengths: the path of C, the inverse of the penalty's weight.
        features: how many numbers of a layer at most, unless it has more channels.
        types: of inputs in the control task, at most one for 20 samples.
        seed: of the quarters, the types and their labels.
        chunk: how many samples go through the network at once.

    Raises:
        NotApplicableError: fewer than two classes, or than 40 samples of them, or inputs of one type only.
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
    quarters, control = quarters_of(y, seed), control_labels(raw, y, types, seed)
    if any(len(np.unique(control[np.concatenate(quarters[half : half + 2])])) < 2 for half in (0, 2)):
        raise NotApplicableError("linear_probe: nearly all inputs are of one type, so that there is no control task")
    of_input = probe(raw, y, quarters, strengths)
    found = []
    for layer in wanted:
        z = _on_the_cpu(held[layer.name])
        found.append(Read(layer, probe(z, y, quarters, strengths), probe(z, control, quarters, strengths)))
    validation = np.stack([each.task.validation for each in found])
    control_validation = np.stack([each.control.validation for each in found])
    best, purest = validation.argmax(0), (validation - control_validation).argmax(0)
    yield from _scores(of_input, [found[at] for at in best], [found[at] for at in purest])
    for each in found:
        yield from _scores(of_input, [each] * 4, [each] * 4, each.layer)
    chance = float(np.bincount(y).max() / len(y))
    yield Score("raw_input_accuracy", torch.tensor(float(of_input.accuracy.mean())))
    yield Score("chance", torch.tensor(chance))
    yield from _pictured(found, of_input, chance, strengths)


def _scores(raw: Probe, best: Sequence[Read], purest: Sequence[Read], layer: Layer | None = None) -> Iterator[Score]:
    """The measures of a layer, or of those that were chosen in each of the rotations."""

    def mean(read: Sequence[Read], of: Callable[[Read], Float[np.ndarray, " 4"]]) -> float:
        return float(np.mean([of(each)[rotation] for rotation, each in enumerate(read)]))

    accuracy, control = mean(best, lambda each: each.task.accuracy), mean(purest, lambda each: each.control.accuracy)
    numbers = {
        "accuracy": accuracy,
        "balanced_accuracy": mean(best, lambda each: each.task.balanced_accuracy),
        "gain": accuracy - float(raw.accuracy.mean()),
        "selectivity": mean(purest, lambda each: each.task.accuracy) - control,
        "control_accuracy": control,
    }
    where, index = (layer.name, layer.index) if layer else (None, None)
    for measure, value in numbers.items():
        yield Score(measure, torch.tensor(value), stage=where, stage_index=index)


def _pictured(found: Sequence[Read], raw: Probe, chance: float, strengths: Sequence[float]) -> Iterator[Artifact]:
    names = tuple(each.layer.name for each in found)
    lines = {
        "this network": [each.task.accuracy.mean() for each in found],
        "control task": [each.control.accuracy.mean() for each in found],
        "raw input": [raw.accuracy.mean()] * len(found),
        "chance": [chance] * len(found),
    }
    yield Artifact(
        "accuracy by depth",
        "curves",
        torch.tensor(np.array(list(lines.values()))).float(),
        labels=tuple(lines),
        columns=names,
        axes=("accuracy", "layer"),
        caption="What linear probes read from each layer. The gap to the control task is selectivity. Random networks, "
        "too, are far above chance.",
    )
    yield Artifact(
        "regularization path",
        "curves",
        torch.tensor(np.stack([raw.path, *(each.task.path for each in found)])).float(),
        labels=("raw input", *names),
        columns=tuple(strengths),
        axes=("accuracy", "C, the inverse of the penalty's weight"),
        caption="The same path for all. Where a line still rises at its end, a weaker penalty would read more.",
    )


def _on_the_cpu(features: Float[Tensor, "n features"]) -> Float[np.ndarray, "n features"]:
    return features.detach().to("cpu", torch.promote_types(features.dtype, torch.float32)).numpy()
