"""The reproductions that ship with the harness. Each is a file with a study, claims and their rules."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.reproduction import Reproduction

NAMES = ("adebayo2018", "sixt2020", "bluecher2024")


def _loader(name: str) -> Callable[[], "Reproduction"]:
    def load() -> "Reproduction":
        found: Reproduction = import_module(f"harness.reproductions.{name}").REPRODUCTION
        return found

    return load


BUILT_IN: Mapping[str, Callable[[], "Reproduction"]] = {name: _loader(name) for name in NAMES}
"""Name -> how to get it: each imports what this package serves."""
