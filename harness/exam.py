"""The exam: metrics are asked about maps of known quality before they are believed about maps of unknown quality."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import api
from harness.catalogue import METRICS
from harness.entries import Metric
from harness.exam_results import TASKS, Exam, label_of
from harness.marking import LOW, MIDDLE, QUALITIES, TRUTH, WRONG
from harness.plugins import load_file
from harness.preparation import RESULTS
from harness.progress import silent
from harness.results import Results
from harness.study import Chosen, choose
from harness.training import Progress
from harness.types import InputError

FEWEST, SAMPLES, SAMPLES_A_SETUP, SMALL_CHUNK = 16, 128, 32, 7

FAMILIES = ("faithfulness", "localization")
"""What is examined where nobody says what: the metrics that judge a map by itself."""

SETUPS: dict[str, list[Any]] = {
    "fill": ["black", "mean", "blur", "noise"],
    "patch": [1, 3, 6],
    "superpixels": [25, 100],
}
"""The fills and units of a metric that has such options; its own fill is added."""


def examine(
    metrics: Sequence[str | dict[str, Any]] = (),
    out: str | Path | None = None,
    *,
    plugins: Sequence[str | Path] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> Exam:
    """Ask metrics about maps of known quality, and mark them by what they say.

    Maps are the truth of networks that know it, with more and more of a map that is as plausible and wrong, with its
    sign or its order reversed, at another scale, white noise, and the picture itself. A metric passes if it tells the
    truth from a wrong map and from noise, never scores a worse map or the picture clearly higher, scores noise as it
    says, rewards not both reversed maps, and looks neither at the scale of a map nor at the other samples; see
    `harness.marking`.

    Fills are black where nobody names another: the truth is what positions contribute beside black. What other fills
    and units make of it is in the table `spread`.

    Args:
        metrics: as in a study; by default all that judge a map by itself.
        out: the folder; `results/exam` by default. What is finished in it is not computed again.
        plugins: files with metrics of one's own.
        samples: how many.
        seed: of the metrics.
        device: auto (CUDA where there is one), cpu or cuda.
        progress: told what happens.

    Raises:
        InputError: an unknown metric or option, or one that cannot be examined; nothing has been computed.
    """
    if samples < FEWEST:
        raise InputError(f"expected at least {FEWEST} samples, got {samples}: fewer tell nothing of a metric")
    folder = Path(out) if out else RESULTS / "exam"
    for plugin in plugins:
        load_file(Path(plugin))
    chosen = choose(METRICS, [_with_fill(each) for each in metrics or gradable()], "metrics")
    entries = {each.label: _examinable(each) for each in chosen}
    variants = [variant for each in chosen for variant in _variants(each)]
    every = [_map(quality) for quality in QUALITIES]
    noise = {**_map(WRONG), "name": "noise", "wrong": "white"}
    every += [noise, {**_map(WRONG), "name": "picture", "wrong": "picture"}]
    every += [{**_map(TRUTH), "name": change, "change": change} for change in ("negated", "inverted")]
    every += [{**_map(MIDDLE), "name": "rescaled", "change": "rescaled"}]
    some = min(samples, SAMPLES_A_SETUP)
    tests = [{"name": each.label, "metric": each.entry.name, **each.options} for each in chosen]

    def run(name: str, maps: list[dict[str, Any]], tests: list[dict[str, Any]], **changed: Any) -> Results:
        data = {"samples": changed.get("samples", samples), "backwards": changed.get("backwards", 0)}
        models = [{**task, "data": {"source": "evidence", "truth": name, **data}} for name, task in TASKS.items()]
        study = {"name": name, "seed": changed.get("seed", seed), "models": models, "methods": maps, "metrics": tests}
        study |= {"target": 0, "controls": False, "plugins": [str(each) for each in plugins]}
        chunk = changed.get("chunk")
        return api.run(study, folder / name, device=device, chunk=chunk, progress=progress, views=False)

    exam = Exam(
        folder,
        entries,
        {each.label: str(each.options.get("fill", "")) for each in chosen},
        run("graded", every, tests),
        run("again", [_map(MIDDLE), _map(LOW)], tests, seed=seed + 1),
        run("company", [_map(MIDDLE)], tests, backwards=samples, chunk=SMALL_CHUNK),
        run("setups", [_map(TRUTH), _map(MIDDLE), noise], [each.entry for each in variants], samples=some)
        if variants
        else None,
        {each.entry["name"]: (each.metric, each.option) for each in variants},
    )
    exam.write()
    return exam


def gradable() -> list[str]:
    """The metrics that are examined where nobody says which: those that judge a map by itself and train nothing."""
    return [
        name for name, entry in METRICS.items() if entry.family in FAMILIES and _ours(entry) and not _obstacle(entry)
    ]


@dataclass(frozen=True)
class _Variant:
    """A metric with another fill or unit: its entry in a study, whose variant it is, and by which option."""

    entry: dict[str, Any]
    metric: str
    option: str


def _variants(chosen: Chosen) -> list[_Variant]:
    found = []
    for option, values in SETUPS.items():
        if option not in chosen.entry.options:
            continue
        own = chosen.entry.options[option].default
        for value in dict.fromkeys([*values, *([] if own is inspect.Parameter.empty else [own])]):
            if value == chosen.options.get(option):
                continue
            other = {"patch": {"superpixels": 0}, "superpixels": {"patch": 1}}.get(option, {})
            other = {name: none for name, none in other.items() if name in chosen.entry.options}
            name = {"name": f"{chosen.label}.{option}-{value}", "metric": chosen.entry.name}
            found.append(_Variant({**name, **chosen.options, **other, option: value}, chosen.label, option))
    return found


def _with_fill(metric: str | dict[str, Any]) -> dict[str, Any]:
    """The entry with black as its fill where it names none: beside black the truth is known."""
    given = dict(metric) if isinstance(metric, dict) else {"metric": metric}
    entry = METRICS[str(given.get("metric") or given.get("name"))]
    return {"fill": "black", **given} if "fill" in entry.options else given


def _examinable(chosen: Chosen) -> Metric:
    """The metric, if it can be examined.

    Raises:
        InputError: it cannot.
    """
    assert isinstance(chosen.entry, Metric)
    obstacle = _obstacle(chosen.entry)
    if obstacle:
        raise InputError(f"{chosen.label} cannot be examined: {obstacle}; metrics of {' and '.join(FAMILIES)} can")
    return chosen.entry


def _obstacle(entry: Metric) -> str:
    """Why a metric cannot be examined; empty if it can."""
    if entry.direction is None:
        return "it describes maps and says of none that it is better"
    if _ours(entry) and entry.family not in FAMILIES:
        return "it judges a method by more than one map of a sample"
    lacking = sorted({"partner", "recipe", "claim"} & set(entry.needs))
    return f"it needs a {lacking[0]}, which networks with known maps do not have" if lacking else ""


def _ours(entry: Metric) -> bool:
    return entry.function.__module__.startswith("harness.metrics.")


def _map(quality: float) -> dict[str, Any]:
    return {"name": label_of(quality), "method": "graded", "quality": quality, "baseline": "black"}
