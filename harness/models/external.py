"""Networks that torchvision and timm define, and those of a user's own file."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torchvision
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchvision.models import WeightsEnum

from harness.data.files import existing
from harness.data.images import Preprocessing
from harness.entries import nearest
from harness.models import ModelSource, Pretrained, Shape
from harness.plugins import code_of, imports_from, load_file
from harness.registry import model_source
from harness.types import InputError

IMAGENET_SHAPE = (3, 224, 224)
INCEPTIONS = ("googlenet", "inception_v3")

Classes = Annotated[int, Field(ge=0)]
"""How many outputs; 0 for as many as the published weights have."""


@model_source(argument="NAME")
def _torchvision(name: str, *, classes: Classes = 0) -> ModelSource:
    """A network of torchvision by its name, such as resnet50; `weights` names some of its own, or a file.

    Args:
        name: as in `torchvision.models.list_models()`.
        classes: the number of outputs, if it is not that of the published weights.

    Raises:
        InputError: torchvision has no such network.
    """
    known = torchvision.models.list_models()
    if name not in known:
        raise InputError(f"torchvision:{name}: no such network; {nearest(name, known)}")
    options: dict[str, Any] = {"num_classes": classes} if classes else {}
    if name in INCEPTIONS:
        options["init_weights"] = True
    if "weights_backbone" in signature(torchvision.models.get_model_builder(name)).parameters:
        # Or else a part of each network, also of those that are to be random, is trained.
        options["weights_backbone"] = None

    def build(_shape: Shape, _classes: int, **more: Any) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, **options, **more)

    enumeration = torchvision.models.get_model_weights(name)
    named = {member.name: _published(member, partial(build, **_settings(name, member))) for member in enumeration}
    return ModelSource(f"torchvision:{name}", build, named, shape=IMAGENET_SHAPE)


def _settings(name: str, weights: WeightsEnum) -> dict[str, Any]:
    """What the builders of torchvision set when they are given published weights, besides loading them."""
    if name in INCEPTIONS:
        return {"transform_input": True}
    if name.startswith("vit_"):
        return {"image_size": weights.meta["min_size"][0]}
    if name.startswith(("fcn_", "deeplabv3_")):
        return {"aux_loss": True}
    return {}


def _published(weights: WeightsEnum, build: Callable[[Shape, int], nn.Module]) -> Pretrained:
    preset = weights.transforms()
    preprocessing = None
    if isinstance(preset, torchvision.transforms._presets.ImageClassification):
        preprocessing = Preprocessing(
            tuple(preset.mean),
            tuple(preset.std),
            tuple(preset.resize_size),
            int(preset.crop_size[0]),
            preset.interpolation.value,
        )
    state = partial(weights.get_state_dict, progress=False, check_hash=True)
    return Pretrained(state, preprocessing, build, tuple(weights.meta.get("categories", ())))


@model_source(argument="NAME")
def _timm(name: str, *, classes: Classes = 0) -> ModelSource:
    """A network of timm by its name, such as vit_tiny_patch16_224; needs the extra `timm`.

    Its own weights are called `pretrained`.

    Args:
        name: as in `timm.list_models()`.
        classes: the number of outputs, if it is not that of the published weights.

    Raises:
        InputError: timm is not installed, or has no such network.
    """
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"timm:{name}: timm is not installed: pip install 'attribution-harness[timm]'")
    import timm
    from timm.data.config import resolve_data_config

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm:{name}: no such network; {_nearest_of_many(name, timm.list_models())}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(f"timm:{name}: {architecture} has no weights called {tag!r}; {nearest(tag, tags)}")
    options: dict[str, Any] = {"num_classes": classes} if classes else {}

    def build(_shape: Shape, _classes: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, **options)

    def state() -> Mapping[str, Tensor]:
        # Without the options: where `classes` differs, timm would keep a part of the network random.
        return timm.create_model(name, pretrained=True).state_dict()

    published = timm.get_pretrained_cfg(name)
    config = resolve_data_config(pretrained_cfg=published.to_dict() if published else {})
    size, preprocessing = tuple(config["input_size"]), None
    if size[1] == size[2]:
        scaled = int(size[1] / config["crop_pct"])
        resize = (scaled, scaled) if config["crop_mode"] == "squash" else (scaled,)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        preprocessing = Preprocessing(mean, std, resize, size[1], config["interpolation"])
    return ModelSource(f"timm:{name}", build, {"pretrained": Pretrained(state, preprocessing)}, shape=size)


def _nearest_of_many(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    return near if near.startswith("did you mean") else "`timm.list_models()` lists them"


@model_source(argument="PATH.py:FACTORY")
def file(argument: str, *, base: Path) -> ModelSource:
    """A user's own network: what the function or class FACTORY of a Python file returns when it is called.

    Args:
        argument: PATH.py:FACTORY.
        base: what the path is relative to.

    Raises:
        InputError: no such file, an error in it, or no such function in it.
    """
    path, _, factory = argument.rpartition(":")
    if not path:
        raise InputError(f"file:{argument}: expected file:PATH.py:FACTORY, such as file:net.py:build")
    where = existing(base / path)
    module = load_file(where)
    if not callable(getattr(module, factory, None)):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"file:{argument}: {path} has no function {factory!r}; {nearest(factory, known)}")

    def build(_shape: Shape, _classes: int) -> nn.Module:
        # The constructor may import what stands beside its file, as it would when run as a script.
        try:
            with imports_from(where.parent):
                network = getattr(module, factory)()
        except (Exception, SystemExit) as error:
            raise InputError(f"file:{argument}: {factory}() raised {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise InputError(f"file:{argument}: {factory}() returned {type(network).__name__}, expected an nn.Module")
        if any(map(is_lazy, network.parameters())):
            raise InputError(f"file:{argument}: {factory}() returned lazy modules: send a sample through them in it")
        return network

    def code(network: nn.Module) -> str:
        return code_of(where, sorted({type(part).__module__ for part in network.modules()}))

    return ModelSource(f"file:{argument}", build, code=code)
