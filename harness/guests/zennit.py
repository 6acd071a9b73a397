"""Composites of zennit: rules of backward propagation for a model that is made of modules."""

from functools import partial
from inspect import Parameter, isabstract, isclass, signature
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.entries import Method, UnknownNameError, nearest
from harness.guests.isolation import isolated
from harness.guests.wrapping import filled, guest, library, option, options_of
from harness.registry import method_source
from harness.space import InputSpace
from harness.types import InputError, NotApplicableError

FROM_ONE = ("BetaSmooth", "DeconvNet", "ExcitationBackprop", "GuidedBackprop")
"""Composites that modify a gradient or distribute a probability; the others distribute the logit."""

SUPPLIED = ("canonizers", "first_map", "layer_map")
TYPES = {"low": float | list[float] | None, "high": float | list[float] | None, "zero_params": str | list[str] | None}


@method_source(argument="COMPOSITE")
def zennit(name: str) -> Method:
    """A composite of zennit by its name, such as EpsilonPlus or EpsilonGammaBox; needs the extra `guests`.

    Options are those of the constructor, and `canonizer`, the name of one of zennit's, such as
    SequentialMergeBatchNorm or ResNetCanonizer. `low` and `high` are the valid range of the input unless they are
    given. Relevance starts as the explained logit, that of DeconvNet, GuidedBackprop, BetaSmooth and
    ExcitationBackprop as one.

    Args:
        name: as in zennit.composites.

    Raises:
        UnknownNameError: zennit has no such composite.
    """
    full = f"zennit:{name}"
    composites = {kind.__name__: kind for kind in library("zennit.composites", full).COMPOSITES.values()}
    if name not in composites:
        raise UnknownNameError(f"{full}: zennit has no such composite; {nearest(name, composites)}")
    canonizers = _canonizers(full)
    parameters = signature(composites[name]).parameters.values()
    options = options_of(parameters, SUPPLIED, TYPES)
    options = [each.replace(default=None) if each.name in ("low", "high") else each for each in options]
    options.append(option("canonizer", Literal[("", *canonizers)], ""))
    if any(each.name == "low" for each in options):
        options.append(filled("space", InputSpace))
    return guest(
        full,
        partial(_explained, composites[name], canonizers),
        options,
        family="zennit",
        contents=f"zennit {library('importlib.metadata', full).version('zennit')}",
        summary=f"{name} of zennit.",
        conserves=None if name in FROM_ONE else "output",
    )


def _canonizers(full: str) -> dict[str, type]:
    """The canonizers that need no arguments."""
    known = library("zennit.canonizers", full)
    kinds = [*vars(known).values(), *vars(library("zennit.torchvision", full)).values()]
    return {
        kind.__name__: kind
        for kind in kinds
        if isclass(kind) and issubclass(kind, known.Canonizer) and not isabstract(kind) and _needs_nothing(kind)
    }


def _needs_nothing(kind: type) -> bool:
    parameters = signature(kind).parameters.values()
    return all(p.default is not Parameter.empty for p in parameters) and hasattr(kind, "apply")


def _explained(
    kind: type,
    canonizers: dict[str, type],
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    canonizer: str,
    space: InputSpace | None = None,
    **options: Any,
) -> Float[Tensor, "n *shape"]:
    """The maps of a composite for one batch."""
    name = f"zennit:{kind.__name__}"
    if isinstance(options.get("zero_params"), str):
        options["zero_params"] = [options["zero_params"]]
    if space is not None:
        options |= _box(name, options["low"], options["high"], space, x)
    with isolated(model, x.device, name):
        composite = kind(**options, canonizers=[canonizers[canonizer]()] if canonizer else None)
        leaf = x.detach().clone().requires_grad_()
        with composite.context(model) as hooked:
            logit = hooked(leaf).gather(1, target[:, None])
            start = torch.ones_like(logit) if kind.__name__ in FROM_ONE else logit.detach()
            (maps,) = torch.autograd.grad(logit, leaf, start)
    return maps


def _box(
    name: str,
    low: float | list[float] | None,
    high: float | list[float] | None,
    space: InputSpace,
    x: Float[Tensor, "n *shape"],
) -> dict[str, Tensor]:
    """The ends of the valid range as zennit takes them, [1, c, 1, 1].

    Raises:
        NotApplicableError: they are neither given nor declared.
    """
    bounds: dict[str, Any] = {"low": low, "high": high}
    if None in bounds.values():
        try:
            declared = dict(zip(bounds, space.bounds(x), strict=True))
        except InputError as error:
            raise NotApplicableError(f"{name}: {error}, or give low and high") from None
        bounds = {end: declared[end] if value is None else value for end, value in bounds.items()}
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return {end: torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(shape) for end, value in bounds.items()}
