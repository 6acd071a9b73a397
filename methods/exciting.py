"""What excites the units of a layer most, and where; and the projections of that back to the input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.activations import Layer, activations, watching
from harness.methods.backward import deconvnet


@dataclass(frozen=True)
class Exciting:
    """For some units of a layer the samples that excite them most.

    Attributes:
        layer: the layer.
        units: their numbers.
        samples: for each unit, the most exciting one first.
        positions: where each excites it most, in the order of the layer's flattened output.
        corners: the first index along each axis of the patch that it sees there.
        size: of the patches along each axis.
        dead: the share of units of the layer that are never above zero, or equally excited by all samples.
    """

    layer: Layer
    units: Int[Tensor, " u"]
    samples: Int[Tensor, "u p"]
    positions: Int[Tensor, "u p"]
    corners: Int[Tensor, "u p axes"]
    size: tuple[int, ...]
    dead: Float[Tensor, ""]

    def cut(self, values: Float[Tensor, "m c *axes"]) -> Float[Tensor, "u p c *size"]:
        """The patches of these values: one array for each unit and sample, the units one after the other."""
        cut = values.new_empty((len(values), values.shape[1], *self.size))
        for each, value, window in zip(cut, values, self._windows(), strict=True):
            each.copy_(value[window])
        return cut.unflatten(0, self.samples.shape)

    def pasted(self, x: Float[Tensor, "m c *axes"], onto: Float[Tensor, "m c *axes"]) -> Float[Tensor, "m c *axes"]:
        """Each patch where it is, on something else: one array for each unit and sample, as for `cut`."""
        found = onto.clone()
        for each, sample, window in zip(found, x, self._windows(), strict=True):
            each[window] = sample[window]
        return found

    def _windows(self) -> Iterator[tuple[slice, ...]]:
        for corner in self.corners.flatten(0, 1).tolist():
            yield (slice(None), *(slice(start, start + side) for start, side in zip(corner, self.size, strict=True)))


def most_exciting(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    fields: Mapping[Layer, Int[Tensor, "positions axes 2"]],
    units: int,
    patches: int,
    chunk: int,
) -> list[Exciting]:
    """The samples that excite units most, for some units of each layer that are not dead, evenly spaced by number.

    All patches of a layer have the size of its largest receptive field; one that the border of the input cuts is
    completed by what lies at its other side.

    Args:
        model: the network.
        x: the samples.
        fields: the receptive fields of each layer.
        units: how many of a layer at most.
        patches: how many of a unit.
        chunk: how many samples go through the network at once.
    """
    found = []
    sides = torch.tensor(x.shape[2:], device=x.device)
    peaks = activations(model, x, tuple(fields), chunk, _peak)
    for layer, field in fields.items():
        height, where = peaks[layer.name].unbind(1)
        alive = ((height.amax(0) > 0) & (height.amax(0) > height.amin(0))).nonzero()[:, 0]
        spaced = torch.linspace(0, len(alive) - 1, min(units, len(alive)), device=x.device).round().long()
        chosen = alive[spaced]
        samples = height[:, chosen].argsort(dim=0, descending=True, stable=True)[:patches].T
        positions = where[samples, chosen[:, None]].long()
        size = (field[..., 1] - field[..., 0] + 1).amax(0)
        corners = torch.minimum(field[positions][..., 0], sides - size)
        dead = torch.tensor(1 - len(alive) / height.shape[1], dtype=torch.float64)
        found.append(Exciting(layer, chosen, samples, positions, corners, tuple(size.tolist()), dead))
    return found


def projections(
    model: nn.Module, x: Float[Tensor, "n c *axes"], exciting: Exciting, chunk: int
) -> Float[Tensor, "m c *axes"]:
    """DeconvNet projections of each unit at its positions (`zeiler2014visualizing`), the units one after the other.

    Raises:
        NotApplicableError: `deconvnet` has no rule for what the network does before the layer.
    """
    samples, positions = exciting.samples.flatten(), exciting.positions.flatten()
    of = exciting.units[:, None].expand_as(exciting.samples).flatten()
    found = x.new_empty((len(samples), *x.shape[1:]))
    for start in range(0, len(samples), chunk):
        part = slice(start, start + chunk)
        unit = At(model, exciting.layer, positions[part])
        found[part] = deconvnet(unit, x[samples[part]], of[part])
    return found


class At(nn.Module):
    """A network that returns what a layer holds at one position of each sample, [n, k], in the place of logits."""

    def __init__(self, model: nn.Module, layer: Layer, positions: Int[Tensor, " n"]) -> None:
        super().__init__()
        self.model, self.layer, self.positions = model, layer, positions

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """The channels of the layer at the positions, of the first samples if there are fewer."""
        with watching(self.model, [self.layer]) as outputs:
            self.model(x)
        output = outputs[self.layer.name]
        flat = output.flatten(2) if output.ndim > 2 else output[..., None]
        at = self.positions[: len(x), None, None].expand(-1, flat.shape[1], -1)
        return flat.gather(2, at)[..., 0]


def _peak(output: Float[Tensor, "n k *axes"]) -> Float[Tensor, "n 2 k"]:
    """The maximum of each channel over positions, and where it is."""
    flat = output.flatten(2) if output.ndim > 2 else output[..., None]
    height, where = flat.max(2)
    return torch.stack([height.double(), where.double()], 1)
