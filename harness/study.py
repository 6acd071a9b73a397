"""A study: what to run. Strict: anything unknown is an error with its place and the nearest known names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import product
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.catalogue import DATA, GUESTS, METHODS, METRICS, MODELS
from harness.guests.functions import of_callable
from harness.heads import HEADS
from harness.marks import read
from harness.places import KeyPath, Place, StudyError, read_yaml
from harness.plugins import load_file, module_name
from harness.registry import (
    FILLED_BY_NAME,
    Entry,
    Method,
    Metric,
    OptionError,
    Registry,
    SourceEntry,
    UnknownNameError,
    nearest,
    split_source,
)
from harness.space import KNOWN
from harness.types import InputError

STUDIES = Path(__file__).parent / "studies"

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
E = TypeVar("E", bound=Entry)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataEntry(_Strict):
    """Which samples, as a study says it.

    `first` takes the first `samples` (all of them by default), `stratified` as many of each class in a fixed random
    order, `correct` goes through them in that order and takes those that the model classifies correctly.
    """

    source: str
    samples: int | None = Field(None, ge=1)
    select: Literal["first", "stratified", "correct"] = "first"
    options: dict[str, Any] = {}


class ModelEntry(_Strict):
    """Which model with which weights and head, and on which data if not on the study's.

    `recipe` is FILE.py:FUNCTION: `FUNCTION(model, x, y)` trains a new network in place. It makes the weights where none
    are given, and the networks that tests of randomization compare with (see `harness.recipes`).
    """

    name: str = Field(pattern=NAME)
    source: str
    weights: str | None = None
    head: str | dict[str, Any] = ""
    recipe: str = ""
    data: str | dict[str, Any] | DataEntry | None = None
    model_seed: int = Field(0, ge=0)
    options: dict[str, Any] = {}


class Study(_Strict):
    """The checked study; entries are still as they were written.

    `exam` is a folder of `harness exam` whose marks count beside the published ones.
    """

    name: str = Field(pattern=NAME)
    seed: int = Field(0, ge=0)
    data: str | dict[str, Any] | None = None
    models: list[str | dict[str, Any]] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    metrics: list[str | dict[str, Any]] = Field(min_length=1)
    target: Literal["predicted", "label", "runner_up"] | int = "predicted"
    controls: bool = True
    plugins: list[str] = []
    exam: str = ""


@dataclass(frozen=True)
class Chosen:
    """A registry entry with its resolved options, under the label that it has in this study.

    `added` by the harness and not by the study, it is left out where it does not apply.
    """

    label: str
    entry: Entry
    options: Mapping[str, Any]
    added: bool = False


@dataclass(frozen=True)
class Resolved:
    """A study in which every name stands for something."""

    study: Study
    models: tuple[ModelEntry, ...]
    methods: tuple[Chosen, ...]
    metrics: tuple[Chosen, ...]
    base: Path
    marks: Sequence[Mapping[str, Any]] = ()


def load_study(source: str | Path | Mapping[str, Any]) -> Resolved:
    """Read, check and resolve a study: a built-in name, a YAML file or a mapping.

    Raises:
        StudyError: anything in it is unknown or of the wrong type; nothing has been computed.
    """
    folder = Path.cwd()
    if isinstance(source, Mapping):
        raw, place = dict(source), Place("study")
    else:
        path = _find(source)
        folder = path.parent
        raw, place = read_yaml(path, Study.model_fields)
    study = _checked(raw, place)
    for index, plugin in enumerate(study.plugins):
        if not (folder / plugin).is_file():
            raise place.error(("plugins", index), f"no file {plugin!r}")
        load_file(folder / plugin)
    marks = _marks(folder / study.exam, place) if study.exam else []
    methods = _choose(METHODS, "methods", study.methods, place, folder)
    if study.controls:
        taken = {chosen.entry.name for chosen in methods}
        homes = {"harness.methods.controls", *(module_name(folder / plugin) for plugin in study.plugins)}
        extra = [
            name
            for name, entry in METHODS.items()
            if entry.family == "control" and entry.function.__module__ in homes and name not in taken
        ]
        added = _choose(METHODS, "methods", extra, place, folder)
        methods = [*methods, *(replace(control, added=True) for control in added)]
    metrics = _choose(METRICS, "metrics", study.metrics, place, folder)
    return Resolved(
        study, tuple(models_of(study.models, study.data, place)), tuple(methods), tuple(metrics), folder, marks
    )


def _marks(folder: Path, place: Place) -> list[dict[str, Any]]:
    """The marks of an exam of the user's own.

    Raises:
        StudyError: there was none in this folder.
    """
    try:
        return read(folder)
    except FileNotFoundError:
        raise place.error(("exam",), f"no exam in {str(folder)!r}: `harness exam` writes one") from None


def studies() -> dict[str, Path]:
    """The built-in studies."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def choose(
    registry: Registry[E], entries: Sequence[str | dict[str, Any] | Callable[..., Any]], kind: str
) -> list[Chosen]:
    """Resolve entries that were given in Python; see `load_study` for those of a file. Methods may be functions.

    Raises:
        StudyError: an unknown name or option, or two entries with one label.
    """
    return _choose(registry, kind, entries, Place("arguments"), None)


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


