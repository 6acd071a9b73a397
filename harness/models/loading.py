"""How a network gets its weights, and all that a metric may ask of it: from a source to a `LoadedModel`."""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.data import Data
from harness.digests import digest
from harness.entries import nearest
from harness.heads import with_head
from harness.models import ModelSource
from harness.models.loaded import RANDOM, TRAINED, LoadedModel, hash_of
from harness.models.school import School
from harness.models.weights import load_weights, read_weights
from harness.random import Draws, torch_seeded
from harness.recipes import own_recipe
from harness.registry import DATA, split_source
from harness.training import Progress
from harness.twins import constructor_fault, twin_of
from harness.types import InputError

CALIBRATION_SAMPLES = 512
FIRST_READABLE = 16
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th")


class NoWeightsError(InputError):
    """Nothing says which weights a network is to have."""


@dataclass(frozen=True)
class Wanted:
    """What a study says of a model besides its source and data.

    Attributes:
        weights: a file, a name that the source knows, `random`, or None: trained, or as the constructor makes them.
        head: name of the head, empty if there is none, and its options.
        model_seed: of training and of random weights.
        base: what the path of a file is relative to.
        recipe: FILE.py:FUNCTION that trains it; empty for the source's own, if there is one.
        compiled: whether its form for passes without a gradient is compiled.
    """

    weights: str | None = None
    head: tuple[str, Mapping[str, Any]] = ("", {})
    model_seed: int = 0
    base: Path = Path()
    recipe: str = ""
    compiled: bool = False


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
        wanted.compiled,
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
    if weights is None and own and hash_of(_another(build)) == hash_of(network):
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
