"""What differs between two cells of the same label, in words: the first thing to look at when values differ."""

from collections.abc import Iterator, Mapping
from typing import Any

State = Mapping[str, Any]

PLAIN = {
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
    "chunk": "samples at once",
    "torch": "torch",
    "code": "code of the harness",
}
"""What is recorded of a cell -> what it is called. The last three are no part of its key."""

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
    for name, words in PLAIN.items():
        # Runs of earlier versions have not recorded everything.
        if name in base and name in new and base[name] != new[name]:
            found.append(f"{words}: {_short(base[name])} -> {_short(new[name])}")
    for kind in ("method", "metric"):
        found += _options(base.get(f"{kind}_options", {}), new.get(f"{kind}_options", {}), kind)
    known = [each for each in found if not each.startswith(("code", "torch", "samples at once"))]
    if not same_key and not known:
        found.append("something else in the key: targets, masks, background, networks that the metric trains")
    return found


def _options(base: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> Iterator[str]:
    for name in dict.fromkeys([*base, *new]):
        if base.get(name) != new.get(name):
            yield f"option {name} of the {kind}: {base.get(name, 'default')} -> {new.get(name, 'default')}"


def _short(value: object) -> str:
    text = str(value)
    return text[:SHORT] if len(text) > 2 * SHORT and " " not in text else text