def _checked(raw: dict[str, Any], place: Place, model: type[_Strict] = Study, path: KeyPath = ()) -> Any:
    try:
        return model(**raw)
    except ValidationError as error:
        # An unknown key is the likeliest mistake, so it goes first; that a mapping is no string says nothing.
        order = {"extra_forbidden": 0, "string_type": 2, "dict_type": 2, "model_type": 2}
        problem = min(error.errors(), key=lambda e: order.get(e["type"], 1))
        where = tuple(part for part in problem["loc"] if not str(part).startswith(("literal[", "str", "int", "dict[")))
        if problem["type"] == "extra_forbidden":
            message = f"unknown key {where[-1]!r}; {nearest(str(where[-1]), model.model_fields)}"
        elif problem["type"] == "missing":
            message = f"the key {where[-1]!r} is missing"
        else:
            message = f"{problem['msg']}, got {problem['input']!r}"
        raise place.error((*path, *where), message) from None


def models_of(
    raws: Sequence[str | dict[str, Any]],
    default: str | dict[str, Any] | None,
    place: Place,
    *,
    needs_data: bool = True,
) -> list[ModelEntry]:
    """The checked model entries, one for each checkpoint or seed, each with its data.

    Raises:
        StudyError: an unknown source, key, option or head, no data, or two entries with one label.
    """
    entries: list[ModelEntry] = []
    for index, raw in enumerate(raws):
        path: KeyPath = ("models", index)
        given: dict[str, Any] = {"source": raw} if isinstance(raw, str) else dict(raw)
        given.setdefault("source", given.get("name"))
        given.setdefault("name", _label(str(given["source"])))
        for member in _checkpoints(given, place, path):
            source, fields = _source_of(MODELS, ModelEntry, member, place, path)
            entry: ModelEntry = _checked(fields, place, ModelEntry, path)
            _check_head(entry, place, path)
            own, data = "data" in fields, fields.get("data") or default
            if data is None and not source.argument:
                data = source.load("", {}).data or None
            if data is None and needs_data:
                raise place.error(path, f"{entry.name}: on which data? Say `data`; {nearest('', _usages(DATA))}")
            where: KeyPath = (*path, "data") if own else ("data",)
            checked = None if data is None else data_of(data, place, where)
            entries.append(entry.model_copy(update={"data": checked}))
    _no_label_twice([f"{entry.name}, model_seed {entry.model_seed}" for entry in entries], "models", place)
    return entries


def data_of(raw: str | dict[str, Any], place: Place, path: KeyPath) -> DataEntry:
    """The checked data entry.

    Raises:
        StudyError: an unknown source, key or option.
    """
    given = {"source": raw} if isinstance(raw, str) else dict(raw)
    _, fields = _source_of(DATA, DataEntry, given, place, path)
    entry: DataEntry = _checked(fields, place, DataEntry, path)
    return entry


def _source_of(
    registry: Registry[SourceEntry], model: type[_Strict], given: dict[str, Any], place: Place, path: KeyPath
) -> tuple[SourceEntry, dict[str, Any]]:
    """The registered source of an entry, and the entry with the options of the source gathered and checked."""
    if not isinstance(given.get("source"), str):
        raise place.error(path, f"an entry needs the key 'source'; {nearest('', _usages(registry))}")
    try:
        source, _ = split_source(given["source"], registry)
    except UnknownNameError as error:
        raise place.error(path, str(error)) from None
    fields = {key: value for key, value in given.items() if key in model.model_fields and key != "options"}
    options = {key: value for key, value in given.items() if key not in fields}
    for key in options:
        if key not in source.options:
            known = {*model.model_fields, *source.options} - {"options"}
            raise place.error((*path, key), f"unknown key {key!r}; {nearest(key, known)}")
    try:
        return source, {**fields, "options": source.resolve(options)}
    except OptionError as error:
        raise place.error((*path, error.option), str(error)) from None


def _usages(registry: Registry[SourceEntry]) -> list[str]:
    return [entry.usage for entry in registry.values()]


def _label(source: str) -> str:
    """How a model is called that was given no name: resnet50 for torchvision:resnet50, net for file:net.py:build."""
    scheme, _, argument = source.partition(":")
    label = PurePath(argument.rpartition(":")[0]).stem if scheme == "file" else argument or scheme
    return re.sub(r"[^A-Za-z0-9._-]", "-", label).lstrip("._-") or "model"


