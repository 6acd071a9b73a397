"""The entries of a study that say which models and which data, checked: what `harness.study` and others read."""

import re
from collections.abc import Sequence
from inspect import signature
from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.catalogue import DATA, MODELS
from harness.entries import OptionError, SourceEntry, UnknownNameError, nearest
from harness.heads import HEADS
from harness.places import KeyPath, Place
from harness.registry import Registry, split_source

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Strict(BaseModel):
    """What knows its keys, and takes no other types than it says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataEntry(Strict):
    """Which samples, as a study says it.

    `first` takes the first `samples` (all of them by default), `stratified` as many of each class in a fixed random
    order, `correct` goes through them in that order and takes those that the model classifies correctly.
    """

    source: str
    samples: int | None = Field(None, ge=1)
    select: Literal["first", "stratified", "correct"] = "first"
    options: dict[str, Any] = {}


class ModelEntry(Strict):
    """Which model with which weights and head, and on which data if not on the study's.

    `recipe` is FILE.py:FUNCTION: `FUNCTION(model, x, y)` trains a new network in place. It makes the weights where none
    are given, and the networks that tests of randomization compare with (see `harness.recipes`).

    `compiled` has torch compile the form for passes without a gradient, which needs a C++ compiler and some seconds.
    """

    name: str = Field(pattern=NAME)
    source: str
    weights: str | None = None
    head: str | dict[str, Any] = ""
    recipe: str = ""
    data: str | dict[str, Any] | DataEntry | None = None
    model_seed: int = Field(0, ge=0)
    compiled: bool = False
    options: dict[str, Any] = {}


def checked(raw: dict[str, Any], place: Place, model: type[Strict], path: KeyPath = ()) -> Any:
    """What was written, as the model has it.

    Raises:
        StudyError: a key is unknown, missing or of the wrong type.
    """
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
            entry: ModelEntry = checked(fields, place, ModelEntry, path)
            _check_head(entry, place, path)
            own, data = "data" in fields, fields.get("data") or default
            if data is None and not source.argument:
                data = source.load("", {}).data or None
            if data is None and needs_data:
                raise place.error(path, f"{entry.name}: on which data? Say `data`; {nearest('', _usages(DATA))}")
            where: KeyPath = (*path, "data") if own else ("data",)
            read = None if data is None else data_of(data, place, where)
            entries.append(entry.model_copy(update={"data": read}))
    no_label_twice([f"{entry.name}, model_seed {entry.model_seed}" for entry in entries], "models", place)
    return entries


def data_of(raw: str | dict[str, Any], place: Place, path: KeyPath) -> DataEntry:
    """The checked data entry.

    Raises:
        StudyError: an unknown source, key or option.
    """
    given = {"source": raw} if isinstance(raw, str) else dict(raw)
    _, fields = _source_of(DATA, DataEntry, given, place, path)
    entry: DataEntry = checked(fields, place, DataEntry, path)
    return entry


def _source_of(
    registry: Registry[SourceEntry], model: type[Strict], given: dict[str, Any], place: Place, path: KeyPath
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


def no_label_twice(labels: list[str], kind: str, place: Place) -> None:
    """Check that no two entries are called the same.

    Raises:
        StudyError: two are.
    """
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise place.error((kind,), f"two entries are called {label!r}; give one of them a `name`")
