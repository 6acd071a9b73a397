"""A small variational autoencoder: a decoder that is trained on the data."""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from harness.methods.image_parameters import Box
from harness.methods.image_prior import Decoder
from harness.random import torch_seeded
from harness.types import NotApplicableError

CODES = 10
"""Numbers in a code: few, because what is not needed would be noise to the decoder and a way out for the ascent."""

HIDDEN = 256
STEPS, BATCH, RATE = 2000, 64, 1e-3

LARGEST = 2**14
"""Values of a sample, at most: layers that see all of them at once grow with it, and need more data than there are."""


@dataclass(frozen=True)
class VariationalAutoencoder(Decoder):
    r"""Images as $\sigma(d(z))$ between the ends of the valid range, with d two layers that were trained on the data.

    Attributes:
        network: d, from codes to what the sigmoid makes values of, all in one row.
        shape: (c, *axes).
    """

    network: nn.Module
    shape: tuple[int, ...]

    @classmethod
    def fitted(cls, x: Float[Tensor, "n c *axes"], box: Box, seed: int, steps: int = STEPS) -> "VariationalAutoencoder":
        """The decoder of these data.

        Adam (`kingma2015adam`) on `negative_bound`, with batches of up to 64 samples that are drawn at random.

        Raises:
            NotApplicableError: a sample has more values than such a network is for.
        """
        shape = tuple(x.shape[1:])
        if prod(shape) > LARGEST:
            raise NotApplicableError(
                f"a variational autoencoder is trained on samples of at most {LARGEST} values, got {list(shape)}: "
                "take prior: principal_components"
            )
        values = box.inside(x).clamp(0, 1).flatten(1)
        # Random numbers are the CPU's, so that those of another device are the same.
        with torch_seeded(seed, "variational autoencoder"), torch.enable_grad():
            encoder, decoder = (
                nn.Sequential(nn.Linear(some, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, others)).to(values)
                for some, others in ((values.shape[1], 2 * CODES), (CODES, values.shape[1]))
            )
            optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)
            for _ in range(steps):
                rows = torch.randint(len(x), (min(BATCH, len(x)),)).to(x.device)
                noise = torch.randn(len(rows), CODES).to(values)
                loss = negative_bound(encoder, decoder, values[rows], noise).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return cls(box, decoder.requires_grad_(False).eval(), shape)

    @property
    def codes(self) -> int:
        """Ten."""
        return CODES

    def decoded(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n c *axes"]:
        """What the network says of codes."""
        return self.box.outside(self.network(codes).sigmoid().unflatten(1, self.shape))


def negative_bound(
    encoder: nn.Module, decoder: nn.Module, values: Float[Tensor, "n d"], noise: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    r"""$-\log p(x | z) + \mathrm{KL}(q(z | x) \,\|\, \mathcal N(0, 1))$ with $z = \mu + s \epsilon$ (`kingma2014auto`).

    The encoder says $\mu$ and $\log s^2$. Values from 0 to 1 are taken for the probabilities of a Bernoulli variable.
    """
    mean, log_variance = encoder(values).chunk(2, 1)
    told = decoder(mean + (log_variance / 2).exp() * noise)
    unlikely = F.binary_cross_entropy_with_logits(told, values, reduction="none").sum(1)
    return unlikely + (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
