"""A study for somebody's own model and data, with comments, ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.applicability import applicability
from harness.arguments import entry_of
from harness.catalogue import DATA, METHODS, METRICS
from harness.data import Data
from harness.doctor import few_of
from harness.engine import execute
from harness.metrics.profiles import SUMMED
from harness.model_entries import DataEntry, ModelEntry
from harness.models.loaded import LoadedModel
from harness.plan import plan
from harness.registry import split_source
from harness.space import InputSpace
from harness.store import Memory
from harness.study import choose
from harness.subjects import load_entry
from harness.training import Progress

MINUTES = 4.0
TRIED = 300
"""The most passes a sample with which a method is tried out; what more would take is extrapolated."""

SAMPLES = (100, 64, 32, 16, 8)
FEWEST_METHODS = 4
TOLD = ("rate", "seconds")
"""Options of data that change what is explained, so that a study says them even where they have their default."""

FULL_DRAWS, TRIAL_DRAWS, STEPS = 10, 2, 16
OTHER_CLASSES = 3
"""How often the random logit test explains beside its draws."""

CASCADE_BLOCKS = 12


@dataclass(frozen=True)
class Budget:
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


def init_study(
    model: str, data: str, weights: str | None, name: str, base: Path, *, device: torch.device, progress: Progress
) -> str:
    """The text of a study for this model and data; see `entry_of` for how they are given.

    Raises:
        InputError: the model or the data cannot be loaded.
    """
    entry, assumed = entry_of(model, data, weights, base)
    loaded, samples = load_entry(entry, base, seed=0, device=device, progress=progress)
    budget = _budget(loaded, samples, entry.name, progress)
    return _text(entry, samples, budget, name, assumed)


def _metrics(space: InputSpace, full_draws: int, cascade_draws: int) -> list[dict[str, Any]]:
    fills = ["grey", "blur"] if space.kind == "image" else ["mean"]
    fills = [fill for fill in fills if not space.refusal(fill)] or [space.default_fill]
    measures = {"measures": ["spearman", "cosine", *SUMMED]} if space.kind == "bands" else {}
    return [
        {"metric": "parameter_randomization", "full_draws": full_draws, "cascade_draws": cascade_draws, **measures},
        {"metric": "random_logit", "class_draws": full_draws, **measures},
        {"metric": "completeness"},
        {"metric": "pixel_flipping", "steps": STEPS, "fill": fills if len(fills) > 1 else fills[0]},
        {"metric": "occlusion_faithfulness", "fill": fills[0]},
    ]


def _budget(model: LoadedModel, data: Data, label: str, progress: Progress) -> Budget:
    """As many samples and methods as fit into a few minutes, by a trial with a few samples and draws."""
    subject = few_of(label, model, data)
    few, blocks = len(subject.rows), len(model.blocks)
    table = applicability(subject, chunk=few, progress=progress)
    works = [str(name) for name in table.loc[table["status"] == "works", "method"]]
    refused = {str(row["method"]): str(row["reason"]) for _, row in table[table["status"] != "works"].iterrows()}
    passes = {str(row["method"]): float(row["passes"]) for _, row in table[table["status"] == "works"].iterrows()}
    tried = [name for name in works if passes[name] <= TRIED]
    controls = [name for name, entry in METHODS.items() if entry.family == "control" and "masks" not in entry.needs]
    tests = choose(METRICS, _metrics(data.space, TRIAL_DRAWS, 0), "metrics")
    groups, store = plan([subject], choose(METHODS, [*tried, *controls], "methods"), tests, 0), Memory()
    execute(groups, store, seed=0, chunk=few, progress=progress)
    cascade = 1 if blocks <= CASCADE_BLOCKS else 0
    more = {
        "parameter_randomization": (1 + FULL_DRAWS + cascade * (blocks - 1)) / (1 + TRIAL_DRAWS),
        "random_logit": (OTHER_CLASSES + FULL_DRAWS) / (OTHER_CLASSES + TRIAL_DRAWS),
    }
    seconds: dict[str, float] = {}
    for cell in (task.cell for group in groups for task in group.tasks):
        info = store.info(cell) or {"seconds": 0.0}
        cost = more.get(cell.metric, 1.0) * float(info["seconds"])
        seconds[cell.method] = seconds.get(cell.method, 0.0) + cost
    dearest = max(tried, key=passes.__getitem__)
    seconds |= {name: seconds[dearest] * passes[name] / passes[dearest] for name in works if name not in tried}

    def minutes(names: Sequence[str], samples: int) -> float:
        return sum(seconds[name] for name in (*names, *controls)) * samples / few / 60

    counts = [size for size in SAMPLES if size < len(data)]
    for count in [len(data), *counts] if len(data) <= SAMPLES[0] else counts:
        # By passes and not by seconds, so that a busy machine drops the same methods as a quiet one.
        chosen = sorted(works, key=passes.__getitem__)
        while len(chosen) > 1 and minutes(chosen, count) > MINUTES:
            chosen.pop()
        if len(chosen) == len(works) or (count <= SAMPLES[2] and len(chosen) >= FEWEST_METHODS):
            break
    slower = {name: seconds[name] * count / few / 60 for name in works if name not in chosen}
    in_order = tuple(name for name in works if name in chosen)
    return Budget(count, in_order, slower, refused, cascade, minutes(in_order, count))


def _text(entry: ModelEntry, data: Data, budget: Budget, name: str, assumed: Sequence[str]) -> str:
    assert isinstance(entry.data, DataEntry)
    given = {"source": entry.data.source, "samples": budget.samples}
    given["select"] = "stratified" if data.labels is not None else "first"
    defaults = {name: p.default for name, p in split_source(entry.data.source, DATA)[0].options.items()}
    given |= {key: value for key, value in entry.data.options.items() if value != defaults[key] or key in TOLD}
    model: dict[str, Any] = {"name": entry.name, "source": entry.source}
    model |= {"weights": entry.weights} if entry.weights else {}
    model |= {"head": entry.head} if entry.head else {}
    model |= entry.options
    metrics = _metrics(data.space, FULL_DRAWS, budget.cascade_draws)
    lines = [
        f"# {name}: which attribution maps can be trusted on {entry.name}? Run it with: harness run {name}.yaml",
        f"# About {max(budget.minutes, 0.5):.1g} minutes on this machine; more samples make the intervals narrower.",
        f"name: {name}",
        "seed: 0                    # of every random number: the same seed gives the same results",
        "",
        "data:                      # `harness list data` shows what each source can be told",
        *_indented(given, assumed),
        "",
        "models:                    # a list: add others, or several checkpoints, `weights: [a.pt, b.pt]`",
        f"  - {_flow(model)}",
        "",
        "methods:                   # `harness list methods`; controls with a known outcome are added",
        *(f"  - {each}" for each in budget.methods),
        *(f"  # - {each:<24} # about {minutes:.1g} minutes more" for each, minutes in budget.slower.items()),
        *(f"  # {each} does not apply: {reason}" for each, reason in budget.refused.items()),
        "",
        "metrics:                   # `harness list metrics`",
        *(f"  - {_flow(each)}" for each in metrics),
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
