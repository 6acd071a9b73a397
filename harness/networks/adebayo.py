"""The networks of `adebayo2018sanity` for MNIST, with its initializers: what a block is randomized to."""

from jaxtyping import Float
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
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _draw(module.weight, module.bias, 0.1)


class AdebayoMLP(MLP):
    r"""Hidden layers of 2,500, 1,500 and 500 units; weights of standard deviation $2 / \sqrt{inputs}$.

    Args:
        shape: of one input.
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, classes, hidden=(2500, 1500, 500))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _draw(module.weight, module.bias, 2 / module.in_features**0.5)


def _draw(weight: Float[nn.Parameter, "outputs ..."], bias: Float[nn.Parameter, " outputs"], deviation: float) -> None:
    """As TensorFlow does: a normal distribution cut at two standard deviations, and the same small bias everywhere."""
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.constant_(bias, BIAS)
