"""Methods of captum that attribute to the input, with captum's own options."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, isclass, signature
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.entries import Method, UnknownNameError, nearest
from harness.guests.isolation import isolated
from harness.guests.layers import layer_called
from harness.guests.wrapping import filled, guest, library, option, options_of, tuples
from harness.methods.layers import Layout, upsampled
from harness.random import Draws
from harness.registry import method_source
from harness.types import NotApplicableError

STOCHASTIC = ("FeaturePermutation", "GradientShap", "KernelShap", "Lime", "ShapleyValueSampling")
DISTRIBUTIONS = ("DeepLiftShap", "GradientShap")
"""Classes whose `baselines` are samples that stand for the data."""

CLAIMS: Mapping[str, Literal["output", "difference"]] = {
    "DeepLift": "difference",
    "IntegratedGradients": "difference",
    "LRP": "output",
}
"""What the maps of a class sum to by what captum itself calls their convergence delta."""

FROM_LAYERS = ("LayerGradCam",)
"""Classes whose maps have the size of a layer and mean positions of the input all the same."""

SUPPLIED = (
    *("additional_forward_args", "attr_dim_summation", "baselines", "device_ids", "forward_func", "inputs", "layer"),
    *("model", "return_convergence_delta", "return_input_shape", "show_progress", "target", "verbose"),
)
RENAMED = {"quadrature": "method"}
"""Our name of an option -> captum's. `method` is what a study calls the entry itself."""

TYPES = {
    "feature_mask": list[Any] | Tensor | None,
    "sliding_window_shapes": list[int] | tuple[int, ...],
    "strides": int | list[int] | tuple[int, ...] | None,
}
NOTED = "Setting (forward, )?backward hooks|You are providing multiple inputs"
"""Warnings about what is meant to be: hooks, which are taken away again, and a surrogate for each sample."""


@method_source(argument="NAME")
def captum(name: str) -> Method:
    """A class of captum.attr by its name, such as IntegratedGradients or Occlusion; needs the extra `guests`.

    Options are those of the constructor and of `attribute`, with three exceptions: `baselines` is our `baseline`,
    a named fill, or for DeepLiftShap and GradientShap the background samples; what decides the sum in
    IntegratedGradients is `quadrature`, not `method`; and `layer` is the name of a module, by default the last with
    positions. Maps of LayerGradCam are upsampled to the input.

    Stochastic classes draw from generators that are seeded by seed, method, call and the samples of the batch: the
    same bits every time, but other ones where the samples are cut into other chunks.

    Args:
        name: as in captum.attr.

    Raises:
        UnknownNameError: captum has no such class, or it does not attribute to the input.
    """
    full = f"captum:{name}"
    classes = _classes(library("captum.attr", full))
    if name not in classes:
        raise UnknownNameError(f"{full}: captum.attr has no class of this name for inputs; {nearest(name, classes)}")
    kind = classes[name]
    built, called = signature(kind).parameters, signature(kind.attribute).parameters
    theirs = options_of([*built.values(), *called.values()], SUPPLIED, TYPES)
    ours = {theirs: own for own, theirs in RENAMED.items()}
    options = [each.replace(name=ours.get(each.name, each.name)) for each in theirs]
    if name in DISTRIBUTIONS:
        options += [filled("background", Tensor), filled("chunk", int)]
    elif "baselines" in called:
        options.append(filled("baseline", Tensor))
    if "layer" in built:
        options.append(option("layer", str, ""))
    if name in STOCHASTIC:
        options.append(filled("draws", Draws))
    return guest(
        full,
        partial(_explained, kind),
        options,
        family="captum",
        contents=f"captum {library('captum', full).__version__}",
        summary=f"{name} of captum.",
        needs=("spatial",) if "layer" in built else (),
        conserves=CLAIMS.get(name),
    )


def _classes(attr: Any) -> dict[str, Any]:
    """The classes that need nothing but a model, and perhaps a layer, to attribute to its input."""
    found = {}
    for name, kind in vars(attr).items():
        if not isclass(kind) or not issubclass(kind, attr.Attribution) or not hasattr(kind, "attribute"):
            continue
        needed = [each for each, p in signature(kind).parameters.items() if p.default is Parameter.empty]
        inner = issubclass(kind, (attr.LayerAttribution, attr.NeuronAttribution)) and name not in FROM_LAYERS
        whole = needed[:1] in (["model"], ["forward_func"]) and set(needed[1:]) <= {"layer"}
        if whole and not inner and "inputs" in signature(kind.attribute).parameters:
            found[name] = kind
    return found


def _explained(
    kind: Any,
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    draws: Draws | None = None,
    chunk: int = 0,
    layer: str | None = None,
    **options: Any,
) -> Float[Tensor, "n ..."]:
    """The maps of a class of captum for one batch.

    Raises:
        NotApplicableError: the layer holds its channels where captum does not expect them.
    """
    name = f"captum:{kind.__name__}"
    built, called = signature(kind).parameters, signature(kind.attribute).parameters
    given = {RENAMED.get(each, each): value for each, value in options.items()}
    for fill in ("baseline", "background"):
        if fill in given:
            given["baselines"] = given.pop(fill)
    if given.get("feature_mask") is not None:
        given["feature_mask"] = torch.as_tensor(given["feature_mask"], device=x.device)
    given = {each: tuples(value) for each, value in given.items()}
    constructor = {each: value for each, value in given.items() if each in built}
    arguments = {each: value for each, value in given.items() if each in called}
    if layer is not None:
        constructor["layer"], layout = layer_called(layer, model, x, name)
        if layout != Layout(layout.grid):
            raise NotApplicableError(f"{name}: takes positions for channels where they are tokens or come last")

    with isolated(model, x.device, name, draws), warnings.catch_warnings():
        warnings.filterwarnings("ignore", NOTED)
        attribution = kind(model, **constructor)
        attribute = partial(_attributed, attribution.attribute, differentiable=_by_gradient(kind))
        # All pairs of a sample and a background sample go through the model at once.
        together = max(1, chunk // len(given["baselines"])) if kind.__name__ == "DeepLiftShap" else len(x)
        parts = zip(x.split(together), target.split(together), strict=True)
        maps = torch.cat([attribute(part, classes, arguments) for part, classes in parts])
    return upsampled(maps, x) if kind.__name__ in FROM_LAYERS else maps


def _by_gradient(kind: type) -> bool:
    return any(base.__name__ == "GradientAttribution" for base in kind.__mro__)


def _attributed(
    attribute: Callable[..., Tensor],
    x: Float[Tensor, "m *shape"],
    target: Int[Tensor, " m"],
    arguments: Mapping[str, Any],
    *,
    differentiable: bool,
) -> Float[Tensor, "m ..."]:
    """What captum makes of one batch, in the type of the input.

    Raises:
        NotApplicableError: captum knows no rule for a module.
        TypeError: captum raised it for another reason.
    """
    leaf = x.detach().clone().requires_grad_(differentiable)
    try:
        return attribute(leaf, target=target, **arguments).detach().to(x)
    except TypeError as error:
        if "has no rule defined" in str(error):
            raise NotApplicableError(f"captum:LRP: {str(error).partition(' and no')[0]}") from error
        raise
