"""How the patches that excite units, their projections and the maps of units are shown."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad
from torch.nn.modules.conv import _ConvNd

from harness.methods.activations import activations
from harness.methods.exciting import Exciting
from harness.space import InputSpace
from harness.types import Artifact

SHOWN, SIDE, FILTERS = 3, 32, 64
"""At most: units of a layer that are shown, pixels of a shown patch along each axis, filters of the first layer."""

Projected = Float[Tensor, "..."] | str
"""Projections of the patches of a layer, [units, patches, c, *size], or why there are none."""


def pictures_of(
    model: nn.Module,
    space: InputSpace,
    x: Float[Tensor, "n c *axes"],
    own: Sequence[Exciting],
    theirs: Sequence[Exciting],
    shown: Sequence[Projected],
    chunk: int,
) -> Iterator[Artifact]:
    """Patches of the network's own units, its projections of those of the trained network, and maps of one sample.

    Args:
        model: the network.
        space: what the numbers in the samples mean.
        x: the samples.
        own: what excites the units of each layer.
        theirs: the same of the trained network.
        shown: this network's projections of theirs.
        chunk: how many samples go through the network at once.
    """
    maps = activations(model, x[:1], [each.layer for each in own], chunk)
    for each, trained, projected in zip(own, theirs, shown, strict=True):
        stage, map_ = each.layer.name, maps[each.layer.name]
        patches = each.cut(x[each.samples.flatten()])[:SHOWN]
        if len(patches):
            caption = f"What excites a unit most: from the left to the right the first {patches.shape[1]} patches."
            kind: Literal["pictures", "maps"] = "pictures" if space.kind == "image" else "maps"
            strips = side_by_side(patches, float(x.max()))
            yield Artifact("patches", kind, strips, _named(each), stage=stage, caption=caption)
        if not isinstance(projected, str) and len(projected):
            largest = projected.flatten(2).abs().amax(2).clamp(min=torch.finfo(x.dtype).tiny)
            scaled = projected / largest.view(*largest.shape, *(1,) * (projected.ndim - 2))
            caption = "DeconvNet projections from units of the trained network, of its patches; each of its own scale."
            strips = side_by_side(scaled[:SHOWN], 0.0)
            yield Artifact("projections", "maps", strips, _named(trained), stage=stage, caption=caption)
        if map_.ndim > 2 and len(each.units):
            caption = "Where the units are excited by the first sample."
            values = _as_images(map_[0, each.units, None])
            yield Artifact("activations", "maps", values.float(), _named(each, None), stage=stage, caption=caption)
    first = next((module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)), None)
    if first is not None and (isinstance(first, _ConvNd) or first.weight[0].numel() == x[0].numel()):
        weight = (
            first.weight[:FILTERS] if isinstance(first, _ConvNd) else first.weight[:FILTERS].unflatten(1, x[0].shape)
        )
        labels = tuple(f"filter {index}" for index in range(len(weight)))
        caption = "The weights of the first layer, by channel of its output."
        yield Artifact("filters", "maps", _as_images(weight.detach()).float(), labels, caption=caption)


def side_by_side(patches: Float[Tensor, "u p c *size"], gap: float) -> Float[Tensor, "u _ h w"]:
    """The patches of a unit in a row, made small, with a line of this value between two of them."""
    images = _as_images(patches.flatten(0, 1)).float()
    height, width = images.shape[2:]
    small = adaptive_avg_pool2d(images, (min(height, SIDE), min(width, SIDE if patches.ndim > 4 else SIDE**2)))
    rows = pad(small, (0, 1), value=gap).unflatten(0, patches.shape[:2])
    return torch.cat(rows.unbind(1), -1)[..., :-1]


def _as_images(values: Float[Tensor, "m c *axes"]) -> Float[Tensor, "m _ h w"]:
    """Signals as images whose rows are channels."""
    return values[:, None] if values.ndim == 3 else values


def _named(exciting: Exciting, most: int | None = SHOWN) -> tuple[str, ...]:
    return tuple(f"unit {int(unit)}" for unit in exciting.units[:most])
