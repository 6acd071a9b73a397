"""A prior that is learnt from the data: a decoder, whose code is optimized in the place of the pixels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harness.methods.image_parameters import Box

CODES = 32
"""Numbers in a code, at most."""


@dataclass(frozen=True)
class Decoder:
    r"""Images as $\mu + \sum_j z_j s_j v_j$, cut to the valid range, with codes z of length $\sqrt k$.

    The decoder of the best linear autoencoder (`baldi1989neural`): v are the first k principal components of the data
    and s their standard deviations, so that codes of data have variance 1 along each axis. Random normal codes are
    about $\sqrt k$ long; all codes are brought to that length, so that what is optimized is no farther from the data
    than what is drawn at random.

    Attributes:
        mean: of the data, [1, c, *axes].
        components: principal components times their standard deviations, [k, c, *axes].
        box: the valid range.
    """

    mean: Float[Tensor, "1 c *axes"]
    components: Float[Tensor, "k c *axes"]
    box: Box

    @classmethod
    def fitted(cls, x: Float[Tensor, "n c *axes"], box: Box, codes: int = CODES) -> "Decoder":
        """The decoder of these data, of at most `codes` components and fewer than there are samples."""
        mean = x.mean(0, keepdim=True)
        k = max(min(codes, len(x) - 1, x[0].numel()), 1)
        _, values, vectors = torch.linalg.svd((x - mean).flatten(1), full_matrices=False)
        deviations = values[:k] / max(len(x) - 1, 1) ** 0.5
        return cls(mean, (vectors[:k] * deviations[:, None]).view(-1, *x.shape[1:]), box)

    def images(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n c *axes"]:
        """The images of codes, of which the length does not matter."""
        length = codes.norm(dim=1, keepdim=True).clamp(min=torch.finfo(codes.dtype).tiny)
        unit = codes * (len(self.components) ** 0.5 / length)
        images = self.mean + (unit @ self.components.flatten(1)).view(-1, *self.components.shape[1:])
        return self.box.outside(self.box.inside(images).clamp(0, 1))
