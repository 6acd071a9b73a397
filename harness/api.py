"""The verbs in Python: `run` a study, `evaluate` a model at hand, `explain` a batch."""

import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.catalogue import METHODS, METRICS
from harness.engine import execute
from harness.figures import write_figures
from harness.given import subject_of_tensors
from harness.pictures import keep_cascade, options_of
from harness.plan import Group, code_hash, lacking, plan
from harness.progress import silent
from harness.results import Results
from harness.space import InputSpace
from harness.store import Folder, Memory, Store
from harness.study import Chosen, Resolved, choose, load_study
from harness.subjects import Subject, Target, subject_of_entry
from harness.tables import write_tables
from harness.training import Progress
from harness.types import InputError, NotApplicableError

CHUNK = 64
RESULTS = Path("results")


def run(
    study: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    samples: int | None = None,
    chunk: int | None = None,
    progress: Progress = silent,
    views: bool = True,
) -> Results:
    """Run a study in a folder: compute what is not finished there, then write tables and figures.

    Args:
        study: a built-in study, a YAML file or a mapping.
        out: the run folder; `results/<study>` by default.
        device: auto (CUDA where there is one), cpu or cuda.
        samples: overrides how many samples of each model's data are used.
        chunk: how many samples go through a model at once; that of the folder's first run by default.
        progress: told what happens.
        views: whether tables and figures are written.

    Raises:
        InputError: something in the study, the data or a model is wrong; nothing has been computed.
    """
    resolved = load_study(study)
    place = torch_device(device)
    folder = Folder(Path(out) if out else RESULTS / resolved.study.name)
    before = folder.read_manifest()
    _positive("chunk", chunk)
    _positive("samples", samples)
    kept = before[0]["chunk"] if before else None
    if kept and chunk and kept != chunk:
        raise InputError(f"the cells in {folder.path} were computed with --chunk {kept}: use that one or another --out")
    chunk = chunk or kept or CHUNK
    subjects = [
        subject_of_entry(entry, resolved, device=place, samples=samples, progress=progress) for entry in resolved.models
    ]
    groups = plan(subjects, resolved.methods, resolved.metrics, resolved.study.seed)
    cells = [task.cell for group in groups for task in group.tasks]
    manifest = {"study": _manifest(resolved), "run": folder.path.name, "chunk": chunk, "samples": samples}
    manifest["environment"] = _environment(place)
    manifest["marks"] = list(resolved.marks)
    manifest["subjects"] = [_described(subject) for subject in subjects]
    _warn_of_other_versions(folder, groups)
    folder.write_manifest(manifest, cells)
    execute(groups, folder, seed=resolved.study.seed, chunk=chunk, progress=progress)
    results = Results.load(folder.path)
    if not views:
        return results
    _keep_cascades(groups, results.subjects, resolved.study.seed, folder.path / "figures", progress)
    write_tables(results, folder.path / "tables")
    write_figures(results, folder.path / "figures")
    return results


def evaluate(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None = None,
    *,
    methods: Sequence[str | dict[str, Any] | Callable[..., Any]],
    metrics: Sequence[str | dict[str, Any]],
    space: InputSpace | None = None,
    seed: int = 0,
    build: Callable[[], nn.Module] | None = None,
    target: Target = "predicted",
    background: Float[Tensor, "m ..."] | None = None,
    masks: Float[Tensor, "n ..."] | None = None,
    chunk: int = CHUNK,
    progress: Progress = silent,
) -> Results:
    """Methods x metrics on a model and samples at hand, in memory.

    Args:
        model: returns logits [n, classes]; in evaluation mode, on the device of `x`. Never written to.
        x: images [n,c,h,w], signals [n,c,t] or tables [n,f], as the model takes them. The id of a sample, which
            keys its random numbers, is its position in `x`.
        y: labels, if there are any.
        methods: names or entries as in a study, such as {"method": "smoothgrad", "samples": 50}, and functions
            `f(model, x, target, *, <options>) -> maps`, as they are or as the `method` of an entry.
        metrics: likewise.
        space: what the numbers in `x` mean; without it, fills that need pixels (black, grey) are refused.
        seed: of every draw.
        build: the model's constructor, for randomized twins; without it modules are re-drawn by their own
            `reset_parameters`, and the cells say so.
        target: the explained class: predicted, label, runner_up or an index.
        background: samples that stand for the data, such as training samples, for methods that average over them.
        masks: where in each sample the truth lies, [n, 1, ...] or [n, f], for what compares with it.
        chunk: how many samples go through the model at once.
        progress: told what happens.

    Raises:
        InputError: something is wrong with the arguments; nothing has been computed.
    """
    _positive("chunk", chunk)
    seed = index(seed)
    chosen = choose(METHODS, _listed(methods, "methods"), "methods")
    tests = choose(METRICS, _listed(metrics, "metrics"), "metrics")
    subject = subject_of_tensors(
        model, x, y, space=space, seed=seed, build=build, target=target, background=background, masks=masks
    )
    groups = plan([subject], chosen, tests, seed)
    store: Store = Memory()
    execute(groups, store, seed=seed, chunk=chunk, progress=progress)
    study = {"name": "evaluate", "seed": seed, "target": target}
    return Results({"study": study, "run": "memory"}, tuple(t.cell for g in groups for t in g.tasks), store)


