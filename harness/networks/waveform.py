"""A convolutional network on raw audio."""

from jaxtyping import Float
from torch import Tensor, nn


class WaveformCNN(nn.Module):
    """1-D convolutions on waveforms [1, t], in the style of M5 (`dai2017very`), and two linear layers.

    Covers signals: inputs of either sign around a meaningful zero, one spatial axis, a wide first kernel with a
    stride, and a mean over time between convolutions and linear layers, which takes any length.

    Args:
        shape: [c, t] of one input; one second at 8 kHz is [1, 8000].
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.hidden1 = _convolution(shape[0], 32, kernel=80, stride=4, pool=4)
        self.hidden2 = _convolution(32, 32, kernel=5, pool=4)
        self.hidden3 = _convolution(32, 64, kernel=5, pool=4)
        self.hidden4 = _convolution(64, 64, kernel=5, pool=2)
        self.fc1 = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        x = self.hidden4(self.hidden3(self.hidden2(self.hidden1(x))))
        return self.linear(self.fc1(x.mean(2)))


def _convolution(inputs: int, outputs: int, kernel: int, pool: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(pool))
