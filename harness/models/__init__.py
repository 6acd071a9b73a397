"""Models: where a network and its weights come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from harness.data.images import Preprocessing
from harness.training import Recipe

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pretrained:
    """Weights that a library publishes under a name, with the preprocessing that they were trained with."""

    state: Callable[[], Mapping[str, Tensor]]
    preprocessing: Preprocessing | None


@dataclass(frozen=True)
class ModelSource:
    """A constructor, and how what it makes becomes a trained network.

    Attributes:
        name: as it is written in a study.
        build: shape of one input, number of classes -> a network with new weights. Sources whose networks have
            their own shape take no notice of either.
        pretrained: the weights that can be had by name.
        recipe: how it is trained where no weights are given; None if it cannot be.
        data: the data that it is trained and explained on by default.
        shape: of one input, where no data say it; None if nobody knows.
        code: a hash of code that is not ours and not a library's, and that the outputs depend on.
    """

    name: str
    build: Callable[[Shape, int], nn.Module]
    pretrained: Mapping[str, Pretrained] = field(default_factory=dict)
    recipe: Recipe | None = None
    data: str = ""
    shape: Shape | None = None
    code: str = ""

    def preprocessing(self, weights: str | None) -> Preprocessing | None:
        """The preprocessing that comes with weights of this name, if any does."""
        return self.pretrained[weights].preprocessing if weights and weights in self.pretrained else None
