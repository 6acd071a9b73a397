"""A convolutional network over time that takes the frequencies of a spectrogram as channels."""

from jaxtyping import Float
from torch import Tensor, nn


class SpeechCNN(nn.Module):
    """1-D convolutions along the frames of a spectrogram [frequencies, frames], a mean over them, two linear layers.

    As networks for speech do it: the first layer mixes all frequencies, so that they have an order and no locality, and
    only time is an axis that it moves along. There is neither stride nor pooling in front of the mean, so that a sound
    in silence (zero), 10 frames or more from either end, has the same logits wherever it is: an output of the
    convolutions sees 6 frames to either side, and 4 of them at each end see that the zeros around it are padding. It
    takes any number of frames.

    Args:
        shape: [frequencies, frames] of one input.
        classes: how many logits.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.hidden1 = _convolution(shape[0], 64)
        self.hidden2 = _convolution(64, 64)
        self.hidden3 = _convolution(64, 64)
        self.fc1 = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Float[Tensor, "n frequencies frames"]) -> Float[Tensor, "n classes"]:
        """The logits."""
        x = self.hidden3(self.hidden2(self.hidden1(x)))
        return self.linear(self.fc1(x.mean(2)))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 5, padding=2), nn.BatchNorm1d(outputs), nn.ReLU())
