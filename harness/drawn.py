"""Maps and samples as they are drawn: of bands a picture, with the lowest frequency at the bottom."""

from jaxtyping import Float
from torch import Tensor

from harness.metrics.preprocessing import reduce_channels
from harness.space import Kind


def maps_as_drawn(
    maps: Float[Tensor, "n *shape"], x: Float[Tensor, "n *input_shape"], kind: Kind
) -> Float[Tensor, "n *axes"]:
    """Channels summed; of bands, whose channels are frequencies, all of them, the lowest last.

    Args:
        maps: in the shape of the samples, or with one channel, which is that of all frequencies.
        x: the samples.
        kind: of them.
    """
    return maps.expand_as(x).flip(1) if kind == "bands" else reduce_channels(maps, "sum")


def samples_as_drawn(x: Float[Tensor, "n *shape"], kind: Kind) -> Float[Tensor, "n *drawn"]:
    """As they are; of bands as pictures of one channel [n, 1, frequencies, frames], the lowest frequency last."""
    return x.flip(1)[:, None] if kind == "bands" else x
