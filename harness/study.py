"""A study: what to run. Strict: anything unknown is an error with its place and the nearest known names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from harness.catalogue import GUESTS, INTROSPECTIONS, METHODS, METRICS
from harness.entries import (
    FILLED_BY_NAME,
    GLOBAL,
    Entry,
    Method,
    Metric,
    OptionError,
    UnknownNameError,
    nearest,
)
from harness.guests.functions import of_callable
from harness.marks import read
from harness.model_entries import NAME, ModelEntry, Strict, checked, models_of, no_label_twice
from harness.places import KeyPath, Place, StudyError, read_yaml
from harness.plugins import load_file, module_name
from harness.registry import Registry, split_source
from harness.space import KNOWN
from harness.types import InputError

STUDIES = Path(__file__).parent / "studies"

E = TypeVar("E", bound=Entry)
ARGUMENTS = Place("arguments")


class Study(Strict):
    """The checked study; entries are still as they were written.

    `exam` is a folder of `harness exam` whose marks count beside the published ones.
    """

    name: str = Field(pattern=NAME)
    seed: int = Field(0, ge=0)
    data: str | dict[str, Any] | None = None
    models: list[str | dict[str, Any]] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(default_factory=list)
    metrics: list[str | dict[str, Any]] = Field(default_factory=list)
    introspections: list[str | dict[str, Any]] = Field(default_factory=list)
    target: Literal["predicted", "label", "runner_up"] | int = "predicted"
    controls: bool = True
    plugins: list[str] = Field(default_factory=list)
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
    introspections: tuple[Chosen, ...]
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
    study = checked(raw, place, Study)
    for index, plugin in enumerate(study.plugins):
        if not (folder / plugin).is_file():
            raise place.error(("plugins", index), f"no file {plugin!r}")
        load_file(folder / plugin)
    marks = _marks(folder / study.exam, place) if study.exam else []
    methods = _choose(METHODS, "methods", study.methods, place, folder)
    if study.controls and methods:
        taken = {chosen.entry.name for chosen in methods}
        homes = {"harness.methods.controls", *(module_name(folder / plugin) for plugin in study.plugins)}
        extra = [
            name
            for name, entry in METHODS.items()
            if entry.family == "control" and entry.function.__module__ in homes and name not in taken
        ]
        added = _choose(METHODS, "methods", extra, place, folder)
        methods = [*methods, *(replace(control, added=True) for control in added)]
    introspections = _choose(INTROSPECTIONS, "introspections", study.introspections, place, folder)
    metrics = _choose(METRICS, "metrics", study.metrics, place, folder)
    metrics = complete(methods, metrics, introspections, controls=study.controls, place=place)
    models = models_of(study.models, study.data, place)
    return Resolved(study, tuple(models), tuple(methods), tuple(metrics), tuple(introspections), folder, marks)


def complete(
    methods: Sequence[Chosen],
    metrics: Sequence[Chosen],
    introspections: Sequence[Chosen],
    *,
    controls: bool = True,
    place: Place = ARGUMENTS,
) -> list[Chosen]:
    """The metrics, with those of introspections that nobody need name: what they say, and the same of random networks.

    Raises:
        StudyError: methods without metrics, or the other way round, neither methods nor introspections, or one of each
            with the same label.
    """
    no_label_twice([each.label for each in (*methods, *introspections)], "introspections", place)
    of_networks = [metric.entry.name for metric in metrics if metric.entry.family == GLOBAL]
    of_maps = [metric for metric in metrics if metric.entry.family != GLOBAL]
    if of_networks and not introspections:
        raise place.error(("metrics",), f"{of_networks[0]} asks introspections: 'introspections' is missing")
    if not methods and (of_maps or not introspections):
        raise place.error((), "the key 'methods' is missing")
    if methods and not of_maps:
        raise place.error((), "the key 'metrics' is missing")
    wanted = ("introspection", *(("network_randomization",) if controls else ())) if introspections else ()
    missing = [name for name in wanted if name not in of_networks]
    return [*metrics, *(Chosen(name, METRICS[name], METRICS[name].resolve({}), added=True) for name in missing)]


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
    return _choose(registry, kind, entries, ARGUMENTS, None)


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
    no_label_twice([entry.label for entry in chosen], kind, place)
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


__all__ = ["Chosen", "Method", "Metric", "Resolved", "Study", "StudyError", "choose", "load_study", "studies"]
