"""Classifiers inside networks of which is known what cannot matter: cells that never meet, and a masked input."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data.planting import CELLS, cells_of, in_cells, left_half, picture_of
from harness.digests import digest
from harness.entries import nearest
from harness.models import ModelSource, Shape
from harness.registry import MODELS, model_source, split_source
from harness.training import Lesson, Progress, Trainer
from harness.types import InputError


class Grid(nn.Module):
    r"""The same classifier in each of 2 x 2 cells of a picture, $f_{kC+c}(x) = g_c(x_k)$: DiFull of `rao2022towards`.

    Nothing outside of cell k can matter to the logits from kC to kC + C - 1: relevance there is wrong, whatever the
    classifier is. Cells are upper left, upper right, lower left and lower right.

    The network is the same function with `joint`, but its last feature map is one for the whole picture, as in a
    network without cells: `joined`. Methods that give all positions of a channel the same weight, as Grad-CAM does,
    put relevance off the cell when they look at that.

    Args:
        classifier: takes one cell, and returns logits [n, classes].
        joint: name of the module of the classifier in front of which the feature maps of the cells are joined, and cut
            again; empty: nowhere.

    Raises:
        InputError: the classifier has no such module.
    """

    def __init__(self, classifier: nn.Module, joint: str = "") -> None:
        super().__init__()
        known = [name for name, _ in classifier.named_modules() if name]
        if joint and joint not in known:
            raise InputError(f"joint {joint!r}: the classifier has no such module; {nearest(joint, known)}")
        self.classifier, self.joint = classifier, joint
        self.joined = nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n logits"]:
        """The logits of each cell, one cell after the other."""
        with self._joining():
            logits = self.classifier(cells_of(x).flatten(0, 1))
        return torch.cat([logits[cell::CELLS] for cell in range(CELLS)], 1)

    @contextmanager
    def _joining(self) -> Iterator[None]:
        handle = (
            self.classifier.get_submodule(self.joint).register_forward_pre_hook(self._through) if self.joint else None
        )
        try:
            yield
        finally:
            if handle:
                handle.remove()

    def _through(self, _module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        """The feature maps of all cells, which have been one map in between.

        Raises:
            InputError: the module reads something else.
        """
        features = inputs[0] if inputs else None
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise InputError(f"joint {self.joint!r}: expected a module that reads feature maps [n, k, h, w]")
        joined = self.joined(picture_of([features[cell::CELLS] for cell in range(CELLS)]))
        return cells_of(joined).flatten(0, 1)


class Masked(nn.Module):
    r"""A classifier that sees a part of its input: $f(x) = g(x \odot M)$.

    Nothing outside of the mask can matter: relevance there is wrong, whatever the classifier is.

    Args:
        classifier: the network inside.
        mask: what it sees, 1 there and 0 elsewhere, [*axes] or to be broadcast over channels; the first half of the
            last axis if there is none.
    """

    mask: Tensor | None

    def __init__(self, classifier: nn.Module, mask: Float[Tensor, "..."] | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """The logits of the classifier."""
        mask = left_half(tuple(x.shape[1:])).to(x.device, x.dtype) if self.mask is None else self.mask
        return self.classifier(x * mask)


@dataclass(frozen=True)
class CellRecipe:
    """Trains the classifier of a `Grid` on the labelled cell of each picture, by the recipe that it has by itself.

    Attributes:
        inner: that recipe.
    """

    inner: Trainer

    @property
    def title(self) -> str:
        """What that one is called."""
        return self.inner.title

    def identity(self, initial: nn.Module) -> object:
        """What the trained network depends on besides its code, the data and the seed."""
        return "labelled cells", self.inner.identity(_inside(initial))

    def fit(
        self, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], lesson: Lesson, progress: Progress
    ) -> nn.Module:
        """Train the classifier in place; labels are those of the grid."""
        classifier, cells = _inside(model), cells_of(x)
        with torch.no_grad():
            classes = classifier.eval()(cells[0].to(next(classifier.parameters()).device)).shape[1]
        labelled = cells[torch.arange(len(x)), y.cpu() // classes]
        self.inner.fit(classifier, labelled, y % classes, lesson, progress)
        return model


@dataclass(frozen=True)
class GridSource(ModelSource):
    """The source of a `Grid`.

    Attributes:
        cell: the source of its classifier.
    """

    cell: ModelSource | None = None

    def input_shape(self, weights: str | None) -> Shape | None:
        """The shape of one picture, whose cells are as the weights want them."""
        shape = self.cell.input_shape(weights) if self.cell else None
        return _doubled(shape) if shape else None


@model_source(argument="MODEL")
def grid(argument: str, *, base: Path = Path(), joint: str = "") -> ModelSource:
    """Any model in each of 2 x 2 cells, with a set of logits a cell: no cell can matter to the logits of another.

    For the data `grid:DATA`; explain the label. Trained as the model by itself, on the labelled cells; weights are
    those of the model by itself.

    Args:
        argument: the model, such as mnist-cnn or torchvision:resnet18.
        base: what paths are relative to.
        joint: name of the module of that model in front of which the feature maps of the cells are joined to one, which
            class activation maps then look at; none by default.
    """
    inner = _source_of(argument, base)

    def around(build: Callable[[Shape, int], nn.Module]) -> Callable[[Shape, int], nn.Module]:
        return lambda shape, classes: Grid(build(_halved(shape), classes // CELLS), joint)

    published = {
        name: replace(each, build=around(each.build or inner.build), classes=in_cells(each.classes))
        for name, each in inner.pretrained.items()
    }
    recipe = CellRecipe(inner.recipe) if inner.recipe else None
    data, shape = f"grid:{inner.data}" if inner.data else "", _doubled(inner.shape) if inner.shape else None
    code = _code_of(inner)
    return GridSource(f"grid:{argument}", around(inner.build), published, recipe, data, shape, code, inner)


@model_source(argument="MODEL")
def masked(argument: str, *, base: Path = Path()) -> ModelSource:
    """Any model that sees the left half of its input only: nothing else can matter.

    For the data `masked:DATA`. Weights are those of the model by itself.

    Args:
        argument: the model, such as mnist-cnn or torchvision:resnet18.
        base: what paths are relative to.

    Raises:
        InputError: a grid, which has its masks in its cells.
    """
    inner = _source_of(argument, base)
    if isinstance(inner, GridSource):
        raise InputError(f"masked:{argument}: expected the mask in the cells, grid:masked:{argument[len('grid:') :]}")

    def around(build: Callable[[Shape, int], nn.Module]) -> Callable[[Shape, int], nn.Module]:
        return lambda shape, classes: Masked(build(shape, classes))

    published = {
        name: replace(each, build=around(each.build or inner.build)) for name, each in inner.pretrained.items()
    }
    data = f"masked:{inner.data}" if inner.data else ""
    return replace(
        inner,
        name=f"masked:{argument}",
        build=around(inner.build),
        pretrained=published,
        data=data,
        code=_code_of(inner),
    )


def _source_of(argument: str, base: Path) -> ModelSource:
    kind, rest = split_source(argument, MODELS)
    source: ModelSource = kind.load(rest, {}, base=base)
    return source


def _code_of(inner: ModelSource) -> Callable[[nn.Module], str]:
    """What tells the wrapper and the model in it from others."""

    def code(network: nn.Module) -> str:
        classifier = _inside(network)
        theirs = inner.code(classifier) if inner.code else inspect.getsource(sys.modules[type(classifier).__module__])
        return digest(inspect.getsource(sys.modules[__name__]), theirs)

    return code


def _inside(network: nn.Module) -> nn.Module:
    assert isinstance(network, Grid | Masked)
    return network.classifier


def _halved(shape: Shape) -> Shape:
    return (*shape[:1], *(side // 2 for side in shape[1:]))


def _doubled(shape: Shape) -> Shape:
    return (*shape[:1], *(2 * side for side in shape[1:]))
