"""What is optimized in the place of the pixels of an image: coefficients from which only valid images come."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harness.space import InputSpace

EDGE = 0.01
"""How far within the valid range an image is moved before its coefficients are taken: at its ends they are infinite."""


def hartley(x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n c *axes"]:
    r"""The discrete Hartley transform over positions, $\frac{1}{\sqrt N} \sum_p x_p \, \mathrm{cas}(2 \pi f \cdot p)$.

    With $\mathrm{cas} = \cos + \sin$: the Fourier transform in real numbers (`bracewell1983discrete`). It keeps norms
    and is its own inverse.
    """
    transform = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
    return transform.real - transform.imag


def frequencies(x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "*axes"]:
    """The length of the frequency of each coefficient of a Hartley or Fourier transform, in cycles a position."""
    squares = x.new_zeros(())
    for side in x.shape[2:]:
        squares = squares.unsqueeze(-1) + torch.fft.fftfreq(side, dtype=x.dtype, device=x.device).square()
    return squares.sqrt()


@dataclass(frozen=True)
class Box:
    """The valid range of an input, and the colour in it that stands for nothing.

    Attributes:
        low: the lowest valid value of each channel, in the units of the model's input.
        high: the highest one.
        middle: the mean of the data: the image whose coefficients are zero, and what lies beyond the edge of an image.
    """

    low: Float[Tensor, "c ..."]
    high: Float[Tensor, "c ..."]
    middle: Float[Tensor, "c ..."]

    @classmethod
    def of(cls, space: InputSpace, x: Float[Tensor, "n c *axes"]) -> "Box":
        """The declared range; where none is, that of the values of each channel in the data."""
        shape = (-1, *(1,) * (x.ndim - 2))
        channels = x.movedim(1, 0).flatten(1)
        if space.mean is None:
            low, high = channels.amin(1).view(shape), channels.amax(1).view(shape)
        else:
            low, high = (end.expand(x.shape[1], *end.shape[1:]) for end in space.bounds(x))
        return cls(low, high, channels.mean(1).view(shape))

    def inside(self, x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n c *axes"]:
        """Where in the range each value lies, from 0 to 1."""
        return (x - self.low) / self._width

    def outside(self, inside: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n c *axes"]:
        """The inverse of `inside`."""
        return self.low + self._width * inside

    @property
    def _width(self) -> Float[Tensor, "c ..."]:
        return (self.high - self.low).clamp(min=torch.finfo(self.low.dtype).tiny)


@dataclass(frozen=True)
class Coefficients:
    r"""Images as $l + (h - l) \, \sigma(m + T c)$ of any real coefficients c, with l and h the ends of the valid range.

    T is the identity, or the inverse Fourier transform of coefficients that are divided by their frequency, as
    natural images have them (`olah2017feature`): steps of one size in the coefficients are then large at low
    frequencies and small at high ones. What they are multiplied by has mean square 1.
    m is where $\sigma$ gives the mean of the data.

    Attributes:
        box: the valid range.
        fourier: whether coefficients belong to frequencies, and else to pixels.
    """

    box: Box
    fourier: bool

    def images(self, coefficients: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n c *axes"]:
        """The images of coefficients, in the units of the model's input."""
        raw = hartley(coefficients * self._weights(coefficients)) if self.fourier else coefficients
        return self.box.outside((raw + self._middle).sigmoid())

    def of(self, x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n c *axes"]:
        """The coefficients of images, which are moved off the ends of the valid range before."""
        raw = self.box.inside(x).clamp(EDGE, 1 - EDGE).logit() - self._middle
        return hartley(raw) / self._weights(raw) if self.fourier else raw

    @property
    def _middle(self) -> Float[Tensor, "c ..."]:
        return self.box.inside(self.box.middle).clamp(EDGE, 1 - EDGE).logit()

    def _weights(self, x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "*axes"]:
        # A constant image has frequency 0, and counts as the lowest that is not.
        weights = 1 / frequencies(x).clamp(min=1 / max(x.shape[2:]))
        return weights / weights.square().mean().sqrt()
