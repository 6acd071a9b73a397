"""The command line. Thin: every verb is a function of the package."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from harness.terminal import console, errors, plain, print_table, show_results, tell_diagnosis, warnings_told
from harness.types import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

INTERRUPTED = 130

Kind = Literal["methods", "metrics", "models", "data", "studies", "reproductions"]
Device = Literal["auto", "cpu", "cuda"]


@app.callback()
def _about() -> None:
    """Which attribution maps can be trusted on this model and data?"""


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="a built-in study or a YAML file; `harness list studies`")],
    out: Annotated[Path | None, typer.Option(help="the run folder [default: results/<study>]")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    samples: Annotated[int | None, typer.Option(help="use this many samples of each model's data")] = None,
    chunk: Annotated[int | None, typer.Option(help="samples that go through a model at once")] = None,
) -> None:
    """Run a study: compute what is not finished, then write tables and figures.

    Examples: `harness run quickstart`, `harness run my.yaml --samples 50 --out results/try`.

    Exit codes: 0 done; 1 done with failed cells or a broken control; 2 wrong input; 130 interrupted.
    """
    from harness import api
    from harness.progress import bars
    from harness.words import problems

    with warnings_told(), bars(console) as progress:
        results = api.run(study, out, device=device, samples=samples, chunk=chunk, progress=progress)
    folder = Path(out) if out else api.RESULTS / results.manifest["study"]["name"]
    show_results(results, folder)
    raise typer.Exit(1 if problems(results) else 0)


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    name: Annotated[str, typer.Option(help="print this table only; `all` prints every one")] = "",
    pass_below: Annotated[float, typer.Option(help="threshold of a PASS")] = 0.2,
    fail_above: Annotated[float, typer.Option(help="threshold of a FAIL")] = 0.5,
) -> None:
    """Print the tables of a run and write them again as CSV and Markdown, with the figures.

    Examples: `harness table results/quickstart`, `harness table results/quickstart --name verdicts`.
    """
    from harness import tables
    from harness.figures import write_figures
    from harness.results import Results
    from harness.statistics import Thresholds

    if not 0 < pass_below <= fail_above < 1:
        raise InputError(f"expected 0 < --pass-below <= --fail-above < 1, got {pass_below} and {fail_above}")
    results = replace(Results.load(folder), thresholds=Thresholds(pass_below=pass_below, fail_above=fail_above))
    tables.write_tables(results, folder / "tables")
    write_figures(results, folder / "figures")
    if not name:
        show_results(results, folder)
    for each in tables.TABLES if name == "all" else [name] if name else []:
        print_table(results.table(each), each)


@app.command()
def exam(
    metrics: Annotated[
        list[str] | None, typer.Argument(help="names, or YAML mappings [default: all that grade]")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="a Python file with metrics of your own")] = None,
    samples: Annotated[int, typer.Option(min=16, help="how many pictures")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="of the metrics' draws")] = 0,
    out: Annotated[Path | None, typer.Option(help="the folder [default: results/exam]")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Examine metrics on maps of known quality: which can be believed, and how many samples do they need?

    Examples: `harness exam`, `harness exam pixel_flipping '{metric: road, fill: blur}'`,
    `harness exam mine --plugin mine.py`; `exam: results/exam` in a study carries the marks into its tables. A metric
    that fails is a result: it is no error.

    Exit codes: 0 done; 1 done with failed cells; 2 wrong input; 130 interrupted.
    """
    from harness.arguments import method_entries
    from harness.exam import examine
    from harness.progress import bars

    with warnings_told(), bars(console) as progress:
        outcome = examine(
            method_entries(metrics or []),
            out,
            plugins=plugin or [],
            samples=samples,
            seed=seed,
            device=device,
            progress=progress,
        )
    print_table(outcome.table, "exam")
    for line in outcome.advice:
        console.print(plain(line), soft_wrap=True)
    failures = outcome.failures
    for _, failure in failures.iterrows():
        errors.print(f"[red]failed[/] {failure['method']} · {failure['metric']}: {plain(failure['error'])}")
    console.print(f"tables and figures: {outcome.folder}/tables, {outcome.folder}/figures", markup=False)
    raise typer.Exit(1 if len(failures) else 0)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="a built-in reproduction or a Python file; `harness list reproductions`")],
    out: Annotated[Path | None, typer.Option(help="the folder [default: results/<name>]")] = None,
    cifar: Annotated[Path | None, typer.Option(help="a folder with ResNets for CIFAR-10 and pictures")] = None,
    imagenet: Annotated[Path | None, typer.Option(help="a folder with a MobileNetV2 and pictures of ImageNet")] = None,
    given: Annotated[list[str] | None, typer.Option(help="NAME=DIR: what a reproduction of your own takes")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    samples: Annotated[int | None, typer.Option(help="use this many samples of each model's data")] = None,
    chunk: Annotated[int | None, typer.Option(help="samples that go through a model at once")] = None,
) -> None:
    """Run the studies of a paper and print a table of its claims: reproduced, not reproduced, or not testable here.

    Examples: `harness reproduce adebayo2018`, `harness reproduce adebayo2018 --cifar cifar10 --imagenet imagenet`,
    `harness reproduce mine.py`. A claim that does not hold is a result: it is no error.

    Exit codes: 0 done; 1 done with failed cells or a broken control; 2 wrong input; 130 interrupted.
    """
    from harness import reproduction
    from harness.claim_tables import changes, wide
    from harness.progress import bars
    from harness.words import problems

    folders = {option: str(folder) for option, folder in (("cifar", cifar), ("imagenet", imagenet)) if folder}
    for each in given or []:
        option, equals, folder = each.partition("=")
        if not equals:
            raise InputError(f"--given: expected NAME=DIR, got {each!r}")
        folders[option] = folder
    with warnings_told(), bars(console) as progress:
        outcome = reproduction.reproduce(
            name, out, given=folders, device=device, samples=samples, chunk=chunk, progress=progress
        )
    print_table(wide(outcome.claims), "claims")
    if len(outcome.reproduction.protocols) > 1:
        print_table(changes(outcome.claims), "where the protocol decides")
    wrong = [f"{part}: {problem}" for part, results in outcome.results.items() for problem in problems(results)]
    for problem in wrong:
        errors.print(f"[bold red]look at:[/] {plain(problem)}")
    console.print(f"claims with rules and numbers: {outcome.folder}/claims.md", markup=False)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="a model source or a study (.yaml)")],
    data: Annotated[str | None, typer.Argument(help="a data source or a path [default: noise]")] = None,
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    samples: Annotated[int, typer.Option(help="how many samples to examine")] = 64,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Examine a model and its data: what it is, what it costs, which methods apply, what makes results wrong.

    Examples: `harness doctor mnist-cnn`, `harness doctor file:net.py:build photos --weights w.safetensors`,
    `harness doctor my.yaml`. Sources may be YAML mappings: '{source: folder:photos, resize: 256, crop: 224, ...}'.

    Exit codes: 0 nothing found; 1 findings; 2 wrong input.
    """
    from harness.api import torch_device
    from harness.arguments import entry_of
    from harness.doctor import examine_entry
    from harness.progress import bars
    from harness.study import load_study

    place, base = torch_device(device), Path.cwd()
    assumed: list[str] = []
    if model.endswith((".yaml", ".yml")):
        resolved = load_study(model)
        entries, base = resolved.models, resolved.base
    else:
        entry, assumed = entry_of(model, data, weights, base)
        entries = (entry,)
    found = 0
    for each in entries:
        with bars(console) as progress:
            diagnosis = examine_entry(each, base, samples=samples, device=place, assumed=assumed, progress=progress)
        tell_diagnosis(diagnosis)
        found += len(diagnosis.findings)
    raise typer.Exit(1 if found else 0)


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="a model source, such as file:net.py:build")],
    data: Annotated[str, typer.Argument(help="a data source, or the path of a folder, .npz or .csv")],
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    out: Annotated[Path, typer.Option(help="the study to write")] = Path("study.yaml"),
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Write a study for a model and data of your own, with comments, ready to run within minutes.

    Examples: `harness init file:net.py:build photos --weights w.safetensors`, then `harness run study.yaml`.
    Sources may be YAML mappings: '{source: folder:photos, broken: skip, resize: 256, crop: 224, ...}'.
    """
    from harness.api import torch_device
    from harness.init import init_study
    from harness.progress import bars

    if out.exists():
        raise InputError(f"{out} exists already: name another file with --out")
    base = Path.cwd()
    if out.parent.resolve() != base.resolve():
        raise InputError("paths in a study are relative to it: write it into the folder you are in")
    with bars(console) as progress:
        text = init_study(model, data, weights, out.stem, base, device=torch_device(device), progress=progress)
    out.write_text(text)
    console.print(text, markup=False)
    console.print(f"written to {out}; run it: harness run {out}", markup=False)


