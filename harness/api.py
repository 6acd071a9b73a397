"""The verbs in Python: `run` a study, `evaluate` a model at hand, `explain` a batch."""

from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.catalogue import INTROSPECTIONS, METHODS, METRICS
from harness.cluster import Engine, check_engine, execute_on_ray
from harness.engine import execute
from harness.figures import write_figures
from harness.forecast import Weights
from harness.given import subject_of_tensors
from harness.interrupts import check_limit
from harness.pictures import keep_cascade, options_of
from harness.plan import Group, lacking, plan
from harness.precision import Precision, computing_in
from harness.preparation import CHUNK, check_positive, prepare
from harness.progress import silent
from harness.results import Results
from harness.space import InputSpace
from harness.store import Memory, Store, writing
from harness.study import choose, complete
from harness.subjects import Target
from harness.table_files import write_tables
from harness.training import Progress
from harness.types import InputError, NotApplicableError
from harness.worker import Job


def run(
    study: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    samples: int | None = None,
    chunk: int | None = None,
    engine: Engine = "process",
    address: str | None = None,
    cell_seconds: float | None = None,
    precision: Precision = "float32",
    save_maps: bool = False,
    weigh: bool = False,
    progress: Progress = silent,
    views: bool = True,
) -> Results:
    """Run a study in a folder: compute what is not finished there, then write tables, figures and the report.

    Args:
        study: a built-in study, a YAML file or a mapping.
        out: the run folder; `results/<study>` by default.
        device: auto (CUDA where there is one), cpu or cuda.
        samples: overrides how many samples of each model's data are used.
        chunk: how many samples go through a model at once; that of the folder's first run by default.
        engine: process computes the cells here; ray on a Ray cluster (extra `ray`), with the same values.
        address: of a running Ray cluster, whose machines all see the same files; one on this machine by default.
        cell_seconds: a cell that takes longer is a failure, and the study goes on; by default there is no limit.
        precision: float32, or tf32, which is faster on some GPUs and less exact.
        save_maps: whether maps and samples are kept in the folder; what a finished run lacks is computed.
        weigh: whether progress goes by what cells are estimated to cost, for which each is tried on two samples, and
            not by their number.
        progress: told what happens.
        views: whether tables, figures and the report are written.

    Raises:
        InputError: something in the study, the data or a model is wrong, or another run is writing into the folder;
            nothing has been computed.
        StoppedError: the device was lost, or nothing can be written; what is finished is kept.
        KeyboardInterrupt: somebody interrupted the run. The cell that was on its way was finished; on Ray it was not.
    """
    check_engine(engine, address)
    check_limit(cell_seconds)
    with computing_in(precision):
        ready = prepare(study, out, device=device, samples=samples, chunk=chunk, progress=progress)
        folder, groups = ready.folder, ready.groups
        with folder.taken():
            ready.warn_of_other_versions()
            ready.write_manifest()
            weight = Weights(ready, progress) if weigh else lambda _: 1.0
            if engine == "ray":
                job = Job(
                    study,
                    folder.path.absolute(),
                    ready.device,
                    samples,
                    ready.seed,
                    ready.chunk,
                    cell_seconds,
                    precision=precision,
                    save_maps=save_maps,
                )
                execute_on_ray(groups, job, address=address, progress=progress, weight=weight)
            else:
                execute(
                    groups,
                    folder,
                    seed=ready.seed,
                    chunk=ready.chunk,
                    cell_seconds=cell_seconds,
                    progress=progress,
                    weight=weight,
                    save_maps=save_maps,
                )
            results = Results.load(folder.path)
            if views:
                with writing(folder.path):
                    _keep_cascades(groups, results.subjects, ready.seed, folder.path / "figures", progress)
                    write_tables(results, folder.path / "tables")
                    write_figures(results, folder.path / "figures")
                    results.report()
    return results


def evaluate(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None = None,
    *,
    methods: Sequence[str | dict[str, Any] | Callable[..., Any]] = (),
    metrics: Sequence[str | dict[str, Any]] = (),
    introspections: Sequence[str | dict[str, Any]] = (),
    space: InputSpace | None = None,
    seed: int = 0,
    build: Callable[[], nn.Module] | None = None,
    target: Target = "predicted",
    background: Float[Tensor, "m ..."] | None = None,
    masks: Float[Tensor, "n ..."] | None = None,
    chunk: int = CHUNK,
    precision: Precision = "float32",
    compiled: bool = False,
    save_maps: bool = False,
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
        introspections: likewise; what they say of the network, and of networks that have learnt nothing.
        space: what the numbers in `x` mean; without it, fills that need pixels (black, grey) are refused.
        seed: of every draw.
        build: the model's constructor, for randomized twins; without it modules are re-drawn by their own
            `reset_parameters`, and the cells say so.
        target: the explained class: predicted, label, runner_up or an index.
        background: samples that stand for the data, such as training samples, for methods that average over them.
        masks: where in each sample the truth lies, [n, 1, ...] or [n, f], for what compares with it.
        chunk: how many samples go through the model at once.
        precision: float32, or tf32, which is faster on some GPUs and less exact.
        compiled: whether torch compiles the form of the model for passes without a gradient.
        save_maps: whether maps and samples are kept, for the gallery of `Results.report()` and `Results.maps()`.
        progress: told what happens.

    Raises:
        InputError: something is wrong with the arguments; nothing has been computed.
    """
    check_positive("chunk", chunk)
    seed = index(seed)
    chosen = choose(METHODS, _listed(methods, "methods"), "methods")
    tests = choose(METRICS, _listed(metrics, "metrics"), "metrics")
    asked = choose(INTROSPECTIONS, _listed(introspections, "introspections"), "introspections")
    tests = complete(chosen, tests, asked)
    with computing_in(precision):
        subject = subject_of_tensors(
            model,
            x,
            y,
            space=space,
            seed=seed,
            build=build,
            target=target,
            background=background,
            masks=masks,
            compiled=compiled,
        )
        groups = plan([subject], chosen, tests, seed, asked)
        store: Store = Memory()
        execute(groups, store, seed=seed, chunk=chunk, progress=progress, save_maps=save_maps)
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
    check_positive("chunk", chunk)
    seed = index(seed)
    chosen = choose(METHODS, [{"method": method, **options}], "methods")
    with computing_in("float32"):
        subject = subject_of_tensors(
            model, x, None, space=space, seed=seed, build=None, target=target, background=background, masks=masks
        )
        groups = plan([subject], chosen, [], seed)
        reason = lacking(subject, groups[0].explainer)
        if reason:
            raise NotApplicableError(reason)
        return torch.cat([group.case(seed=seed, chunk=chunk).maps for group in groups])


def _listed(
    entries: Sequence[str | dict[str, Any] | Callable[..., Any]], name: str
) -> list[str | dict[str, Any] | Callable[..., Any]]:
    if isinstance(entries, (str, dict)) or callable(entries):
        raise InputError(f"{name} is a list of names and entries, got {entries!r}: put it in brackets")
    return list(entries)


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
