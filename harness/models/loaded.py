"""A model with its weights on its device, and what a metric may ask of it."""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.blocks import blocks_of
from harness.case import Block, Partner, Source
from harness.data import Data
from harness.digests import digest
from harness.heads import with_head
from harness.models import ModelSource
from harness.models.school import School
from harness.models.weights import load_weights, read_weights
from harness.random import Draws, torch_seeded
from harness.recipes import own_recipe
from harness.registry import DATA, nearest, split_source
from harness.training import Progress
from harness.twins import architecture_of, constructor_fault, twin_note, twin_of
from harness.types import InputError

CALIBRATION_SAMPLES = 512
TWINS_BYTES = 2**29
"""Of randomized networks, kept for the methods that come next."""

RANDOM = "random"
TRAINED = "trained by "
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
        school: trains networks like it, if there is a recipe.
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
    school: School | None = None
    model_seed: int = 0
    code: str = ""
    origin: str = ""
    read_background: Callable[[], Float[Tensor, "m ..."]] | None = None
    shared: dict[object, Any] = field(default_factory=dict)

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
        return _hash_of(self.partner().model) if self.school else ""

    @cached_property
    def second_partner_weights(self) -> str:
        """The same of the second partner."""
        return _hash_of(self.partner(other=True).model) if self.school else ""

    @cached_property
    def retrained_weights(self) -> str:
        """The same of the re-trained network."""
        network = self.retrained()
        return _hash_of(network) if network else ""

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and of what its randomized versions depend on."""
        return digest(self.weights, self.note, self.calibration, self.code)

    @cached_property
    def note(self) -> str:
        """How the twins come about."""
        return twin_note(self.model, self.build)

    def twin(self, *draw: int) -> nn.Module:
        """A randomly initialized network of the same architecture, keyed by (seed, architecture, draw).

        The next method asks for the same one, so it is kept while there is room. It is never written to.
        """
        known = self.shared.setdefault("twins", {})
        if draw in known:
            return known[draw]
        twin = twin_of(self.model, self.build, self.seed, architecture_of(self.model), *draw)
        size = sum(tensor.numel() * tensor.element_size() for tensor in twin.state_dict().values())
        if size * (len(known) + 1) <= TWINS_BYTES:
            known[draw] = twin
        return twin

    def partner(self, other: bool = False) -> Partner:
        """The same network trained on permuted labels, with the reason why it is invalid, if it is.

        Args:
            other: a second one, of other initial weights and of another permutation.

        Raises:
            LookupError: the model has no recipe; `needs=("partner",)` keeps a metric from getting here.
        """
        partner = self._second_partner if other else self._partner
        if partner is None:
            raise LookupError("the model has no training recipe, so it has no partner trained on permuted labels")
        return partner

    def retrained(self) -> nn.Module | None:
        """The same network trained on true labels under another seed; None if no recipe made it as it is."""
        return self._retrained[0] if self._retrained else None

    @property
    def retrained_test_accuracy(self) -> float | None:
        """How well the re-trained network does on held-out samples."""
        return self._retrained[1] if self._retrained else None

    def train(self, x: Float[Tensor, "m ..."], y: Int[Tensor, " m"], seed: int) -> nn.Module:
        """A new network, trained by the recipe on these samples and labels.

        Raises:
            LookupError: the model has no recipe.
        """
        if self.school is None:
            raise LookupError("the model has no training recipe")
        return self.school.train(x, y, seed)

    @cached_property
    def _partner(self) -> Partner | None:
        return self.school.partner(self.model_seed) if self.school else None

    @cached_property
    def _second_partner(self) -> Partner | None:
        return self.school.partner(self.model_seed + 1) if self.school else None

    @cached_property
    def _retrained(self) -> tuple[nn.Module, float] | None:
        # Published weights come of another training than the recipe that we have for their architecture.
        by_recipe = self.school is not None and (self.origin.startswith(TRAINED) or self.school.recipe.title)
        if self.school is None or not by_recipe or self.origin.startswith(RANDOM):
            return None
        result = self.school.trained(self.model_seed + 1)
        return self.school.network(result.state), result.test_accuracy


def _hash_of(model: nn.Module) -> str:
    return digest({**dict(model.named_parameters()), **dict(model.named_buffers())})


@dataclass(frozen=True)
class Wanted:
    """What a study says of a model besides its source and data.

    Attributes:
        weights: a file, a name that the source knows, `random`, or None: trained, or as the constructor makes them.
        head: name of the head, empty if there is none, and its options.
        model_seed: of training and of random weights.
        base: what the path of a file is relative to.
        recipe: FILE.py:FUNCTION that trains it; empty for the source's own, if there is one.
    """

    weights: str | None = None
    head: tuple[str, Mapping[str, Any]] = ("", {})
    model_seed: int = 0
    base: Path = Path()
    recipe: str = ""


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

    Built-in networks take the shape of the data. They, and those that are wanted with a recipe, are trained on the
    training part of the data or, where it has none, on the network's own default data if they have this shape.

    Raises:
        InputError: the weights cannot be had or do not fit, or there is nothing to train on by the recipe.
    """
    rows, first, _ = data.readable(range(min(len(data), FIRST_READABLE)))
    if not rows:
        raise InputError(f"{data.name}: none of the first {FIRST_READABLE} samples can be read")
    shape = tuple(first[0].shape)
    recipe = own_recipe(wanted.recipe, wanted.base, device) if wanted.recipe else source.recipe
    lessons = _lessons(source, data, shape) if recipe else data
    can_train = recipe is not None and _labelled(lessons)
    if wanted.recipe and not can_train:
        raise InputError(
            f"{source.name}: recipe {wanted.recipe}: {data.name} has no labelled training part to train on, beside "
            "labelled samples to explain: name data that have both, or leave the recipe out"
        )
    if source.recipe and not lessons.class_count:
        raise InputError(
            f"{source.name} on {lessons.name}: nothing says how many classes there are: give labels or classes"
        )

    def bare() -> nn.Module:
        return source.constructor(wanted.weights)(shape, lessons.class_count)

    def head(network: nn.Module) -> nn.Module:
        return with_head(network, wanted.head[0], dict(wanted.head[1]))

    with torch_seeded(wanted.model_seed, "initial parameters", source.name):
        network = bare()
    fresh, own = _constructor(source, network, bare)
    if own and _another(bare) is network:
        # One network for all who ask: each gets weights of its own.
        network = copy.deepcopy(network)
    code = source.code(network) if source.code else ""
    dtype = next((parameter.dtype for parameter in network.parameters()), first.dtype)
    school = None
    if recipe and can_train:
        made_by = code or inspect.getsource(sys.modules[type(network).__module__])
        school = School(source.name, fresh, head, made_by, recipe, lessons, device, dtype, progress)
    network, origin = _with_weights(source, network, bare, own, wanted, school)
    code = digest(code, wanted.head, _settings_of(network))
    network = head(network).to(device)
    calibration = data.train or lessons.train

    @cache
    def calibrate() -> Tensor:
        if calibration is None:
            return data.readable(range(min(len(data), CALIBRATION_SAMPLES)))[1].to(device, dtype)
        rows = Draws.of(["calibration"], calibration.name).permutation(len(calibration))[0][:CALIBRATION_SAMPLES]
        return calibration.readable(rows.tolist())[1].to(device, dtype)

    return LoadedModel(
        network,
        None if own else lambda: head(bare()),
        seed,
        first[:1].to(device, dtype),
        calibrate,
        school,
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


def _labelled(data: Data) -> bool:
    """Whether there are labelled samples to train on, and others to tell how well it worked."""
    return data.labels is not None and data.train is not None and data.train.labels is not None


def _lessons(source: ModelSource, data: Data, shape: tuple[int, ...]) -> Data:
    """What to train on: the data, or the network's own default data where they have no training part but its shape."""
    if data.train is not None or not source.data:
        return data
    entry, argument = split_source(source.data, DATA)
    default: Data = entry.load(argument, {})
    return default if default.batch([0])[0].shape == shape else data


def _constructor(
    source: ModelSource, network: nn.Module, build: Callable[[], nn.Module]
) -> tuple[Callable[[], nn.Module], bool]:
    """What makes new networks to train, and whether the constructor itself is no good for twins.

    One that keeps published weights in a part of the network makes networks to train further, but no twins. One that
    makes the same network each time, or draws by another generator than torch's, does neither: then weights are drawn
    by the modules.
    """
    if source.code is None:
        return build, False
    if not constructor_fault(network, build):
        return build, _keeps_weights(network, build)
    blank = copy.deepcopy(network)
    return (lambda: twin_of(blank, None, "initial parameters", int(torch.randint(2**62, ())))), True


def _with_weights(
    source: ModelSource,
    network: nn.Module,
    build: Callable[[], nn.Module],
    own: bool,
    wanted: Wanted,
    school: School | None,
) -> tuple[nn.Module, str]:
    """The network with its weights, and where they come from.

    Raises:
        InputError: there are no such weights.
        NoWeightsError: nothing says which.
    """
    weights = wanted.weights
    if weights is None and school:
        network.load_state_dict(school.trained(wanted.model_seed).state)
        return network.eval(), f"{TRAINED}{wanted.recipe or 'recipe'}"
    if weights is None and own and _hash_of(_another(build)) == _hash_of(network):
        # A constructor makes networks to be trained; one that loads weights as well has the mode to answer for.
        return network, "as the constructor makes it"
    network.eval()
    if weights == RANDOM and own:
        return twin_of(network, None, "initial parameters", wanted.model_seed), "random by reset_parameters"
    if weights == RANDOM:
        return network, "random"
    if weights in source.pretrained:
        try:
            state = source.pretrained[str(weights)].state()
        except Exception as error:
            raise InputError(f"{source.name}: weights {weights!r} cannot be fetched: {error}") from error
        load_weights(network, state, f"{source.name}, weights {weights}")
        return network, f"published as {weights}"
    if weights is not None and (weights.endswith(FILES) or (wanted.base / weights).is_file()):
        load_weights(network, read_weights(wanted.base / weights), str(weights))
        return network, weights
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
