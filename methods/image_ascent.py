"""Gradient ascent on what an image is made of, until it excites a unit as much as it can."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from harness.methods.image_parameters import Box
from harness.methods.image_regularizers import frequency_penalty, moved, total_variation
from harness.random import Draws

MOVES = 4
"""Random numbers of a transformation: an angle, a scale, and a shift along at most two axes."""


@dataclass(frozen=True)
class Ascent:
    r"""Adam (`kingma2015adam`) on $J(T x) - \lambda_f R_f(x) - \lambda_t R_t(x)$, in each step with a new random T.

    Penalties set in linearly over the first half of the steps: at full weight they would wipe out the start where there
    is no steep gradient yet.

    Attributes:
        steps: how many.
        rate: the learning rate, in the units of what is optimized.
        jitter: by how much an image is shifted at most, as a share of each side, in whole positions.
        rotation: by how much it is turned at most, in degrees.
        scale: by how much it is made larger or smaller at most: 0.1 is from 1 / 1.1 to 1.1.
        frequency_penalty: $\lambda_f$ of `harness.methods.image_regularizers.frequency_penalty`.
        total_variation: $\lambda_t$ of `harness.methods.image_regularizers.total_variation`; both are of images in
            their valid range, from 0 to 1.
    """

    steps: int
    rate: float
    jitter: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    frequency_penalty: float = 0.0
    total_variation: float = 0.0

    def climb(
        self,
        value: Callable[[Float[Tensor, "n c *axes"]], Float[Tensor, " n"]],
        images: Callable[[Tensor], Float[Tensor, "n c *axes"]],
        start: Float[Tensor, "n ..."],
        box: Box,
        draws: Draws,
    ) -> Float[Tensor, "n ..."]:
        """What the images are made of, after the last step. The images of a batch do not see each other.

        Args:
            value: J of images.
            images: makes them.
            start: of what, at the beginning.
            box: the valid range.
            draws: of the transformations, for each image.
        """
        code = start.detach().clone()
        optimizer = torch.optim.Adam([code], lr=self.rate, maximize=True)
        places = 2 * draws.uniform(self.steps, MOVES).to(start.dtype) - 1 if self._moves else None
        for step in range(self.steps):
            with torch.enable_grad():
                x = images(code.requires_grad_())
                total = value(x if places is None else self._moved(x, places[:, step], box))
                inside = box.inside(x)
                share = min(1.0, 2 * step / self.steps)
                if self.frequency_penalty:
                    total = total - share * self.frequency_penalty * frequency_penalty(inside)
                if self.total_variation:
                    total = total - share * self.total_variation * total_variation(inside)
                # Not backward(), which would leave gradients in the network.
                (code.grad,) = torch.autograd.grad(total.sum(), code)
            optimizer.step()
        return code.detach()

    @property
    def _moves(self) -> bool:
        return any((self.jitter, self.rotation, self.scale))

    def _moved(self, x: Float[Tensor, "n c *axes"], places: Float[Tensor, "n some"], box: Box) -> Tensor:
        sides = x.new_tensor(x.shape[2:])
        shift = (places[:, 2 : 2 + len(sides)] * self.jitter * sides).round()
        return moved(x, shift, places[:, 0] * self.rotation, (1 + self.scale) ** places[:, 1], box.middle)