@app.command()
def applicability(
    models: Annotated[list[str] | None, typer.Argument(help="model sources [default: the built-in ones]")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder to write the table to as CSV and Markdown")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Print which method applies to which model, and if not, why; with the completeness residual where one is claimed.

    Each model has random weights and gets noise of both signs: applicability depends on neither.

    Examples: `harness applicability`, `harness applicability vit torchvision:resnet50 file:net.py:build`.
    """
    from harness.api import torch_device
    from harness.doctor import applicability_of
    from harness.progress import bars
    from harness.tables import markdown

    with bars(console) as progress:
        frame = applicability_of(models or [], Path.cwd(), device=torch_device(device), progress=progress)
    print_table(frame, "applicability")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out / "applicability.csv", index=False)
        (out / "applicability.md").write_text(markdown(frame))


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="a model source")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="pictures, or one data source [default: the model's own data]"),
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="names, or YAML mappings [default: all]")] = None,
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    data: Annotated[str | None, typer.Option(help="a YAML mapping: how pictures become inputs, and the like")] = None,
    target: Annotated[str, typer.Option(help="predicted, label, runner_up or a class index")] = "predicted",
    samples: Annotated[int | None, typer.Option(min=1, help="how many [default: all pictures, 2 of a source]")] = None,
    out: Annotated[Path, typer.Option(help="the picture to write")] = Path("show.png"),
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    chunk: Annotated[int, typer.Option(min=1, help="samples that go through the model at once")] = 16,
) -> None:
    """Draw the maps of all methods on a few samples, side by side, to see what they say before anything is measured.

    Examples: `harness show mnist-cnn`, `harness show torchvision:resnet50 dog.jpg --weights IMAGENET1K_V2`,
    `harness show file:net.py:build cat.png dog.png --weights w.pt --methods gradient,grad_cam`. Methods may be
    YAML mappings, '{method: smoothgrad, samples: 50}'. What the weights do not say of the preprocessing is assumed
    and said so; --data '{resize: 256, crop: 224, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}' says it.

    Exit codes: 0 done; 1 a method failed; 2 wrong input.
    """
    from harness import gallery as galleries
    from harness import panels
    from harness.api import torch_device
    from harness.arguments import data_of_images, entry_of, method_entries, target_of
    from harness.catalogue import METHODS
    from harness.progress import bars
    from harness.study import choose

    base, place, explained = Path.cwd(), torch_device(device), target_of(target)
    panels.check_writable(out)
    chosen = choose(METHODS, method_entries(methods or galleries.all_methods()), "methods")
    entry, assumed = entry_of(model, data_of_images(images or [], data, base), weights, base)
    with warnings_told(), bars(console) as progress:
        subject = galleries.subject_to_show(
            entry, base, target=explained, samples=samples, device=place, progress=progress
        )
        names = ["", *(each.label for each in chosen)]
        panels.layout_of(subject.space.kind, tuple(subject.x.shape[1:]), len(subject.rows), names)
        gallery = galleries.gallery_of(entry, base, subject, chosen, chunk=chunk, progress=progress)
    panels.write_png(panels.draw(gallery), out)
    lines = [f"assumed: {note}" for note in (*assumed, *gallery.notes)]
    lines += [f"{name} does not apply: {reason}" for name, reason in gallery.refused.items()]
    if any("background" in reason for reason in gallery.refused.values()):
        lines.append("of pictures, a folder with training samples is the background: --data '{train: FOLDER}'")
    lines += [f"{name} failed: {reason}" for name, reason in gallery.failed.items()]
    lines.append(f"written to {out}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    raise typer.Exit(1 if gallery.failed else 0)


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="what to list")]) -> None:
    """List what is there by name: methods, metrics, models, data, studies or reproductions."""
    from harness.catalogue import DATA, GUESTS, METHODS, METRICS, MODELS
    from harness.registry import Entry, SourceEntry
    from harness.reproductions import BUILT_IN
    from harness.study import studies

    registries: dict[str, Mapping[str, Entry]] = {
        "methods": {**METHODS, **GUESTS},
        "metrics": METRICS,
        "models": MODELS,
        "data": DATA,
    }
    registry = registries.get(kind)
    listing = Table("name", "options" if registry else "", "", box=None, padding=(0, 2, 0, 0))
    if registry:
        for entry in registry.values():
            options = [
                f"{o}={p.default!r}" if p.default is not p.empty else f"{o}=<fill>" for o, p in entry.options.items()
            ]
            name = entry.usage if isinstance(entry, SourceEntry) else entry.name
            family = "" if isinstance(entry, SourceEntry) else f"{entry.family}: "
            listing.add_row(name, plain(" ".join(options)), plain(f"{family}{entry.summary}"))
    elif kind == "reproductions":
        for name, load in BUILT_IN.items():
            found = load()
            listing.add_row(name, " ".join(f"--{option} DIR" for option in found.takes), plain(found.title))
    else:
        for name, path in studies().items():
            listing.add_row(name, "", path.read_text().partition("\n")[0].lstrip("# "))
    console.print(listing)


def main() -> None:
    """The console command `harness`.

    Raises:
        SystemExit: 2 for wrong input, 130 when interrupted.
    """
    from harness.registry import UnknownNameError

    try:
        app()
    except (InputError, UnknownNameError) as error:
        errors.print(f"[bold red]error:[/] {plain(str(error))}")
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interrupted; finished cells are kept, run the same command again to go on")
        raise
