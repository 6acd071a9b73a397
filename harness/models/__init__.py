"""Models: where a network and its weights come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from harness.data.images import Preprocessing
from harness.training import Trainer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pretrained:
    """Weights that a library publishes under a name.

    Attributes:
        state: fetches them.
        preprocessing: that which they were trained with.
        build: the constructor with the settings that they were trained with; None if it is that of the source.
        classes: the names of their classes by index; empty if nobody says them.
    """

    state: Callable[[], Mapping[str, Tensor]]
    preprocessing: Preprocessing | None
    build: Callable[[Shape, int], nn.Module] | None = None
    classes: tuple[str, ...] = ()


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
        code: network -> a hash of the user's own code that its outputs depend on; None if it is a library's or ours.
    """

    name: str
    build: Callable[[Shape, int], nn.Module]
    pretrained: Mapping[str, Pretrained] = field(default_factory=dict)
    recipe: Trainer | None = None
    data: str = ""
    shape: Shape | None = None
    code: Callable[[nn.Module], str] | None = None

    def constructor(self, weights: str | None) -> Callable[[Shape, int], nn.Module]:
        """The constructor for weights of this name."""
        return (self.pretrained[weights].build if weights and weights in self.pretrained else None) or self.build

    def input_shape(self, weights: str | None) -> Shape | None:
        """The shape of one input as weights of this name want it, where no data say it; None if nobody knows."""
        preprocessing = self.preprocessing(weights)
        if preprocessing and preprocessing.crop:
            return (len(preprocessing.mean), preprocessing.crop, preprocessing.crop)
        return self.shape

    def preprocessing(self, weights: str | None) -> Preprocessing | None:
        """The preprocessing that comes with weights of this name, if any does."""
        return self.pretrained[weights].preprocessing if weights and weights in self.pretrained else None
