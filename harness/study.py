"""A study: what to run. Strict: anything unknown is an error with its place and the nearest known names."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.catalogue import METHODS, METRICS
from harness.data import DATA, digest
from harness.models import MODELS
from harness.registry import FILLED_BY_NAME, Entry, Method, Metric, OptionError, Registry, UnknownNameError, nearest
from harness.space import KNOWN_FILLS
from harness.types import InputError

STUDIES = Path(__file__).parent / "studies"

KeyPath = tuple[str | int, ...]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
E = TypeVar("E", bound=Entry)


class StudyError(InputError):
    """A study that cannot be run; the message says where, what and what is known instead."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataEntry(_Strict):
    """Which samples: `samples` of `source`, all held-out ones by default."""

    source: str
    samples: int | None = Field(None, ge=1)
    select: Literal["first", "correct"] = "first"


class ModelEntry(_Strict):
    """Which model, and on which data if not on the study's."""

    name: str = Field(pattern=NAME)
    source: str
    data: str | DataEntry | None = None
    model_seed: int = 0


class Study(_Strict):
    """The checked study; entries are still as they were written."""

    name: str = Field(pattern=NAME)
    seed: int = Field(0, ge=0)
    data: str | DataEntry | None = None
    models: list[str | dict[str, Any]] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    metrics: list[str | dict[str, Any]] = Field(min_length=1)
    target: Literal["predicted", "label", "runner_up"] | int = "predicted"
    controls: bool = True
    plugins: list[str] = []


@dataclass(frozen=True)
class Chosen:
    """A registry entry with its resolved options, under the label that it has in this study."""

    label: str
    entry: Entry
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A study in which every name stands for something."""

    study: Study
    models: tuple[ModelEntry, ...]
    methods: tuple[Chosen, ...]
    metrics: tuple[Chosen, ...]


class _Place:
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


def load_study(source: str | Path | Mapping[str, Any]) -> Resolved:
    """Read, check and resolve a study: a built-in name, a YAML file or a mapping.

    Raises:
        StudyError: anything in it is unknown or of the wrong type; nothing has been computed.
    """
    folder = Path.cwd()
    if isinstance(source, Mapping):
        raw, place = dict(source), _Place("study")
    else:
        path = _find(source)
        folder = path.parent
        raw, place = _read(path)
    study = _checked(raw, place)
    for index, plugin in enumerate(study.plugins):
        load_plugin(folder / plugin, place.error(("plugins", index), f"no file {plugin!r}"))
    methods = _choose(METHODS, "methods", study.methods, place)
    if study.controls:
        taken = {chosen.entry.name for chosen in methods}
        homes = {"harness.methods.controls", *(_module_name(folder / plugin) for plugin in study.plugins)}
        extra = [
            name
            for name, entry in METHODS.items()
            if entry.family == "control" and entry.function.__module__ in homes and name not in taken
        ]
        methods = [*methods, *_choose(METHODS, "methods", extra, place)]
    metrics = _choose(METRICS, "metrics", study.metrics, place)
    return Resolved(study, tuple(_models(study, place)), tuple(methods), tuple(metrics))


def studies() -> dict[str, Path]:
    """The built-in studies."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def load_plugin(path: Path, missing: Exception | None = None) -> None:
    """Run a user's file, which registers its methods and metrics.

    Raises:
        InputError: there is no such file, or it raises itself.
    """
    if not path.is_file():
        raise missing or InputError(f"no file {path}")
    name = _module_name(path)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"plugin {path}: {type(error).__name__}: {error}") from error


def _module_name(plugin: Path) -> str:
    return f"harness_plugin_{plugin.stem}_{digest(str(plugin.resolve()))}"


def choose(registry: Registry[E], entries: Sequence[str | dict[str, Any]], kind: str) -> list[Chosen]:
    """Resolve entries that were given in Python; see `load_study` for those of a file.

    Raises:
        StudyError: an unknown name or option, or two entries with one label.
    """
    return _choose(registry, kind, entries, _Place("arguments"))


def _find(source: str | Path) -> Path:
    built_in = studies()
    if str(source) in built_in:
        return built_in[str(source)]
    path = Path(source)
    if not path.is_file():
        raise StudyError(
            f"no study {str(source)!r}: neither a file nor a built-in study; {nearest(str(source), built_in)}"
        )
    return path


def _read(path: Path) -> tuple[dict[str, Any], _Place]:
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise StudyError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    place = _Place(str(path), root)
    if not isinstance(raw, dict):
        raise place.error((), f"a study is a mapping with the keys {', '.join(Study.model_fields)}")
    _no_key_twice(root, place, ())
    return raw, place


