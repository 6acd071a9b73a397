"""The patches of the data that excite units most, and what DeconvNet projects from the units back to the input."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import one_hot

from harness.case import Source
from harness.introspecting import Samples, once
from harness.methods.activations import Layer, activations, layers_of
from harness.methods.correlations import centred, correlation
from harness.methods.exciting import Exciting, most_exciting, projections
from harness.methods.patch_pictures import Projected, pictures_of
from harness.methods.receptive_fields import receptive_fields
from harness.random import Draws
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, Distinct, NotApplicableError, Score

DEAD = "no unit fires"

Patches = Annotated[int, Field(ge=2)]
"""How many patches of a unit: of one there is nothing to compare."""


@introspection(
    compares={
        "label_entropy": "lower",
        "pixel_similarity": "higher",
        "feature_similarity": "higher",
        "projection_similarity": "alike",
    },
    cite="zeiler2014visualizing",
    needs=("spatial",),
    uses=("retrained",),
    question="What excites units most, has it something in common, and does a projection show what that is?",
    misleads="the patches of a random unit have something in common, too; a projection can look like an object because "
    "it recovers the input, whatever the unit has learnt.",
)
def top_patches(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    layers: Annotated[Sequence[str], Distinct] = (),
    units: Count = 8,
    patches: Patches = 9,
    source: Source,
    chunk: int,
    reference: nn.Module,
) -> Iterator[Score | Artifact]:
    r"""The nine patches that excite a unit most, each of another sample, with their DeconvNet projections.

    A unit is a channel of a layer, and a sample excites it as much as the position where it is largest. Its patch is
    the receptive field of that position (`harness.methods.receptive_fields`), its projection `deconvnet` of the unit
    there in the place of a logit. Units that are dead, never above zero or equally excited by all samples, have none.

    Whether a projection shows the unit or the patch is asked of the trained network's units and patches, which every
    network projects. What a random one makes of them can only come from the patch (`nie2018theoretical`).

    Args:
        model: returns logits [n, classes].
        space: what the numbers in the samples mean.
        data: the samples.
        layers: names of modules; by default some that everything passes through, from the input to the output.
        units: how many of a layer, evenly spaced by number among those that are not dead.
        patches: how many of a unit.
        source: knows another network that was trained independently, if there is a recipe.
        chunk: how many samples go through a network at once.
        reference: the trained network.

    Yields:
        Of each layer as the mean over units, and as the mean over layers of the network: `label_entropy`, in bits, of
        the labels of a unit's patches; `pixel_similarity`, the Pearson correlation of two of them;
        `feature_similarity`, the cosine of what two of them, each alone in an empty input, change in the last but one
        layer of the independent network; `projection_similarity`, the Pearson correlation, inside the patch, of this
        network's and the trained network's projections; `input_similarity`, that of a projection and the patch;
        `unit_similarity`, that of two units' projections from the same position of the same sample; `dead_units`, their
        share. Of each layer patches and projections of some units, and activation maps of the first sample; filters of
        the first layer.

    Raises:
        NotApplicableError: there are fewer samples than patches.
    """
    x = data.x
    if len(x) < patches:
        raise NotApplicableError(f"{patches} patches are of as many samples, and there are {len(x)}: lower `patches`")

    def of_the_trained() -> tuple[dict[Layer, Int[Tensor, "positions axes 2"]], list[Exciting], list[Projected]]:
        fields = receptive_fields(reference, x, layers_of(reference, x, layers), chunk)
        theirs = most_exciting(reference, x, fields, units, patches, chunk)
        return fields, theirs, [_projected(reference, x, each, chunk) for each in theirs]

    key = ("top_patches", tuple(data.ids), tuple(layers), units, patches, chunk)
    fields, theirs, learnt = once(source, key, of_the_trained)
    # Of the trained network nothing is computed twice.
    own = theirs if model is reference else most_exciting(model, x, fields, units, patches, chunk)
    shown = learnt if model is reference else [_projected(model, x, each, chunk) for each in theirs]

    yield from _scores("dead_units", own, [each.dead for each in own])
    labels = [label_entropy(each, data.labels) for each in own]
    alone = "the samples have no labels" if data.labels is None else "no two samples have the same label"
    yield from _scores("label_entropy", own, labels, alone)
    pixels = [likeness(centred(each.cut(x[each.samples.flatten()]).flatten(2))) for each in own]
    yield from _scores("pixel_similarity", own, pixels, "all patches are constant")
    other = source.retrained()
    features = [_in_features(other, each, space, data, chunk) for each in own]
    unknown = "patches change no feature" if other else "there is no network that was trained independently"
    yield from _scores("feature_similarity", own, features, unknown)
    refused = _refusal(*shown, *learnt)
    yield from _scores("projection_similarity", theirs, map(agreement, shown, learnt), refused)
    seen = [each.cut(x[each.samples.flatten()]) for each in theirs]
    yield from _scores("input_similarity", theirs, map(agreement, shown, seen), refused)
    others = [_of_others(model, x, each, chunk) for each in theirs]
    yield from _scores("unit_similarity", theirs, map(agreement, shown, others), _refusal(*shown, *others))
    yield from pictures_of(model, space, x, own, theirs, shown, chunk)


def label_entropy(exciting: Exciting, labels: Int[Tensor, " n"] | None) -> Float[Tensor, ""]:
    """In bits, of the labels of a unit's patches, the mean over units; NaN without units, or labels that repeat."""
    if labels is None or len(labels.unique()) == len(labels):
        return torch.tensor(torch.nan)
    share = one_hot(labels)[exciting.samples].double().mean(1)
    return torch.special.entr(share).sum(1).mean() / math.log(2)