def _checkpoints(given: dict[str, Any], place: Place, path: KeyPath) -> list[dict[str, Any]]:
    """One entry for each of several checkpoints or training seeds; `model_seed` tells them apart."""
    lists = [key for key in ("weights", "model_seed") if isinstance(given.get(key), list)]
    if len(lists) == 2:
        raise place.error((*path, "model_seed"), "a list of `weights` numbers the checkpoints itself; drop model_seed")
    if lists == ["weights"]:
        return [{**given, "weights": each, "model_seed": seed} for seed, each in enumerate(given["weights"])]
    if lists:
        return [{**given, "model_seed": seed} for seed in given["model_seed"]]
    return [given]


def head_of(entry: ModelEntry) -> tuple[str, dict[str, Any]]:
    """The name of an entry's head, empty if it has none, and its options."""
    given = {"head": entry.head} if isinstance(entry.head, str) else dict(entry.head)
    return given.pop("head", ""), given


def _check_head(entry: ModelEntry, place: Place, path: KeyPath) -> None:
    name, options = head_of(entry)
    if not entry.head:
        return
    if name not in HEADS:
        raise place.error((*path, "head"), f"unknown head {name!r}; {nearest(name, HEADS)}")
    known = [option for option, p in signature(HEADS[name]).parameters.items() if p.annotation is int]
    for option, value in options.items():
        if option not in known or not isinstance(value, int):
            raise place.error((*path, "head"), f"{name} has no option {option}={value!r}; {nearest(option, known)}")


def _choose(
    registry: Registry[E],
    kind: str,
    raws: Sequence[str | dict[str, Any] | Callable[..., Any]],
    place: Place,
    base: Path | None,
) -> list[Chosen]:
    """The entries of a list with their options; paths are relative to `base`, which nothing in Python has.

    Raises:
        StudyError: an unknown name or option, or two entries with one label.
    """
    singular = kind.removesuffix("s")
    chosen = []
    for index, raw in enumerate(raws):
        path: KeyPath = (kind, index)
        given = dict(raw) if isinstance(raw, dict) else {singular: raw}
        scheme = next((key for key in given if registry.kind == GUESTS.kind and key in GUESTS), "")
        if scheme and singular not in given:
            # `maps: FILE.npz` is how YAML reads it with a space.
            given[singular] = f"{scheme}:{given.pop(scheme)}"
        label = given.pop("name", None)
        name = given.pop(singular, None) or label
        if name is None:
            raise place.error(path, f"an entry needs the key {singular!r}; {nearest('', registry)}")
        try:
            entry = _entry(registry, name, base)
        except (InputError, UnknownNameError) as error:
            raise place.error(path, str(error)) from None
        for suffix, options in _expanded(entry, given):
            try:
                chosen.append(Chosen(f"{label or entry.name}{suffix}", entry, entry.resolve(options)))
            except OptionError as error:
                raise place.error((*path, error.option), str(error)) from None
            for option in FILLED_BY_NAME:
                fill = chosen[-1].options.get(option, KNOWN[option][0])
                if fill not in KNOWN[option]:
                    raise place.error((*path, option), f"unknown fill {fill!r}; {nearest(fill, KNOWN[option])}")
    _no_label_twice([entry.label for entry in chosen], kind, place)
    return chosen


def _entry(registry: Registry[E], named: object, base: Path | None) -> Entry:
    """What is registered under a name; for methods also a guest such as `captum:Lime`, and in Python a function.

    Raises:
        InputError: a guest that cannot be had.
    """
    if registry.kind == GUESTS.kind and callable(named):
        if base:
            raise InputError("a study has its methods by name: write file:PATH.py:FUNCTION")
        return of_callable(named)
    name = str(named)
    if registry.kind == GUESTS.kind and (":" in name or name in GUESTS):
        source, argument = split_source(name, GUESTS)
        guest: Method = source.load(argument, {}, base=base or Path.cwd())
        return guest
    return registry[name]


def _expanded(entry: Entry, given: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One (label suffix, options) for each combination of the options that list several values."""
    lists = {k: v for k, v in given.items() if isinstance(v, list) and v and not entry.accepts_list(k)}
    combinations = []
    for values in product(*lists.values()):
        picked = dict(zip(lists, values, strict=True))
        suffix = ",".join(f"{key}={value}" for key, value in picked.items())
        combinations.append((f"[{suffix}]" if suffix else "", {**given, **picked}))
    return combinations


def _no_label_twice(labels: list[str], kind: str, place: Place) -> None:
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise place.error((kind,), f"two entries are called {label!r}; give one of them a `name`")


__all__ = ["Chosen", "Method", "Metric", "Resolved", "Study", "StudyError", "choose", "load_study", "studies"]
