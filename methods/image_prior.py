"""Priors that are learnt from the data: decoders, whose codes are optimized in the place of pixels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harness.methods.image_parameters import Box

COMPONENTS = 32
"""How many principal components, at most."""


@dataclass(frozen=True)
class Decoder(ABC):
    r"""Images of codes of length $\sqrt k$, within the valid range.

    Random normal codes of k numbers are about $\sqrt k$ long. All codes are brought to that length, so that what is
    optimized is no farther from the data than what is drawn at random.

    Attributes:
        box: the valid range.
    """

    box: Box

    @property
    @abstractmethod
    def codes(self) -> int:
        """How many numbers a code has: k."""

    @abstractmethod
    def decoded(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n c *axes"]:
        """The images of codes of that length."""

    def images(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n c *axes"]:
        """The images of codes, of which the length does not matter."""
        length = codes.norm(dim=1, keepdim=True).clamp(min=torch.finfo(codes.dtype).tiny)
        return self.decoded(codes * (self.codes**0.5 / length))


@dataclass(frozen=True)
class PrincipalComponents(Decoder):
    r"""Images as $\mu + \sum_j z_j s_j v_j$, cut to the valid range.

    The decoder of the best linear autoencoder (`baldi1989neural`): v are the first k principal components of the data
    and s their standard deviations, so that codes of data have variance 1 along each axis.

    Attributes:
        mean: of the data, [1, c, *axes].
        components: principal components times their standard deviations, [k, c, *axes].
    """

    mean: Float[Tensor, "1 c *axes"]
    components: Float[Tensor, "k c *axes"]

    @classmethod
    def fitted(cls, x: Float[Tensor, "n c *axes"], box: Box, codes: int = COMPONENTS) -> "PrincipalComponents":
        """The decoder of these data, of at most `codes` components and fewer than there are samples."""
        mean = x.mean(0, keepdim=True)
        k = max(min(codes, len(x) - 1, x[0].numel()), 1)
        _, values, vectors = torch.linalg.svd((x - mean).flatten(1), full_matrices=False)
        deviations = values[:k] / max(len(x) - 1, 1) ** 0.5
        return cls(box, mean, (vectors[:k] * deviations[:, None]).view(-1, *x.shape[1:]))

    @property
    def codes(self) -> int:
        """One for each component."""
        return len(self.components)

    def decoded(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n c *axes"]:
        """The sums of components, cut to the valid range."""
        images = self.mean + (codes @ self.components.flatten(1)).view(-1, *self.components.shape[1:])
        return self.box.outside(self.box.inside(images).clamp(0, 1))