def likeness(vectors: Float[Tensor, "u p d"]) -> Float[Tensor, ""]:
    """The mean cosine of two vectors of a unit, over pairs and units; vectors of length zero do not count."""
    directions = vectors.double() / vectors.double().norm(dim=-1, keepdim=True)
    one, other = torch.triu_indices(vectors.shape[1], vectors.shape[1], 1, device=vectors.device)
    return (directions @ directions.mT)[:, one, other].nanmean(1).nanmean()


def agreement(one: Projected, other: Projected) -> Float[Tensor, ""]:
    """The mean Pearson correlation of projections of the same patches; NaN where there are none."""
    if isinstance(one, str) or isinstance(other, str):
        return torch.tensor(torch.nan)
    return correlation(one.flatten(0, 1), other.flatten(0, 1)).nanmean()


def _projected(model: nn.Module, x: Float[Tensor, "n c *axes"], exciting: Exciting, chunk: int) -> Projected:
    try:
        return exciting.cut(projections(model, x, exciting, chunk))
    except NotApplicableError as refusal:
        return str(refusal)


def _of_others(model: nn.Module, x: Float[Tensor, "n c *axes"], exciting: Exciting, chunk: int) -> Projected:
    """What the next unit projects from the same positions."""
    if len(exciting.units) == 1:
        return "there is no other unit"
    return _projected(model, x, replace(exciting, units=exciting.units.roll(1)), chunk)


def _refusal(*projected: object) -> str:
    """Why some have no agreement."""
    return next((each for each in projected if isinstance(each, str)), "projections are constant")


def _in_features(
    other: nn.Module | None, exciting: Exciting, space: InputSpace, data: Samples, chunk: int
) -> Float[Tensor, ""]:
    """How alike are the changes that patches make in the last but one layer of another network."""
    if other is None:
        return torch.tensor(torch.nan)
    layer = layers_of(other, data.x)[-2:][:1]
    x = data.x[exciting.samples.flatten()]
    draws = Draws.of([data.ids[sample] for sample in exciting.samples.flatten().tolist()], device=x.device)
    empty = space.fill(space.default_fill, x, draws)

    def held(x: Float[Tensor, "m c *axes"]) -> Float[Tensor, "m d"]:
        return activations(other, x, layer, chunk)[layer[0].name].flatten(1) if len(x) else x.flatten(1)

    changes = held(exciting.pasted(x, empty)) - held(empty)
    return likeness(changes.unflatten(0, exciting.samples.shape))


def _scores(
    measure: str, layers: Sequence[Exciting], values: Iterable[Float[Tensor, ""]], reason: str = ""
) -> Iterator[Score]:
    """Of the network as the mean over layers, and of each layer; the reason is why there is no number."""
    values = list(values)
    whole = torch.stack(values).nanmean()
    yield Score(measure, whole, {reason or DEAD: whole.isnan()})
    for index, (exciting, value) in enumerate(zip(layers, values, strict=True)):
        why = reason if len(exciting.units) else DEAD
        yield Score(measure, value, {why or DEAD: value.isnan()}, stage=exciting.layer.name, stage_index=index)
