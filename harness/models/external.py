"""Networks that torchvision and timm define, and those of a user's own file."""

import importlib.util
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from harness.data.files import existing
from harness.data.images import Preprocessing
from harness.models import ModelSource, Pretrained, Shape
from harness.plugins import code_of, load_file
from harness.registry import model_source, nearest
from harness.types import InputError

IMAGENET_SHAPE = (3, 224, 224)
INITIALIZED_ON_DEMAND = ("googlenet", "inception_v3")


@model_source(argument="NAME")
def _torchvision(name: str, *, classes: int = 0) -> ModelSource:
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
    if name in INITIALIZED_ON_DEMAND:
        options["init_weights"] = True

    def build(_shape: Shape, _classes: int) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, **options)

    enumeration = torchvision.models.get_model_weights(name)
    named = {member.name: _published(member) for member in enumeration}
    return ModelSource(f"torchvision:{name}", build, named, shape=IMAGENET_SHAPE)


def _published(weights: WeightsEnum) -> Pretrained:
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
    return Pretrained(partial(weights.get_state_dict, progress=False, check_hash=True), preprocessing)


@model_source(argument="NAME")
def _timm(name: str, *, classes: int = 0) -> ModelSource:
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

    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"timm:{name}: no such network; {nearest(name, timm.list_models())}")
    options: dict[str, Any] = {"num_classes": classes} if classes else {}

    def build(_shape: Shape, _classes: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, **options)

    def state() -> Mapping[str, Tensor]:
        return timm.create_model(name, pretrained=True, **options).state_dict()

    published = timm.get_pretrained_cfg(name)
    config = resolve_data_config(pretrained_cfg=published.to_dict() if published else {})
    size = config["input_size"]
    preprocessing = Preprocessing(
        tuple(config["mean"]),
        tuple(config["std"]),
        (int(size[-1] / config["crop_pct"]),),
        size[-1],
        config["interpolation"],
    )
    return ModelSource(f"timm:{name}", build, {"pretrained": Pretrained(state, preprocessing)}, shape=tuple(size))


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
        sys.path.insert(0, str(where.parent.resolve()))
        try:
            network = getattr(module, factory)()
        except Exception as error:
            raise InputError(f"file:{argument}: {factory}() raised {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(where.parent.resolve()))
        if not isinstance(network, nn.Module):
            raise InputError(f"file:{argument}: {factory}() returned {type(network).__name__}, expected an nn.Module")
        return network

    return ModelSource(f"file:{argument}", build, code=code_of(where))
