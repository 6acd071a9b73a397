"""A model with its weights on its device, and what a metric may ask of it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.blocks import blocks_of
from harness.case import Block, Partner, Source
from harness.data import Data
from harness.digests import digest
from harness.heads import with_head, without_head
from harness.models import ModelSource
from harness.models.weights import load_weights, read_weights
from harness.random import Draws, torch_seeded
from harness.registry import DATA, nearest, split_source
from harness.training import Progress, Trained, trained
from harness.twins import architecture_of, constructor_fault, twin_note, twin_of
from harness.types import InputError

MEMORIZED = 0.95
CHANCE_SIGNIFICANCE = 1e-4
CALIBRATION_SAMPLES = 512
RANDOM = "random"
FIRST_READABLE = 16
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th")


class NoWeightsError(InputError):
    """Nothing says which weights a network is to have."""


@dataclass
class LoadedModel(Source):
    """A trained network on its device, with its twins, partner and blocks (`harness.case.Source`).

    Attributes:
        model: the network in evaluation mode.
        build: its constructor, if there is one.
        seed: the study's seed; twins are keyed by it.
        example: one input, to trace the blocks with.
        calibrate: reads the inputs to re-estimate batch-norm statistics with.
        train_partner: trains the partner, if there is a recipe.
        model_seed: the seed the network was trained with, or which of several checkpoints it is.
        code: a hash of the code and the settings that make the network, with its weights, the function that it is.
        origin: where the weights come from, in words.
        read_background: reads the samples that stand for the data, if there are any.
    """

    model: nn.Module
    build: Callable[[], nn.Module] | None
    seed: int
    example: Float[Tensor, "1 ..."]
    calibrate: Callable[[], Float[Tensor, "m ..."]]
    train_partner: Callable[[], tuple[Trained, Data]] | None = None
    model_seed: int = 0
    code: str = ""
    origin: str = ""
    read_background: Callable[[], Float[Tensor, "m ..."]] | None = None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in execution order."""
        return blocks_of(self.model, self.example)

    @cached_property
    def calibration(self) -> Float[Tensor, "m ..."]:  # type: ignore[override]
        """Inputs to re-estimate batch-norm statistics with; none where there is nothing to estimate."""
        estimates = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        return self.calibrate() if estimates else self.example[:0]

    @cached_property
    def background(self) -> Float[Tensor, "m ..."]:  # type: ignore[override]
        """Samples that stand for the data.

        Raises:
            LookupError: there are none; `needs=("background",)` keeps a method from getting here.
        """
        if self.read_background is None:
            raise LookupError("no samples are known that stand for the data, so there is no background")
        return self.read_background()

    @cached_property
    def background_contents(self) -> str:
        """A hash of the background; empty if there is none."""
        return digest(self.background) if self.read_background else ""

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
        return digest(self.weights, self.note, self.calibration, self.code)

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
        without_head(network).load_state_dict(result.state)
        network.to(self.example.device, self.example.dtype).eval()
        return Partner(network, result.train_accuracy, result.test_accuracy, _invalid(result, data))


