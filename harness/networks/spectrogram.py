"""A convolutional network on spectrograms."""

from jaxtyping import Float
from torch import Tensor, nn


class SpectrogramCNN(nn.Module):
    """2-D convolutions on spectrograms [1, frequencies, frames], a mean over the frames and two linear layers.

    Covers inputs that look like images and are none: the sides differ, so do the axes (the network is told where in
    frequency but not when), and zero is silence. It takes any number of frames.

    Args:
        shape: [c, frequencies, frames] of one input.
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, frequencies, _ = shape
        self.hidden1 = _convolution(channels, 16)
        self.hidden2 = _convolution(16, 32)
        self.hidden3 = _convolution(32, 64)
        self.fc1 = nn.Sequential(nn.Linear(64 * (frequencies // 8), 128), nn.BatchNorm1d(128), nn.ReLU())
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Float[Tensor, "n c frequencies frames"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        x = self.hidden3(self.hidden2(self.hidden1(x)))
        return self.linear(self.fc1(x.mean(3).flatten(1)))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
