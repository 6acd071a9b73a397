"""The command line. Thin: every verb is a function of the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from harness import cli_models, cli_tables
from harness.terminal import Device, console, errors, plain, print_table, show_results, warnings_told
from harness.types import InputError, StoppedError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

INTERRUPTED = 130

Kind = Literal["methods", "metrics", "introspections", "models", "data", "studies", "reproductions"]
Engine = Literal["process", "ray"]
Precision = Literal["float32", "tf32"]

ABOUT = """\
Which attribution maps can be trusted on this model and data?

From a network in net.py, its weights and a folder of pictures to a report:

\b
  harness doctor file:net.py:build photos --weights w.pt   what would make results wrong?
  harness init file:net.py:build photos --weights w.pt     writes study.yaml
  harness run study.yaml --save-maps                       into results/study
  harness report results/study                             report.html, for a browser
  harness table results/study --name verdicts              one table
  harness compare results/base results/study               two runs

Without a model of your own: `harness run quickstart`. Each verb has examples: `harness run --help`.
"""


app.add_typer(cli_models.app)
app.add_typer(cli_tables.app)


@app.callback(help=ABOUT)
def _about() -> None:
    pass


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="a built-in study or a YAML file; `harness list studies`")],
    out: Annotated[Path | None, typer.Option(help="the run folder [default: results/<study>]")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    samples: Annotated[int | None, typer.Option(help="use this many samples of each model's data")] = None,
    chunk: Annotated[int | None, typer.Option(help="samples that go through a model at once")] = None,
    engine: Annotated[
        Engine, typer.Option(help="ray: workers with a GPU each, or with OMP_NUM_THREADS cores where there is none")
    ] = "process",
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster that shares the run folder and the data [default: this machine]")
    ] = None,
    cell_seconds: Annotated[
        float | None, typer.Option(help="a cell that takes longer is a failure [default: no limit]")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="tf32 is faster on some GPUs, and less exact")] = "float32",
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="keep maps and samples, for the gallery of the report and other tools")
    ] = False,
) -> None:
    """Run a study: compute what is not finished, then write tables, figures and the report.

    Examples: `harness run quickstart --save-maps`, `harness run my.yaml --samples 50 --out results/try`,
    `harness run my.yaml --engine ray` (several GPUs, or with --address several machines).

    Exit codes: 0 done; 1 done with failed cells or a broken control; 2 wrong input; 130 interrupted.
    """
    from harness import api
    from harness.preparation import RESULTS
    from harness.progress import bars
    from harness.words import problems

    with warnings_told(), bars(console) as progress:
        results = api.run(
            study,
            out,
            device=device,
            samples=samples,
            chunk=chunk,
            engine=engine,
            address=address,
            cell_seconds=cell_seconds,
            precision=precision,
            save_maps=save_maps,
            weigh=True,
            progress=progress,
        )
    show_results(results, out or RESULTS / results.manifest["study"]["name"])
    raise typer.Exit(1 if problems(results) else 0)


@app.command()
def plan(
    study: Annotated[str, typer.Argument(help="a built-in study or a YAML file; `harness list studies`")],
    out: Annotated[Path | None, typer.Option(help="the run folder [default: results/<study>]")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    samples: Annotated[int | None, typer.Option(help="use this many samples of each model's data")] = None,
    chunk: Annotated[int | None, typer.Option(help="samples that go through a model at once")] = None,
    cells: Annotated[Path | None, typer.Option(help="a CSV file to write the cost of every cell to")] = None,
) -> None:
    """Print what a study would cost: cells, what is done already, passes, memory, time, on how many accelerators.

    Passes are counted on two samples, one batch is measured. Models are loaded, and trained where they are not yet;
    nothing goes into the run folder.

    Examples: `harness plan quickstart`, `harness plan my.yaml --samples 1000 --cells cost.csv`.
    """
    from harness.forecast import forecast
    from harness.preparation import prepare
    from harness.progress import bars

    with warnings_told(), bars(console) as progress:
        ready = prepare(study, out, device=device, samples=samples, chunk=chunk, progress=progress)
        found = forecast(ready, progress)
    for frame, title in ((found.models, "models"), (found.by("method"), "methods"), (found.by("metric"), "metrics")):
        print_table(frame, title)
    if cells:
        found.cells.to_csv(cells, index=False)
    for line in found.lines:
        console.print(plain(line), soft_wrap=True)


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


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="what to list")]) -> None:
    """List what is there by name: methods, metrics, introspections, models, data, studies, reproductions; with options.

    Examples: `harness list methods`, `harness list data`, `harness list studies`.
    """
    from harness.catalogue import DATA, GUESTS, INTROSPECTIONS, METHODS, METRICS, MODELS
    from harness.entries import Entry, SourceEntry
    from harness.reproductions import BUILT_IN
    from harness.study import studies

    registries: dict[str, Mapping[str, Entry]] = {
        "methods": {**METHODS, **GUESTS},
        "metrics": METRICS,
        "introspections": INTROSPECTIONS,
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
        SystemExit: 1 when a run cannot go on, 2 for wrong input, 130 when interrupted.
    """
    from harness.entries import UnknownNameError

    try:
        app()
    except (InputError, UnknownNameError) as error:
        errors.print(f"[bold red]error:[/] {plain(str(error))}")
        raise SystemExit(2) from None
    except StoppedError as error:
        errors.print(f"[bold red]stopped:[/] {plain(str(error))}")
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("interrupted; finished cells are kept, run the same command again to go on")
        raise
