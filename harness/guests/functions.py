"""Functions of the user as methods: from a file, or as they are in Python."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.entries import Method, nearest
from harness.guests.isolation import untouched
from harness.guests.wrapping import guest
from harness.plugins import code_of, load_file
from harness.registry import METHODS, method_source
from harness.types import InputError

GIVEN = ("model", "x", "target")
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
OPTIONAL = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@method_source(argument="PATH.py:FUNCTION")
def file(argument: str, *, base: Path) -> Method:
    """A user's own function `f(model, x, target, **options) -> maps` in a Python file.

    Further parameters are its options, and those that the harness fills in for its own methods it fills in here
    too: `baseline` named by the study, `draws` for one that is stochastic, `space`, `background`, `masks`. If the
    function is registered by `harness.method`, its claims hold.

    Args:
        argument: PATH.py:FUNCTION.
        base: what the path is relative to.

    Raises:
        InputError: no such file, an error in it, or no such function in it.
    """
    path, _, name = argument.rpartition(":")
    if not path:
        raise InputError(f"file:{argument}: expected file:PATH.py:FUNCTION, such as file:mine.py:my_method")
    module = load_file(base / path)
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"file:{argument}: {path} has no function {name!r}; {nearest(name, known)}")
    return replace(of_callable(function), name=f"file:{argument}", contents=code_of(base / path))


def of_callable(function: Callable[..., Any]) -> Method:
    """A function as a method: the registered one, or one that makes no claims.

    Raises:
        InputError: it does not take model, samples and targets.
    """
    registered = [entry for entry in METHODS.values() if entry.function is function]
    if registered:
        return registered[0]
    inner = function.func if isinstance(function, partial) else function
    name = getattr(inner, "__name__", type(inner).__name__)
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"{name}: its parameters cannot be read: {error}") from None
    parameters = list(signature.parameters.values())
    given = [parameter for parameter in parameters if parameter.kind in POSITIONAL][: len(GIVEN)]
    if len(given) < len(GIVEN):
        bare = signature.replace(parameters=[each.replace(annotation=Parameter.empty) for each in parameters])
        raise InputError(f"{name}: expected a function f(model, x, target, <options>), got {name}{bare}")
    options = [_option(p) for p in parameters if p not in given and p.kind in OPTIONAL]
    summary = (inspect.getdoc(inner) or f"{name}, a function of the user.").partition("\n")[0]
    # Two functions of one name differ by who they are, and that is only known in this process.
    method = guest(
        name,
        partial(_explained, function, name),
        options,
        family="user",
        summary=summary,
        contents=f"function {id(function)}",
    )
    if inspect.isroutine(inner):
        method.function.__wrapped__ = inner  # type: ignore[attr-defined]
    return method


def _option(parameter: Parameter) -> Parameter:
    """A parameter with a type, which is that of its default where none is declared."""
    if parameter.annotation is not Parameter.empty:
        return parameter
    typed = isinstance(parameter.default, (bool, int, float, str, list))
    return parameter.replace(annotation=type(parameter.default) if typed else Any)


def _explained(
    function: Callable[..., Any],
    name: str,
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    **options: Any,
) -> Float[Tensor, "n ..."]:
    """The maps of a function for one batch.

    Raises:
        TypeError: it returned something else.
    """
    with untouched(model), torch.enable_grad():
        maps = function(model, x, target, **options)
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"{name} returned {getattr(maps, 'dtype', type(maps).__name__)}, expected maps as a tensor")
    return maps