def explain(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"] | Target = "predicted",
    *,
    method: str | Callable[..., Any],
    space: InputSpace | None = None,
    seed: int = 0,
    background: Float[Tensor, "m ..."] | None = None,
    masks: Float[Tensor, "n ..."] | None = None,
    chunk: int = CHUNK,
    **options: Any,
) -> Float[Tensor, "n ..."]:
    """The raw maps of one method: signed, not normalized, channels as the method gives them.

    Args:
        model: returns logits [n, classes]; in evaluation mode.
        x: the samples; the id of each, which keys its random numbers, is its position.
        target: the explained class of each, or a policy as in `evaluate`.
        method: a name as in a study, or a function `f(model, x, target, *, <options>) -> maps`.
        space: what the numbers in `x` mean, for baselines that are named in pixels.
        seed: of the method's noise.
        background: samples that stand for the data, for methods that average over them.
        masks: where in each sample the truth lies, [n, 1, ...] or [n, f], for what compares with it.
        chunk: how many samples go through the model at once.
        options: of the method.

    Raises:
        InputError: the model, the samples, the method or its options are wrong.
        NotApplicableError: the method does not apply to this model or input; says why.
    """
    _positive("chunk", chunk)
    seed = index(seed)
    chosen = choose(METHODS, [{"method": method, **options}], "methods")
    subject = subject_of_tensors(
        model, x, None, space=space, seed=seed, build=None, target=target, background=background, masks=masks
    )
    groups = plan([subject], chosen, [], seed)
    reason = lacking(subject, groups[0].explainer)
    if reason:
        raise NotApplicableError(reason)
    return torch.cat([group.case(seed=seed, chunk=chunk).maps for group in groups])


def torch_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one.

    Raises:
        InputError: an unknown name, or CUDA where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _listed(
    entries: Sequence[str | dict[str, Any] | Callable[..., Any]], name: str
) -> list[str | dict[str, Any] | Callable[..., Any]]:
    if isinstance(entries, (str, dict)) or callable(entries):
        raise InputError(f"{name} is a list of names and entries, got {entries!r}: put it in brackets")
    return list(entries)


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")


def _manifest(resolved: Resolved) -> dict[str, Any]:
    def listed(entries: Sequence[Chosen]) -> list[dict[str, Any]]:
        return [
            {"name": e.label, "function": e.entry.name, "version": e.entry.version, "options": dict(e.options)}
            for e in entries
        ]

    return {
        **resolved.study.model_dump(exclude={"models", "methods", "metrics"}),
        "models": [model.model_dump() for model in resolved.models],
        "methods": listed(resolved.methods),
        "metrics": listed(resolved.metrics),
    }


def _described(subject: Subject) -> dict[str, Any]:
    source = subject.source
    return {
        "model": subject.label,
        "model_seed": source.model_seed,
        "dataset": subject.dataset,
        "samples": len(subject.rows),
        "weights": source.weights,
        "weights_from": source.origin,
        "twins": source.note,
        "skipped": list(subject.skipped),
    }


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "code": code_hash(),
    }


def _warn_of_other_versions(folder: Folder, groups: Sequence[Group]) -> None:
    tasks = [task for group in groups for task in group.tasks]
    finished = [(task, info) for task in tasks if (info := folder.info(task.cell))]
    for what, count in (
        ("the code", sum(info["code"] != task.code for task, info in finished)),
        ("torch", sum(info["torch"] != torch.__version__ for _, info in finished)),
    ):
        if count:
            warnings.warn(
                f"{count} finished cells of {folder.path} were computed with another version of {what}; "
                "they are used as they are. For a fresh start use another --out.",
                stacklevel=3,
            )


def _keep_cascades(
    groups: Sequence[Group],
    names: Mapping[tuple[str, int], str],
    seed: int,
    folder: Path,
    progress: Progress,
) -> None:
    first = [group for group in groups if group.tasks and group.tasks[0].cell.block == 0 and options_of(group)]
    by_subject: dict[str, list[Group]] = {}
    for group in first:
        cell = group.tasks[0].cell
        by_subject.setdefault(names[cell.model, cell.model_seed], []).append(group)
    for position, (name, members) in enumerate(by_subject.items()):
        progress("pictures", position / len(by_subject), name)
        labels = [group.tasks[0].cell.method for group in members]
        keep_cascade(members, labels, folder / f"cascade-{name}.npz", seed=seed)
    progress("pictures", 1.0, "")
