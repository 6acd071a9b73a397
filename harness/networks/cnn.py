"""A plain convolutional network with the activation of choice."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class CNN(nn.Module):
    """Two convolutions and two linear layers for images [c, h, w], in the style of `adebayo2018sanity`.

    Covers max-pooling, rectifiers as modules or the smooth activations that rules for rectifiers refuse, and batch
    norm, which lets the same recipe memorize permuted labels within a minute or two.

    Args:
        shape: [c, h, w] of one input.
        classes: how many logits.
        activation: makes a new activation after each hidden layer, such as `nn.ReLU`, `nn.GELU` or `nn.Tanh`.
        batch_norm: normalize between each hidden layer and its activation.
        widths: channels of the two convolutions, and units of the hidden linear layer.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        widths: tuple[int, int, int] = (16, 32, 256),
    ) -> None:
        super().__init__()
        channels, height, width = shape
        first, second, hidden = widths

        def convolution(inputs: int, outputs: int) -> nn.Sequential:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return nn.Sequential(nn.Conv2d(inputs, outputs, 5, padding=2), *norm, activation(), nn.MaxPool2d(2))

        self.hidden1 = convolution(channels, first)
        self.hidden2 = convolution(first, second)
        norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
        features = second * (height // 4) * (width // 4)
        self.fc1 = nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), *norm, activation())
        self.softmax_linear = nn.Linear(hidden, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        return self.softmax_linear(self.fc1(self.hidden2(self.hidden1(x))))
