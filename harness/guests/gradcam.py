"""Class activation maps of the package pytorch_grad_cam (on the package index: grad-cam)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from inspect import isclass, signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.entries import Method, UnknownNameError, nearest
from harness.guests.isolation import isolated
from harness.guests.layers import layer_called
from harness.guests.wrapping import filled, guest, library, option, options_of
from harness.methods.layers import Layout
from harness.random import Draws
from harness.registry import method_source

PACKAGE = "pytorch_grad_cam"
STOCHASTIC = ("RandomCAM",)
WITHOUT_LAYER = ("FullGrad",)
SUPPLIED = ("ablation_layer", "input_tensor", "model", "reshape_transform", "target_layers", "targets")
TYPES = {"gamma": float | None}


@method_source(argument="NAME")
def gradcam(name: str) -> Method:
    """A class of pytorch_grad_cam by its name, such as GradCAM or ScoreCAM; needs the extra `guests`.

    Options are those of the constructor and of the call, and `layer`, the name of a module, by default the last with
    positions; where these are tokens, the package is told so. For images only. The package takes the positive part of
    each map, stretches it to the range 0 to 1 and upsamples it to the input; the maps are what it returns, so they
    carry no sign, and their scale means nothing.

    Args:
        name: as in pytorch_grad_cam.

    Raises:
        UnknownNameError: it has no such class.
    """
    full = f"gradcam:{name}"
    package = library(PACKAGE, full)
    base = library(f"{PACKAGE}.base_cam", full).BaseCAM
    classes = {each: kind for each, kind in vars(package).items() if isclass(kind) and issubclass(kind, base)}
    if name not in classes:
        raise UnknownNameError(f"{full}: {PACKAGE} has no such class; {nearest(name, classes)}")
    kind = classes[name]
    options = options_of(
        [*signature(kind).parameters.values(), *signature(base.__call__).parameters.values()], SUPPLIED, TYPES
    )
    if name not in WITHOUT_LAYER:
        options.append(option("layer", str, ""))
    if name in STOCHASTIC:
        options.append(filled("draws", Draws))
    return guest(
        full,
        partial(_explained, kind),
        options,
        family="grad-cam",
        contents=f"grad-cam {library('importlib.metadata', full).version('grad-cam')}",
        summary=f"{name} of {PACKAGE}.",
        needs=("image",),
    )


def _explained(
    kind: type,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    draws: Draws | None = None,
    layer: str | None = None,
    **options: Any,
) -> Float[Tensor, "n 1 h w"]:
    """The maps of a class of the package for one batch."""
    name = f"gradcam:{kind.__name__}"
    place = None if layer is None else layer_called(layer, model, x, name)
    outputs = library(f"{PACKAGE}.utils.model_targets", name).ClassifierOutputTarget
    built = {each: value for each, value in options.items() if each in signature(kind).parameters}
    called = {each: value for each, value in options.items() if each not in built}
    with isolated(model, x.device, name, draws), _silent():
        explainer = kind(model, [], **built) if place is None else _on_layer(kind, model, *place, built)
        try:
            # With a gradient, or else a frozen model would have none.
            leaf = x.detach().clone().requires_grad_()
            maps = explainer(leaf, [outputs(each) for each in target.tolist()], **called)
        finally:
            # It would detach these in place when it is released, which not all of them allow.
            explainer.activations_and_grads.activations, explainer.activations_and_grads.gradients = [], []
            explainer.activations_and_grads.release()
    return torch.as_tensor(maps[:, None]).to(x)


def _on_layer(kind: type, model: nn.Module, layer: nn.Module, layout: Layout, options: dict[str, Any]) -> Any:
    arranged = layout != Layout(layout.grid)
    return kind(model, [layer], **options, reshape_transform=layout.arranged if arranged else None)


@contextmanager
def _silent() -> Iterator[None]:
    """Without progress bars, of which there would be one for each sample."""
    bars = library("tqdm", "gradcam")
    shown = bars.tqdm
    bars.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        bars.tqdm = shown
