"""Neuron activation profiles: what layers do for a group of samples beyond what they do for all."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor, nn
from torch.nn.functional import one_hot

from harness.introspecting import Samples
from harness.methods.activations import Layer, activations, layers_of, pooled
from harness.methods.gradients import input_gradient
from harness.random import Draws
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, Distinct, NonNegative, NotApplicableError, Score

SHOWN = 64
"""How many units of a layer are shown at most: those whose profiles differ most between groups."""


@introspection(
    compares={"silhouette": "higher"},
    cite="krug2018neuron",
    needs=("labels",),
    question="Do samples of one class drive each layer alike, and unlike those of other classes?",
    misleads="classes that look different cluster in random networks too, and any good classifier clusters them in its "
    "logits; the permutation p says that the labels matter, not that anything was learnt.",
)
def activation_profile(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    layers: Annotated[Sequence[str], Distinct] = (),
    align: Literal["none", "saliency"] = "none",
    window: NonNegative = 0,
    permutations: Count = 99,
    splits: Count = 10,
    compared: Count = 1000,
    seed: int,
    chunk: int,
    reference: nn.Module,
) -> Iterator[Score | Artifact]:
    r"""Neuron activation profiles: $P_g = \frac{1}{|g|} \sum_{i \in g} a_i - \frac{1}{n} \sum_i a_i$ of each class g.

    $a_i$ are the units of a layer on sample i: its channels, averaged over positions. With a window they are channels
    by frames of the input's last axis, averaged over what other positions there are; a layer with fewer frames has a
    window as much shorter. It lies around the middle of the input, or, as in `krug2021analyzing`, around the frame that
    is most salient to the trained network, whichever network is asked: `most_salient`. Beyond the ends all is zero.

    Args:
        model: returns logits [n, classes].
        space: not used.
        data: the samples with their labels.
        layers: names of modules; by default some that everything passes through, from the input to the output.
        align: what the window is around.
        window: in frames of the input; 0 for the mean over all positions.
        permutations: of the labels.
        splits: of each group into halves.
        compared: silhouettes are of so many samples at most, evenly spaced, as their cost grows with the square.
        seed: of permutations and splits.
        chunk: how many samples go through a network at once.
        reference: the trained network.

    Yields:
        Of each layer, and as the mean over layers of the network: `silhouette`, in [-1, 1], of the samples by the
        Euclidean distance of their units; `group_p`, $(1 + \#\{s_r \ge s\}) / (R + 1)$ of that silhouette s against
        those of R permutations of the labels; `reliability`, the Pearson correlation between the profiles of two random
        halves of each group, beyond whose square root nothing can predict profiles. Of each layer the profiles, and
        their Pearson correlations in the order of an average linkage by Euclidean distances.

    Raises:
        NotApplicableError: fewer than two classes have two samples; a window and no frames; an alignment and no window.
    """
    assert data.labels is not None
    classes, groups, sizes = data.labels.unique(return_inverse=True, return_counts=True)
    if int((sizes > 1).sum()) < 2:
        raise NotApplicableError("profiles need at least two classes of at least two samples each")
    if window and data.x.ndim < 3:
        raise NotApplicableError("a window is one of frames, the last axis of a signal or image; a table has none")
    if align == "saliency" and not window:
        raise NotApplicableError("a mean over all positions needs no alignment: give a `window`, in frames")
    found = layers_of(model, data.x, layers)
    outputs = activations(model, data.x, found, chunk, _by_frame if window else pooled)
    if window:
        frames = data.x.shape[-1]
        middle = torch.full_like(groups, frames // 2)
        centres = most_salient(reference, data.x, chunk) if align == "saliency" else middle
        outputs = {name: windowed(output, centres, window, frames) for name, output in outputs.items()}
    units = [outputs[layer.name].flatten(1).double() for layer in found]

    kept = torch.linspace(0, len(groups) - 1, min(compared, len(groups)), device=groups.device).round().long()
    draws = Draws.of([f"labels {index}" for index in range(permutations)], seed, "labels", device=groups.device)
    labelings = torch.cat([groups[kept][None], groups[kept][draws.permutation(len(kept))]])
    clustered = torch.stack([silhouette(distances(each[kept]), labelings) for each in units])
    halves = halves_of(groups, Draws.of(data.ids, seed, "halves", device=groups.device).uniform(splits))
    reliable = torch.stack([reliability(each, groups, halves) for each in units])
    yield from _scores(clustered.mean(0), reliable.nanmean())
    for layer, each, silhouettes, correlation in zip(found, units, clustered, reliable, strict=True):
        yield from _scores(silhouettes, correlation, stage=layer.name, stage_index=layer.index)
        profile = profiles(each, groups).view(len(classes), *outputs[layer.name].shape[1:])
        yield from _artifacts(profile, layer, [data.name(int(index)) for index in classes])


def most_salient(model: nn.Module, x: Float[Tensor, "n *shape"], chunk: int) -> Int[Tensor, " n"]:
    r"""The frame with the largest sum of $|x \odot \nabla_x f_t(x)|$ over all other axes, t the predicted class."""
    found = []
    for part in x.split(chunk):
        saliency = part * input_gradient(model, part, model(part.clone()).argmax(1))
        found.append(saliency.abs().flatten(1, -2).sum(1).argmax(1))
    return torch.cat(found)


def windowed(
    output: Float[Tensor, "n k *t"], centres: Int[Tensor, " n"], window: int, frames: int
) -> Float[Tensor, "n k *w"]:
    """What a layer returns around a frame of each sample; all of it where the layer has no frames.

    Args:
        output: by frames of the layer, if it has any.
        centres: the frame of the input in the middle of the window.
        window: in frames of the input.
        frames: of the input.
    """
    if output.ndim < 3:
        return output
    ratio = output.shape[2] / frames
    width = max(1, round(window * ratio))
    at = ((centres + 0.5) * ratio).long()[:, None] - width // 2 + torch.arange(width, device=centres.device)
    inside = (at >= 0) & (at < output.shape[2])
    values = output.gather(2, at.clamp(0, output.shape[2] - 1)[:, None].expand(-1, output.shape[1], -1))
    return values * inside[:, None]


def profiles(units: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> Float[Tensor, "g d"]:
    """The mean of each group, minus that of all samples."""
    members = one_hot(groups).to(units)
    return members.T @ units / members.sum(0)[:, None] - units.mean(0)


def distances(units: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Euclidean distances between samples; zero where they are within rounding of it."""
    # What all samples share adds nothing but rounding, and would hide that they are the same.
    moved = units - units[:1]
    found = torch.cdist(moved, moved)
    return torch.where(found > 1e-7 * found.max(), found, 0)


def silhouette(distances: Float[Tensor, "n n"], labelings: Int[Tensor, "p n"]) -> Float[Tensor, " p"]:
    r"""The mean over samples of $(b - a) / \max(a, b)$ (`rousseeuw1987silhouettes`), for several labelings at once.

    a is a sample's mean distance to the others of its group, b that to the nearest other group. A sample counts as 0
    if it is alone in its group, or all of these distances are zero.
    """
    members = one_hot(labelings)
    sizes = members.sum(1, keepdim=True)
    sums = torch.einsum("ij,pjg->pig", distances, members.to(distances))
    own = torch.where(members > 0, sums / (sizes - 1), 0).sum(2)
    other = (sums / sizes).masked_fill((members > 0) | (sizes == 0), torch.inf).amin(2)
    return ((other - own) / torch.maximum(own, other)).nan_to_num(0).mean(1)


def halves_of(groups: Int[Tensor, " n"], order: Float[Tensor, "n splits"]) -> Int[Tensor, "splits n"]:
    """Each group, cut into two halves by rank: which one each sample is in, 0 or 1, for each of several orders."""
    halves = torch.zeros_like(order.T, dtype=torch.int64)
    for half, rank in zip(halves, order.T.cpu().numpy(), strict=True):
        sorted_by_group = torch.from_numpy(np.lexsort((rank, groups.cpu().numpy()))).to(groups.device)
        half[sorted_by_group] = torch.arange(len(groups), device=groups.device) % 2
    return halves


def reliability(
    units: Float[Tensor, "n d"], groups: Int[Tensor, " n"], halves: Int[Tensor, "splits n"]
) -> Float[Tensor, ""]:
    """Pearson correlation between the profiles of two halves, the mean over splits; NaN where profiles are constant.

    Of groups with a single sample there are no two halves, and they do not count.
    """
    several = groups.bincount()[groups] > 1
    units, groups = units[several], groups[several].unique(return_inverse=True)[1]
    pairs = (
        torch.stack([profiles(units[half == side], groups[half == side]).flatten() for side in (0, 1)])
        for half in halves[:, several]
    )
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean()


def _by_frame(output: Float[Tensor, "n k *axes"]) -> Float[Tensor, "n k *t"]:
    return output.flatten(2, -2).mean(2) if output.ndim > 3 else output


def _scores(silhouettes: Float[Tensor, " p"], correlation: Float[Tensor, ""], **where: Any) -> Iterator[Score]:
    """Of one layer or of the network; the first silhouette is that of the labels, the others of their permutations."""
    observed = silhouettes[0]
    yield Score("silhouette", observed, **where)
    # Permutations that change nothing but the names of groups have the same silhouette, up to rounding.
    yield Score("group_p", (silhouettes >= observed - 1e-12).double().mean(), **where)
    yield Score("reliability", correlation, {"profiles do not differ": correlation.isnan()}, **where)


def _artifacts(profile: Float[Tensor, "g k *w"], layer: Layer, names: Sequence[str]) -> Iterator[Artifact]:
    """The profiles of a layer, and how alike they are, in the order of a clustering."""
    labels, flat = tuple(names), profile.flatten(1)
    order = leaves_list(linkage(flat.cpu().numpy(), "average", optimal_ordering=True)).tolist()
    alike = torch.corrcoef(flat)[order][:, order].float()
    clustered = tuple(names[index] for index in order)
    axes = ("correlation of profiles", "class")
    caption = (
        "Classes are in the order of an average linkage of their profiles: those that are joined first are neighbours."
    )
    yield Artifact("similarity", "matrix", alike, clustered, clustered, axes, layer.name, caption)
    if profile.ndim > 2:
        over_time, axes = profile.square().mean(1).sqrt().float(), ("root mean square over units", "frame of the layer")
        yield Artifact("profiles", "curves", over_time, labels, axes=axes, stage=layer.name)
    else:
        most = profile.square().sum(0).argsort(descending=True, stable=True)[:SHOWN].sort().values
        units, axes = tuple(str(int(unit)) for unit in most), ("activation above the mean", "unit")
        yield Artifact("profiles", "matrix", profile[:, most].float(), labels, units, axes, stage=layer.name)
