"""The networks of `adebayo2018sanity` for MNIST, with its initializers: what a block is randomized to."""

from collections.abc import Callable

import torch
from torch import nn

from harness.networks.cnn import CNN
from harness.networks.mlp import MLP

BIAS = 0.1


class AdebayoCNN(CNN):
    """Convolutions of 32 and 64 channels and a layer of 1,024 units; weights of standard deviation 0.1.

    Args:
        shape: [c, h, w] of one input.
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, classes, widths=(32, 64, 1024))
        _draw(self, lambda _: 0.1)


class AdebayoMLP(MLP):
    r"""Hidden layers of 2,500, 1,500 and 500 units; weights of standard deviation $2 / \sqrt{inputs}$.

    Args:
        shape: of one input.
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, classes, hidden=(2500, 1500, 500))
        _draw(self, lambda inputs: 2 / inputs**0.5)


def _draw(network: nn.Module, deviation: Callable[[int], float]) -> None:
    """As TensorFlow does: normal weights, drawn again beyond two standard deviations, and one small bias for all.

    Args:
        network: its parameters are drawn anew.
        deviation: of the weights, given the number of inputs of a unit.
    """
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, BIAS)
        else:
            with torch.no_grad():
                parameter.normal_()
                # Torch's own truncated normal takes fifteen times as long, for every randomized network.
                while (beyond := parameter.abs() > 2).any():
                    parameter[beyond] = torch.randn(int(beyond.sum()))
                parameter.mul_(deviation(parameter[0].numel()))
