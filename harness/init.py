"""A study for somebody's own model and data, with comments, ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.applicability import applicability
from harness.data import Data, images
from harness.data.audio import EXTENSIONS as SOUNDS
from harness.data.images import EXTENSIONS as PICTURES
from harness.doctor import cost_of, few_of, guess_shape
from harness.models.loaded import LoadedModel
from harness.places import Place
from harness.study import DataEntry, ModelEntry, models_of
from harness.subjects import load_entry, load_source
from harness.training import Progress
from harness.types import InputError

MINUTES = 4.0
SAMPLES = (100, 64, 32, 16, 8)
FULL_DRAWS, STEPS = 10, 16
CASCADE_BLOCKS = 12
PRICES = {"integrated_gradients": 32.0, "smoothgrad": 25.0, "occlusion": 60.0}
"""Gradients that a map costs, where it is more than about one."""


@dataclass(frozen=True)
class Plan:
    """What a study is to contain so that it ends within minutes.

    Attributes:
        samples: how many.
        methods: those that fit.
        slower: those that apply too but would take too long, with the minutes that each would add.
        refused: those that do not apply, with the reason.
        cascade_draws: how many networks go through the whole cascade.
        minutes: how long it takes here, roughly.
    """

    samples: int
    methods: tuple[str, ...]
    slower: dict[str, float]
    refused: dict[str, str]
    cascade_draws: int
    minutes: float


def guess_data(text: str, base: Path) -> str:
    """The source that a bare path stands for: a folder of pictures or recordings, an archive or a table.

    Raises:
        InputError: the path is there, but nothing says what it is.
    """
    path = base / text
    if not path.exists():
        return text
    if path.is_file():
        by_suffix = {".npz": "npz", ".csv": "csv"}
        if path.suffix not in by_suffix:
            raise InputError(f"{text}: expected a folder, or a file that ends in {' or '.join(by_suffix)}")
        return f"{by_suffix[path.suffix]}:{text}"
    suffixes = {each.suffix.lower() for each in path.rglob("*") if each.is_file()}
    for scheme, extensions in (("folder", PICTURES), ("audio", SOUNDS)):
        if suffixes & set(extensions):
            return f"{scheme}:{text}"
    raise InputError(f"{text}: no pictures ({', '.join(PICTURES)}) and no recordings ({', '.join(SOUNDS)}) in it")


def entry_of(model: str, data: str | None, weights: str | None, base: Path) -> tuple[ModelEntry, list[str]]:
    """The entry that a model and data on the command line stand for, and what had to be assumed about the data.

    Both are sources as in a study, or YAML mappings such as `{source: folder:photos, resize: 256}`; data may be a
    bare path. Where pictures need a preprocessing and nothing says which, it is assumed and said so.

    Raises:
        InputError: they are no valid entry.
    """
    given = _mapping(model) | ({"weights": weights} if weights else {})
    assumed: list[str] = []
    if data is not None:
        wanted = _mapping(data)
        wanted["source"] = guess_data(str(wanted.get("source")), base)
        given["data"] = wanted
        if wanted["source"].startswith(("folder:", "torchvision:")) and "mean" not in wanted:
            assumed = _assume(given, wanted, base)
    (entry,) = models_of([given], None, Place("arguments"), needs_data=False)
    return entry, assumed


def _mapping(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"source": text}
    try:
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{text}: not a YAML mapping: {error}") from None


def _assume(given: dict[str, Any], wanted: dict[str, Any], base: Path) -> list[str]:
    """Add a preprocessing to the data where the weights bring none: pixels in [0, 1], of the size that the model takes.

    Raises:
        InputError: the model takes no pictures.
    """
    (entry,) = models_of([{**given, "data": None}], None, Place("arguments"), needs_data=False)
    source = load_source(entry, base)
    if source.preprocessing(entry.weights):
        return []
    shape = source.shape or guess_shape(source.build((), 0))
    if len(shape) != 3 or shape[0] not in images.MODES:
        raise InputError(f"{entry.source} takes inputs of shape {list(shape)}, and pictures are [1 or 3, h, w]")
    wanted |= {"resize": shape[1], "crop": shape[1], "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    return [f"nothing says how the model was trained: pictures of {shape[1]} x {shape[2]} pixels in [0, 1] are assumed"]


def init_study(
    model: str, data: str, weights: str | None, name: str, base: Path, *, device: torch.device, progress: Progress
) -> str:
    """The text of a study for this model and data; see `entry_of` for how they are given.

    Raises:
        InputError: the model or the data cannot be loaded.
    """
    entry, assumed = entry_of(model, data, weights, base)
    loaded, samples = load_entry(entry, base, seed=0, device=device, progress=progress)
    plan = _plan(loaded, samples, entry.name, progress)
    return _text(entry, samples, plan, name, assumed)


def _plan(model: LoadedModel, data: Data, label: str, progress: Progress) -> Plan:
    subject = few_of(label, model, data)
    table = applicability(subject, chunk=len(subject.rows), progress=progress)
    works = [str(name) for name in table.loc[table["status"] == "works", "method"]]
    refused = {str(row["method"]): str(row["reason"]) for _, row in table[table["status"] != "works"].iterrows()}
    x = subject.x
    cost = cost_of(model.model, x)
    cascade = 1 if len(model.blocks) <= CASCADE_BLOCKS else 0
    maps = 2 + FULL_DRAWS + cascade * (len(model.blocks) - 1)
    forward, both = (
        seconds / len(x) for seconds in (cost.forward_seconds, cost.forward_seconds + cost.backward_seconds)
    )

    def minutes(name: str, samples: int) -> float:
        each = PRICES.get(name, 1.0) * (forward if name == "occlusion" else both)
        return samples * (maps * each + 3 * STEPS * forward) / 60

    for count in (*(size for size in SAMPLES if size <= len(data)), min(len(data), SAMPLES[-1])):
        chosen: list[str] = []
        for name in sorted(works, key=lambda name: PRICES.get(name, 1.0)):
            if sum(minutes(each, count) for each in (*chosen, name)) <= MINUTES:
                chosen.append(name)
        if len(chosen) == len(works) or (count <= 32 and len(chosen) >= len(works) - len(PRICES)):
            break
    chosen = chosen or works[:1]
    slower = {name: minutes(name, count) for name in works if name not in chosen}
    in_order = tuple(name for name in works if name in chosen)
    return Plan(count, in_order, slower, refused, cascade, sum(minutes(name, count) for name in in_order))


def _text(entry: ModelEntry, data: Data, plan: Plan, name: str, assumed: Sequence[str]) -> str:
    assert isinstance(entry.data, DataEntry)
    given = {"source": entry.data.source, "samples": plan.samples}
    given["select"] = "stratified" if data.labels is not None else "first"
    given |= {key: value for key, value in entry.data.options.items() if value is not None and value != ""}
    model: dict[str, Any] = {"name": entry.name, "source": entry.source}
    model |= {"weights": entry.weights} if entry.weights else {}
    model |= {"head": entry.head} if entry.head else {}
    model |= entry.options
    named = data.space.mean is not None
    fills = ["black", "grey", "blur"] if data.space.kind == "image" and named else ["zero"] if not named else ["mean"]
    lines = [
        f"# {name}: which attribution maps can be trusted on {entry.name}? Run it with: harness run {name}.yaml",
        f"# About {max(plan.minutes, 0.5):.1g} minutes on this machine; more samples make the intervals narrower.",
        f"name: {name}",
        "seed: 0                    # of every random number: the same seed gives the same results",
        "",
        "data:                      # `harness list data` shows what each source can be told",
        *_indented(given, assumed),
        "",
        "models:                    # a list: add others, or several checkpoints, `weights: [a.pt, b.pt]`",
        f"  - {_flow(model)}",
        "",
        "methods:                   # `harness list methods`; four controls with a known outcome are added",
        *(f"  - {each}" for each in plan.methods),
        *(f"  # - {each:<24} # about {minutes:.1g} minutes more" for each, minutes in plan.slower.items()),
        *(f"  # {each} does not apply: {reason}" for each, reason in plan.refused.items()),
        "",
        "metrics:                   # `harness list metrics`",
        f"  - {{metric: parameter_randomization, full_draws: {FULL_DRAWS}, cascade_draws: {plan.cascade_draws}}}",
        "  - completeness",
        f"  - {{metric: pixel_flipping, steps: {STEPS}, fill: [{', '.join(fills)}]}}",
        f"  - {{metric: occlusion_faithfulness, fill: {fills[0]}}}",
        "",
        "target: predicted          # the explained class: predicted, label, runner_up or an index",
    ]
    return "\n".join(lines) + "\n"


def _indented(given: dict[str, Any], assumed: Sequence[str]) -> list[str]:
    notes = {"samples": "of those there are", "select": "or correct: only what the model classifies correctly"}
    lines = [f"  # ASSUMED: {each}. Put in what is right." for each in assumed]
    for key, value in given.items():
        line = f"  {key}: {_flow(value)}"
        lines.append(f"{line:<27}# {notes[key]}" if key in notes else line)
    return lines


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("\n...\n").strip()
