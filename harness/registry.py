"""The registries: what can explain a decision, what can look into a network, and what can test either.

A method or metric is a plain function; the decorator records its claims beside it and returns it unchanged.
Options are its keyword-only parameters. Those in `FILLED_BY_NAME` and `FILLED` are supplied by the harness.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, Literal, TypeVar

from harness.entries import GLOBAL, Entry, Introspection, Method, Metric, Side, SourceEntry, UnknownNameError, nearest

E = TypeVar("E", bound=Entry)
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Mapping[str, E], Generic[E]):
    """Names to entries; a collision or an unknown name is an error that says what to do."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, E] = {}

    def add(self, entry: E) -> None:
        """Register an entry.

        Raises:
            ValueError: another function has this name.
        """
        existing = self._entries.get(entry.name)
        # A cell of a notebook that runs again defines the function anew.
        again = entry.function.__module__ == "__main__"
        if existing and not again and _origin(existing.function) != _origin(entry.function):
            places = f"{_origin(existing.function)} and {_origin(entry.function)}"
            raise ValueError(f"two {self.kind}s are called {entry.name!r}: {places}; rename one of the functions")
        self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> E:
        if name not in self._entries:
            raise UnknownNameError(f"unknown {self.kind} {name!r}; {nearest(name, self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS: Registry[Method] = Registry("method")
METRICS: Registry[Metric] = Registry("metric")
INTROSPECTIONS: Registry[Introspection] = Registry("introspection")
DATA: Registry[SourceEntry] = Registry("data")
MODELS: Registry[SourceEntry] = Registry("model")
GUESTS: Registry[SourceEntry] = Registry("method")


def _origin(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def method(
    *,
    family: str,
    cite: str = "",
    version: int = 1,
    conserves: Literal["output", "difference"] | None = None,
    conserves_if: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    stochastic: bool = False,
    needs: tuple[str, ...] = (),
    expected: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Register `f(model, x, target, *, <options>) -> maps` under its own name; see `Method` for the claims."""

    def register(function: F) -> F:
        claims = (cite, conserves, stochastic, expected or {}, conserves_if)
        entry = Method(function.__name__, function, family, version, needs, *claims)
        if stochastic != ("draws" in entry.parameters):
            raise TypeError(f"{entry.name}: stochastic={stochastic}, but an option 'draws' says otherwise")
        for filled in ("background", "masks"):
            if (filled in needs) != (filled in entry.parameters):
                raise TypeError(f"{entry.name}: needs={needs}, but an option {filled!r} says otherwise")
        METHODS.add(entry)
        return function

    return register


def introspection(
    *,
    compares: Mapping[str, Side],
    cite: str = "",
    version: int = 1,
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    question: str = "",
    misleads: str = "",
) -> Callable[[F], F]:
    """Register a generator `f(model, space, data, *, <options>) -> Iterator[Score | Artifact]` under its own name.

    `space` is what the numbers in `data.x` mean, and `data` are the samples of the study
    (`harness.introspecting.Samples`). The harness fills in those of these options that it has: `seed` of its random
    numbers, the same for every network that it is asked about; `source` (`harness.case.Source`); `chunk`, how many
    samples go through a network at once; `reference`, the trained network, whichever `model` is. See `Introspection`
    for the claims.
    """

    def register(function: F) -> F:
        if not compares:
            raise TypeError(f"{function.__name__}: an introspection compares at least one measure")
        claims = {"cite": cite, "compares": dict(compares), "uses": uses, "question": question, "misleads": misleads}
        INTROSPECTIONS.add(Introspection(function.__name__, function, GLOBAL, version, needs, **claims))  # type: ignore[arg-type]
        return function

    return register


def metric(
    *,
    family: str,
    direction: Literal["higher", "lower"] | None,
    headline: str,
    version: int = 1,
    needs: tuple[str, ...] = (),
    summary_statistic: Literal["mean", "median"] = "mean",
    uses: tuple[str, ...] = (),
    cite: str = "",
    question: str = "",
    misleads: str = "",
    chance: float | None = None,
) -> Callable[[F], F]:
    """Register a generator `m(case, *, <options>) -> Iterator[Score]` under its own name; see `Metric`."""

    def register(function: F) -> F:
        claims = (direction, headline, summary_statistic, uses, cite, question, misleads, chance)
        METRICS.add(Metric(function.__name__, function, family, version, needs, *claims))
        return function

    return register


def data_source(*, argument: str = "", passes_on: bool = False) -> Callable[[F], F]:
    """Register `f(argument, *, <options>) -> harness.data.Data`; `mnist_5k` is called `mnist-5k` in a study."""
    return _source(DATA, argument, passes_on)


def model_source(*, argument: str = "") -> Callable[[F], F]:
    """Register `f(argument, *, <options>) -> harness.models.ModelSource`; see `data_source`."""
    return _source(MODELS, argument)


def method_source(*, argument: str = "") -> Callable[[F], F]:
    """Register `f(argument, *, base) -> Method`: methods that are not ours; see `data_source`."""
    return _source(GUESTS, argument)


def _source(registry: Registry[SourceEntry], argument: str, passes_on: bool = False) -> Callable[[F], F]:
    def register(function: F) -> F:
        name = function.__name__.strip("_").replace("_", "-")
        registry.add(SourceEntry(name, function, "source", 1, (), argument, passes_on))
        return function

    return register


def split_source(text: str, registry: Registry[SourceEntry]) -> tuple[SourceEntry, str]:
    """The entry that a source such as `folder:photos` names, and what stands after the colon.

    Raises:
        UnknownNameError: there is no such source, or the argument is missing or too much.
    """
    name, colon, argument = text.partition(":")
    if name not in registry:
        usages = {entry.usage for entry in registry.values()}
        raise UnknownNameError(f"unknown {registry.kind} {text!r}; {nearest(text, usages)}")
    entry = registry[name]
    if bool(argument) != bool(entry.argument) or (colon and not argument):
        raise UnknownNameError(f"{registry.kind} {text!r}: expected {entry.usage}")
    if entry.passes_on:
        entry = replace(entry, inner=split_source(argument, registry)[0])
    return entry, argument