def _no_key_twice(node: yaml.Node | None, place: _Place, path: KeyPath) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key, value in node.value:
            if keys.count(key.value) > 1:
                raise place.error((*path, key.value), f"the key {key.value!r} stands here twice")
            _no_key_twice(value, place, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _no_key_twice(value, place, (*path, index))


def _checked(raw: dict[str, Any], place: _Place, model: type[_Strict] = Study, path: KeyPath = ()) -> Any:
    try:
        return model(**raw)
    except ValidationError as error:
        # An unknown key is the likeliest mistake, so it goes first; that a mapping is no string says nothing.
        order = {"extra_forbidden": 0, "string_type": 2, "model_type": 2}
        problem = min(error.errors(), key=lambda e: order.get(e["type"], 1))
        where = tuple(part for part in problem["loc"] if not str(part).startswith(("literal[", "str", "int", "dict[")))
        if problem["type"] == "extra_forbidden":
            known = DataEntry.model_fields if "DataEntry" in where else model.model_fields
            where = tuple(part for part in where if part != "DataEntry")
            message = f"unknown key {where[-1]!r}; {nearest(str(where[-1]), known)}"
        elif problem["type"] == "missing":
            message = f"the key {where[-1]!r} is missing"
        else:
            where = tuple(part for part in where if part != "DataEntry")
            message = f"{problem['msg']}, got {problem['input']!r}"
        raise place.error((*path, *where), message) from None


def _models(study: Study, place: _Place) -> list[ModelEntry]:
    entries = []
    for index, raw in enumerate(study.models):
        path: KeyPath = ("models", index)
        given = {"name": raw, "source": raw} if isinstance(raw, str) else {"source": raw.get("name"), **raw}
        entry = _checked(given, place, ModelEntry, path)
        _known(entry.source, MODELS, "model", place, path)
        entry = entry.model_copy(update={"data": entry.data or study.data or MODELS[entry.source].data})
        data = DataEntry(source=entry.data) if isinstance(entry.data, str) else entry.data
        _known(data.source, DATA, "data", place, path if isinstance(raw, dict) and "data" in raw else ("data",))
        entries.append(entry.model_copy(update={"data": data}))
    _no_label_twice([entry.name for entry in entries], "models", place)
    return entries


def _known(name: str, table: Mapping[str, Any], kind: str, place: _Place, path: KeyPath) -> None:
    if name not in table:
        raise place.error(path, f"unknown {kind} {name!r}; {nearest(name, table)}")


def _choose(registry: Registry[E], kind: str, raws: Sequence[str | dict[str, Any]], place: _Place) -> list[Chosen]:
    singular = kind.removesuffix("s")
    chosen = []
    for index, raw in enumerate(raws):
        path: KeyPath = (kind, index)
        given = {singular: raw} if isinstance(raw, str) else dict(raw)
        label = given.pop("name", None)
        name = given.pop(singular, None) or label
        if name is None:
            raise place.error(path, f"an entry needs the key {singular!r}; {nearest('', registry)}")
        try:
            entry = registry[str(name)]
        except UnknownNameError as error:
            raise place.error(path, str(error)) from None
        for suffix, options in _expanded(entry, given):
            try:
                chosen.append(Chosen(f"{label or name}{suffix}", entry, entry.resolve(options)))
            except OptionError as error:
                raise place.error((*path, error.option), str(error)) from None
            for option in FILLED_BY_NAME:
                fill = chosen[-1].options.get(option, KNOWN_FILLS[0])
                if fill not in KNOWN_FILLS:
                    raise place.error((*path, option), f"unknown fill {fill!r}; {nearest(fill, KNOWN_FILLS)}")
    _no_label_twice([entry.label for entry in chosen], kind, place)
    return chosen


def _expanded(entry: Entry, given: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One (label suffix, options) for each combination of the options that list several values."""
    lists = {k: v for k, v in given.items() if isinstance(v, list) and v and not entry.accepts_list(k)}
    combinations = []
    for values in product(*lists.values()):
        picked = dict(zip(lists, values, strict=True))
        suffix = ",".join(f"{key}={value}" for key, value in picked.items())
        combinations.append((f"[{suffix}]" if suffix else "", {**given, **picked}))
    return combinations


def _no_label_twice(labels: list[str], kind: str, place: _Place) -> None:
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise place.error((kind,), f"two entries are called {label!r}; give one of them a `name`")


__all__ = ["Chosen", "Method", "Metric", "Resolved", "Study", "StudyError", "choose", "load_study", "studies"]
