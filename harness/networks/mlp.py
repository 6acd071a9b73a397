"""A multilayer perceptron."""

import itertools
from math import prod

from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers and rectifiers on flattened inputs: tables [f], signals [c, t] and images [c, h, w] alike.

    Covers the plain case, piecewise linear without weight sharing or pooling: methods that differ only in how they
    treat anything else agree here.

    Args:
        shape: of one input.
        classes: how many logits.
        hidden: the widths of the hidden layers.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, hidden: tuple[int, ...] = (128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise((prod(shape), *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear((prod(shape), *hidden)[-1], classes)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        return self.output(self.hidden(x))