def _hash_of(model: nn.Module) -> str:
    return digest({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _invalid(result: Trained, data: Data) -> str:
    """Why a partner cannot serve: it did not memorize its labels, or knows more than chance; else empty.

    Fewer hits than chance are luck: similar digits share a prediction, so that accuracies spread more widely than a
    binomial would, and the level of significance is strict (a partner with 12.7 % of 1,000 digits knows nothing).
    """
    if result.train_accuracy < MEMORIZED:
        return f"the partner memorized {result.train_accuracy:.1%} of its permuted labels, needs {MEMORIZED:.0%}"
    classes = data.class_count
    hits = round(result.test_accuracy * len(data))
    if binomtest(hits, len(data), 1 / classes, alternative="greater").pvalue < CHANCE_SIGNIFICANCE:
        return f"the partner's test accuracy {result.test_accuracy:.1%} is above chance, {1 / classes:.1%}"
    return ""


@dataclass(frozen=True)
class Wanted:
    """What a study says of a model besides its source and data.

    Attributes:
        weights: a file, a name that the source knows, `random`, or None: trained, or as the constructor makes them.
        head: name of the head, empty if there is none, and its options.
        model_seed: of training and of random weights.
        base: what the path of a file is relative to.
    """

    weights: str | None = None
    head: tuple[str, Mapping[str, Any]] = ("", {})
    model_seed: int = 0
    base: Path = Path()


def load_model(
    source: ModelSource,
    data: Data,
    wanted: Wanted,
    *,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> LoadedModel:
    """A network with the weights that are wanted, on its device, in evaluation mode.

    Built-in networks take the shape of the data, and are trained on its training part or, where it has none, on
    the network's own default data if they have this shape.

    Raises:
        InputError: the weights cannot be had or do not fit.
    """
    rows, first, _ = data.readable(range(min(len(data), FIRST_READABLE)))
    if not rows:
        raise InputError(f"{data.name}: none of the first {FIRST_READABLE} samples can be read")
    school, shape = data, tuple(first[0].shape)
    if source.recipe and data.train is None and source.data:
        entry, argument = split_source(source.data, DATA)
        default: Data = entry.load(argument, {})
        school = default if default.batch([0])[0].shape == shape else data
    if source.recipe and not school.class_count:
        raise InputError(
            f"{source.name} on {school.name}: nothing says how many classes there are: give labels or classes"
        )

    def bare() -> nn.Module:
        return source.constructor(wanted.weights)(shape, school.class_count)

    def build() -> nn.Module:
        return with_head(bare(), wanted.head[0], dict(wanted.head[1]))

    def train(permuted: bool) -> Trained:
        assert source.recipe
        assert school.train
        return trained(
            bare, school, source.recipe, name=source.name, seed=wanted.model_seed, permuted=permuted, progress=progress
        )

    can_train = source.recipe is not None and school.train is not None
    network, origin, own = _with_weights(source, bare, wanted, train if can_train else None)
    code = digest(source.code(network) if source.code else "", wanted.head, _settings_of(network))
    network = with_head(network, wanted.head[0], dict(wanted.head[1])).to(device)
    dtype = next((parameter.dtype for parameter in network.parameters()), first.dtype)
    calibration = data.train if data.train else school.train if school.train else None

    @cache
    def calibrate() -> Tensor:
        if calibration is None:
            return data.readable(range(min(len(data), CALIBRATION_SAMPLES)))[1].to(device, dtype)
        rows = Draws.of(["calibration"], calibration.name).permutation(len(calibration))[0][:CALIBRATION_SAMPLES]
        return calibration.readable(rows.tolist())[1].to(device, dtype)

    return LoadedModel(
        network,
        None if own else build,
        seed,
        first[:1].to(device, dtype),
        calibrate,
        (lambda: (train(True), school)) if can_train else None,
        wanted.model_seed,
        code,
        origin,
        calibrate,
    )


def _settings_of(model: nn.Module) -> object:
    """What the modules are and how they are set (strides, activations, switches): weights do not show it."""
    every = vars(nn.Module())
    return [
        (name, type(module).__qualname__, [(k, _plain(v)) for k, v in sorted(vars(module).items()) if k not in every])
        for name, module in model.named_modules()
    ]


def _plain(value: object) -> object:
    """What a setting says by itself; of functions and objects, what they are called."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _with_weights(
    source: ModelSource, build: Callable[[], nn.Module], wanted: Wanted, train: Callable[[bool], Trained] | None
) -> tuple[nn.Module, str, bool]:
    """The network, where its weights come from, and whether its constructor is no good for twins.

    Raises:
        InputError: there are no such weights.
        NoWeightsError: nothing says which.
    """
    weights = wanted.weights
    with torch_seeded(wanted.model_seed, "initial parameters", source.name):
        network = build()
    own = source.code is not None and bool(constructor_fault(network, build) or _keeps_weights(network, build))
    if own and _another(build) is network:
        # One network for all who ask: each gets weights of its own.
        network = copy.deepcopy(network)
    if weights is None and train:
        network.load_state_dict(train(False).state)
        return network.eval(), "trained by recipe", False
    if weights is None and own and _hash_of(_another(build)) == _hash_of(network):
        # A constructor makes networks to be trained; one that loads weights as well has the mode to answer for.
        return network, "as the constructor makes it", True
    network.eval()
    if weights == RANDOM and own:
        return twin_of(network, None, "initial parameters", wanted.model_seed), "random by reset_parameters", True
    if weights == RANDOM:
        return network, "random", False
    if weights in source.pretrained:
        try:
            state = source.pretrained[str(weights)].state()
        except Exception as error:
            raise InputError(f"{source.name}: weights {weights!r} cannot be fetched: {error}") from error
        load_weights(network, state, f"{source.name}, weights {weights}")
        return network, f"published as {weights}", own
    if weights is not None and (weights.endswith(FILES) or (wanted.base / weights).is_file()):
        load_weights(network, read_weights(wanted.base / weights), str(weights))
        return network, weights, own
    known = [*source.pretrained, RANDOM]
    if weights is None:
        raise NoWeightsError(
            f"{source.name}: nothing says which weights: `weights` is a file or one of {', '.join(known)} "
            "(random explains a network that has learnt nothing)"
            f"{'; or give data with a training part, to train it on' if source.recipe else ''}"
        )
    raise InputError(f"{source.name}: weights {weights!r} are neither a file nor known; {nearest(weights, known)}")


def _keeps_weights(network: nn.Module, build: Callable[[], nn.Module]) -> bool:
    """Whether a constructor gives layers the same weights each time, such as those of a published backbone."""
    layers = zip(network.modules(), _another(build).modules(), strict=False)
    drawn = [(a, b) for a, b in layers if hasattr(a, "reset_parameters")]
    pairs = [zip(a.parameters(recurse=False), b.parameters(recurse=False), strict=True) for a, b in drawn]
    return any(a.unique().numel() > 1 and torch.equal(a, b) for pair in pairs for a, b in pair)


def _another(build: Callable[[], nn.Module]) -> nn.Module:
    with torch_seeded("another"):
        return build()
