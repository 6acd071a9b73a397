"""The built-in networks, written for reading."""

from jaxtyping import Float
from torch import Tensor, nn


class MnistCNN(nn.Module):
    """Two convolutions and two linear layers for 28 x 28 digits in [0, 1], in the style of `adebayo2018sanity`.

    Batch norm after each hidden layer lets the same recipe memorize permuted labels within a minute or two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden2 = nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.fc1 = nn.Sequential(nn.Flatten(), nn.Linear(32 * 7 * 7, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.softmax_linear = nn.Linear(256, 10)

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        """The logits of the ten digits."""
        return self.softmax_linear(self.fc1(self.hidden2(self.hidden1(x))))
