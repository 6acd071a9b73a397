"""What differs between two cells of the same label, in words: the first thing to look at when values differ."""

from collections.abc import Iterator, Mapping
from typing import Any

State = Mapping[str, Any]

KEYED = {
    "weights": "weights",
    "contents": "data",
    "method_function": "method",
    "metric_function": "metric",
    "method_version": "version of the method",
    "metric_version": "version of the metric",
    "device": "device",
    "dtype": "number format",
    "matmul_precision": "matmul precision",
    "model_form": "form of the model",
}
"""What is recorded of a cell and part of its key -> what it is called."""

CIRCUMSTANCES = {"chunk": "samples at once", "torch": "torch", "code": "code of the harness"}
"""What is recorded and no part of it."""

SHORT = 12
"""Characters of a hash that are shown."""


def causes(base: State, new: State, *, seeds: tuple[int, int], same_key: bool) -> list[str]:
    """What may have made values differ: nothing if the cells have the same key, code and environment.

    Args:
        base: how the one cell came about.
        new: how the other did.
        seeds: of the two studies.
        same_key: whether the cells have the same key.
    """
    found = [f"seed: {seeds[0]} -> {seeds[1]}"] if seeds[0] != seeds[1] else []
    found += _recorded(base, new, KEYED)
    options = [
        each
        for kind in ("method", "metric")
        for each in _options(base.get(f"{kind}_options", {}), new.get(f"{kind}_options", {}), kind)
    ]
    other = "something else in the key: targets, masks, background, networks that the metric trains"
    unknown = [other] if not (same_key or found or options) else []
    return [*found, *_recorded(base, new, CIRCUMSTANCES), *options, *unknown]


def _recorded(base: State, new: State, names: Mapping[str, str]) -> Iterator[str]:
    for name, words in names.items():
        # Runs of earlier versions have not recorded everything.
        if name in base and name in new and base[name] != new[name]:
            yield f"{words}: {_short(base[name])} -> {_short(new[name])}"


def _options(base: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> Iterator[str]:
    for name in dict.fromkeys([*base, *new]):
        if base.get(name) != new.get(name):
            yield f"option {name} of the {kind}: {base.get(name, 'default')} -> {new.get(name, 'default')}"


def _short(value: object) -> str:
    text = str(value)
    return text[:SHORT] if len(text) > 2 * SHORT and " " not in text else text
