"""Model sources by name, and what a metric may ask of a loaded model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor, nn

from harness.blocks import blocks_of
from harness.case import Block, Partner, Source
from harness.data import Dataset, digest, load_data
from harness.networks import MnistCNN
from harness.random import Draws
from harness.registry import UnknownNameError, nearest
from harness.training import Progress, Recipe, Trained, trained
from harness.twins import architecture_of, twin_note, twin_of

MEMORIZED = 0.95
CHANCE_SIGNIFICANCE = 0.01
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class ModelSource:
    """A constructor, and how what it makes becomes a trained network.

    Attributes:
        name: the source's name.
        summary: one line for `harness list models`.
        build: the constructor.
        data: the name of the data it is trained on and explained on by default.
        recipe: how it is trained.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    data: str
    recipe: Recipe


MODELS: dict[str, ModelSource] = {
    "mnist-cnn": ModelSource(
        "mnist-cnn",
        "two convolutions, two linear layers, batch norm; trained on mnist-5k in seconds",
        MnistCNN,
        "mnist-5k",
        Recipe(epochs=8, permuted_epochs=20, batch=64, rate=3e-3),
    )
}


def model_source(name: str) -> ModelSource:
    """The model source of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in MODELS:
        raise UnknownNameError(f"unknown model {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]


@dataclass
class LoadedModel(Source):
    """A trained network on its device, with its twins, partner and blocks (`harness.case.Source`).

    Attributes:
        model: the network in evaluation mode.
        build: its constructor, if there is one.
        seed: the study's seed; twins are keyed by it.
        example: one input, to trace the blocks with.
        calibration: inputs to re-estimate batch-norm statistics with.
        train_partner: trains the partner, if there is a recipe.
        model_seed: the seed the network was trained with.
    """

    model: nn.Module
    build: Callable[[], nn.Module] | None
    seed: int
    example: Float[Tensor, "1 ..."]
    calibration: Float[Tensor, "m ..."]
    train_partner: Callable[[], tuple[Trained, Dataset]] | None = None
    model_seed: int = 0

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in execution order."""
        return blocks_of(self.model, self.example)

    @cached_property
    def weights(self) -> str:
        """A hash of all parameters and buffers with their names."""
        return _hash_of(self.model)

    @cached_property
    def partner_weights(self) -> str:
        """The same of the partner, which is trained for it; empty if there is no recipe."""
        return _hash_of(self.partner().model) if self.train_partner else ""

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and of what its randomized versions depend on."""
        return digest(self.weights, self.note, self.calibration)

    @property
    def note(self) -> str:
        """How the twins come about."""
        return twin_note(self.model, self.build)

    def twin(self, draw: int) -> nn.Module:
        """A randomly initialized network of the same architecture, keyed by (seed, architecture, draw)."""
        return twin_of(self.model, self.build, self.seed, architecture_of(self.model), draw)

    def partner(self) -> Partner:
        """The same network trained on permuted labels, with the reason why it is invalid, if it is.

        Raises:
            LookupError: the model has no recipe; `needs=("partner",)` keeps a metric from getting here.
        """
        if self._partner is None:
            raise LookupError("the model has no training recipe, so it has no partner trained on permuted labels")
        return self._partner

    @cached_property
    def _partner(self) -> Partner | None:
        if self.train_partner is None or self.build is None:
            return None
        result, data = self.train_partner()
        network = self.build()
        network.load_state_dict(result.state)
        network.to(self.example.device, self.example.dtype).eval()
        return Partner(network, result.train_accuracy, result.test_accuracy, _invalid(result, data))


def _hash_of(model: nn.Module) -> str:
    return digest({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _invalid(result: Trained, data: Dataset) -> str:
    """Why a partner cannot serve: it did not memorize its labels, or knows more than chance; else empty.

    Fewer hits than chance are luck: similar digits share a prediction, so that accuracies spread widely.
    """
    if result.train_accuracy < MEMORIZED:
        return f"the partner memorized {result.train_accuracy:.1%} of its permuted labels, needs {MEMORIZED:.0%}"
    classes = int(data.y.max()) + 1
    hits = round(result.test_accuracy * len(data.y))
    if binomtest(hits, len(data.y), 1 / classes, alternative="greater").pvalue < CHANCE_SIGNIFICANCE:
        return f"the partner's test accuracy {result.test_accuracy:.1%} is above chance, {1 / classes:.1%}"
    return ""


def load_model(name: str, *, model_seed: int, seed: int, device: torch.device, progress: Progress) -> LoadedModel:
    """A built-in network with trained weights, on its device.

    Raises:
        UnknownNameError: no such model.
    """
    source = model_source(name)
    data = load_data(source.data)

    def train(permuted: bool) -> Trained:
        return trained(
            source.build, data, source.recipe, name=name, seed=model_seed, permuted=permuted, progress=progress
        )

    network = source.build()
    network.load_state_dict(train(permuted=False).state)
    network.to(device).eval()
    rows = Draws.of(["calibration"], data.name).permutation(len(data.train_x))[0][:CALIBRATION_SAMPLES]
    return LoadedModel(
        network,
        source.build,
        seed,
        data.x[:1].to(device),
        data.train_x[rows].to(device),
        lambda: (train(permuted=True), data),
        model_seed,
    )
