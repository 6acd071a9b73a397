"""Places in a study, so that an error can say where it is."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from harness.types import InputError

KeyPath = tuple[str | int, ...]


class StudyError(InputError):
    """A study that cannot be run; the message says where, what and what is known instead."""


class Place:
    """Turns a path inside a study into `file:line: key`, so that an error can be found."""

    def __init__(self, origin: str, root: yaml.Node | None = None) -> None:
        self.origin, self.root = origin, root

    def error(self, path: KeyPath, message: str) -> StudyError:
        """An error at this path."""
        words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        line = f":{self._line(path)}" if self.root else ""
        return StudyError(f"{self.origin}{line}: {words + ': ' if words else ''}{message}")

    def _line(self, path: KeyPath) -> int:
        node = self.root
        assert node is not None
        line: int = node.start_mark.line
        for part in path:
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
            elif isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == part]
                if not found:
                    break
                line, node = found[0][0].start_mark.line, found[0][1]
        return line + 1


def read_yaml(path: Path, keys: Iterable[str]) -> tuple[dict[str, Any], Place]:
    """A mapping in a YAML file, and how to name places in it.

    Raises:
        StudyError: not YAML, no mapping (which would have `keys`), or a key that stands twice.
    """
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise StudyError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    place = Place(str(path), root)
    if not isinstance(raw, dict):
        raise place.error((), f"expected a mapping with the keys {', '.join(keys)}")
    _no_key_twice(root, place, ())
    return raw, place


def _no_key_twice(node: yaml.Node | None, place: Place, path: KeyPath) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key, value in node.value:
            if keys.count(key.value) > 1:
                raise place.error((*path, key.value), f"the key {key.value!r} stands here twice")
            _no_key_twice(value, place, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _no_key_twice(value, place, (*path, index))
