"""Receptive fields: which part of the input a position of a layer can depend on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.activations import Layer, activations


def receptive_fields(
    model: nn.Module, x: Float[Tensor, "n c *axes"], layers: Sequence[Layer], chunk: int
) -> dict[Layer, Int[Tensor, "positions axes 2"]]:
    """The smallest box of the input that holds all that each position of a layer depends on.

    A position depends on a line of the input if a NaN there makes it NaN. That is a matter of the architecture alone:
    a weight of zero and a rectifier that is shut hand a NaN on, where a gradient would vanish. Where none arrives at
    all, because the network replaces them, the box is the whole input.

    Args:
        model: the network.
        x: some samples, of which the first serves.
        layers: from `layers_of`.
        chunk: how many samples go through the network at once.

    Returns:
        The first and the last index along each axis, for each position in the order of a flattened output.
    """
    found: dict[Layer, list[Tensor]] = {layer: [] for layer in layers}
    with _plain_convolutions():
        for axis in range(2, x.ndim):
            size = x.shape[axis]
            probes = x[:1].repeat(size, *(1,) * (x.ndim - 1))
            line = torch.arange(size, device=x.device)
            probes.movedim(axis, 1)[line, line] = torch.nan
            reached = activations(model, probes, layers, chunk, _is_reached)
            for layer, boxes in found.items():
                lines = reached[layer.name]
                boxes.append(torch.stack([lines.argmax(0), size - 1 - lines.flip(0).argmax(0)], 1))
    return {layer: torch.stack(boxes, 1) for layer, boxes in found.items()}


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """Convolutions as sums over their own window: fast ones transform whole tiles, and a NaN fills its tile."""
    with (
        torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
        torch.backends.nnpack.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield


def _is_reached(output: Float[Tensor, "n k *axes"]) -> Float[Tensor, "n positions"]:
    """Of each probe 1 for the positions with a NaN in any channel, else 0."""
    reached = output.isnan().flatten(2).any(1) if output.ndim > 2 else output.isnan().any(1, keepdim=True)
    return reached.to(output)
