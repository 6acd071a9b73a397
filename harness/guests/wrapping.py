"""Makes a method of the registry from a function whose options are only known when it is asked for."""

import types
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from inspect import Parameter, Signature
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor

from harness.entries import Method
from harness.types import InputError

PLAIN = (bool, int, float, str)
"""Types that a study can write as they are."""


def library(module: str, name: str) -> Any:
    """A module of a library that is not among our requirements.

    Args:
        module: as it is imported.
        name: of the method that needs it.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{name}: needs the guests, and there is {error}: pip install '.[guests]'") from None


def option(name: str, annotation: object, default: object) -> Parameter:
    """An option of a method."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def filled(name: str, annotation: object) -> Parameter:
    """What the harness fills in, such as `draws`, or finds by the name that a study gives, such as `baseline`."""
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def options_of(parameters: Iterable[Parameter], without: Iterable[str], types: Mapping[str, object]) -> list[Parameter]:
    """Those parameters of a library's function that a study can write, as options.

    Args:
        parameters: of the function.
        without: what the harness supplies, and what makes no sense in a study.
        types: what to take for the type of some, by name; lists where the library wants tuples, for instance.
    """
    found = []
    for parameter in parameters:
        annotation = types.get(parameter.name) or _plain_type(parameter)
        if parameter.name not in without and annotation is not None:
            found.append(option(parameter.name, annotation, parameter.default))
    return found


def _plain_type(parameter: Parameter) -> object:
    """The type of a parameter if a study can write it as it is, else None; that of its default if it has one."""
    if isinstance(parameter.default, PLAIN):
        return type(parameter.default)
    union = get_origin(parameter.annotation) in (Union, types.UnionType)
    members = get_args(parameter.annotation) if union else (parameter.annotation,)
    return parameter.annotation if set(members) <= {*PLAIN, type(None)} else None


def tuples(value: object) -> object:
    """A value in which every list is a tuple, at any depth."""
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value


def guest(
    name: str,
    function: Callable[..., Any],
    options: Iterable[Parameter],
    *,
    family: str,
    contents: str,
    summary: str = "",
    needs: tuple[str, ...] = (),
    conserves: Literal["output", "difference"] | None = None,
) -> Method:
    """A method whose options are given, rather than those of its function's own signature.

    Args:
        name: as a study writes it.
        function: takes model, samples, target and the options by keyword.
        options: also what the harness is to fill in; with `draws` among them, the method is stochastic.
        family: of which library it is.
        contents: a hash or version of what else its maps depend on.
        summary: one line about it.
        needs: as of other methods.
        conserves: as of other methods.
    """
    ordered = {parameter.name: parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in options}
    taken = [Parameter(each, Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor) for each in ("model", "x", "target")]

    def explain(*arguments: Any, **filled: Any) -> Any:
        return function(*arguments, **filled)

    explain.__signature__ = Signature([*taken, *ordered.values()])  # type: ignore[attr-defined]
    explain.__doc__ = summary
    needs += tuple(each for each in ("background", "masks") if each in ordered and each not in needs)
    return Method(
        name,
        explain,
        family,
        1,
        needs,
        conserves=conserves,
        conserves_if=lambda chosen: bool(chosen.get("multiply_by_inputs", True)),
        stochastic="draws" in ordered,
        contents=contents,
    )
