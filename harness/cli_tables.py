"""The verbs that read what is there: tables and the report of a run, and comparisons of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.terminal import console, errors, plain, print_table, show_results
from harness.types import InputError

if TYPE_CHECKING:
    from harness.regressions import Comparison
    from harness.results import Results
    from harness.statistics import Thresholds

Format = Literal["csv", "markdown", "latex", "html"]
Test = Literal["wilcoxon", "sign_flip"]

app = typer.Typer()


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    name: Annotated[str, typer.Option(help="print this table only; `all` prints every one")] = "",
    form: Annotated[
        Format | None, typer.Option("--format", help="print the table as text, to be sent into a file")
    ] = None,
    pass_below: Annotated[float, typer.Option(help="threshold of a PASS")] = 0.2,
    fail_above: Annotated[float, typer.Option(help="threshold of a FAIL")] = 0.5,
    test: Annotated[
        Test, typer.Option(help="of paired comparisons: of a median of zero, or of a mean of zero")
    ] = "wilcoxon",
    smallest_effect: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=VALUE or MEASURE=VALUE: the smallest difference of interest; less is equivalent"),
    ] = None,
) -> None:
    """Print the tables of a run and write them again as CSV, Parquet, Markdown and LaTeX, with the figures.

    Examples: `harness table results/quickstart`, `harness table results/quickstart --name verdicts`,
    `harness table results/quickstart --name comparisons --smallest-effect completeness=0.01`,
    `harness table results/quickstart --name rankings --format latex > rankings.tex`.
    """
    from harness.comparisons import Comparing
    from harness.figures import write_figures
    from harness.results import Results
    from harness.table_files import FORMATS, write_tables
    from harness.tables import TABLES

    thresholds = _thresholds(pass_below, fail_above)
    if form and name in ("", "all"):
        raise InputError("--format goes with the --name of one table")
    effects, others = _numbers(smallest_effect or [], "--smallest-effect")
    if others:
        raise InputError(f"--smallest-effect: expected METRIC=VALUE or MEASURE=VALUE, got {others[0]:g} alone")
    results = replace(
        Results.load(folder),
        thresholds=thresholds,
        comparing=Comparing(test, effects),
    )
    _check_effects(results, effects)
    chosen = [results.table(each) for each in ([name] if name and name != "all" else [])]
    if form:
        typer.echo(FORMATS[form](chosen[0]), nl=False)
        return
    write_tables(results, folder / "tables")
    write_figures(results, folder / "figures")
    if not name:
        show_results(results, folder)
    for each in TABLES if name == "all" else [name] if name else []:
        print_table(results.table(each), each)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="the file [default: RUN/report.html]")] = None,
    gallery: Annotated[
        int | None, typer.Option(min=1, help="samples of each model whose maps are shown [default: all that fit]")
    ] = None,
    pass_below: Annotated[float, typer.Option(help="threshold of a PASS")] = 0.2,
    fail_above: Annotated[float, typer.Option(help="threshold of a FAIL")] = 0.5,
) -> None:
    """Write the report of a run: one HTML file with words, tables, charts and maps that needs no network.

    The gallery shows maps that were kept by `harness run STUDY --save-maps`.

    Examples: `harness report results/quickstart`,
    `harness report results/quickstart --out quickstart.html --gallery 24`.
    """
    from harness.results import Results

    results = replace(Results.load(folder), thresholds=_thresholds(pass_below, fail_above))
    console.print(f"report: {results.report(out, gallery=gallery)}", markup=False)


def _thresholds(pass_below: float, fail_above: float) -> "Thresholds":
    """The thresholds of verdicts.

    Raises:
        InputError: they are not in order.
    """
    from harness.statistics import Thresholds

    if not 0 < pass_below <= fail_above < 1:
        raise InputError(f"expected 0 < --pass-below <= --fail-above < 1, got {pass_below} and {fail_above}")
    return Thresholds(pass_below=pass_below, fail_above=fail_above)


def _check_effects(results: "Results", effects: Mapping[str, float]) -> None:
    """Check that effects are declared for what is there.

    Raises:
        InputError: no metric and no measure has such a name.
    """
    from harness.entries import nearest

    long = results.table("headlines")
    there = [name for column in ("metric", "measure") if column in long for name in long[column].dropna().unique()]
    for name in effects:
        if name not in there:
            raise InputError(f"--smallest-effect: no metric or headline {name!r}; {nearest(name, there)}")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="the run that is known to be right; alone, a folder of runs")],
    new: Annotated[Path | None, typer.Argument(help="the run to be judged")] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            help="MEASURE=VALUE allows a measure to change by so much; VALUE alone is a share of the standard "
            "deviation of samples, for all others [default: 0.1]"
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="of p-values, which are adjusted for all rows together")] = 0.05,
    junit: Annotated[Path | None, typer.Option(help="a file for JUnit XML")] = None,
    markdown: Annotated[Path | None, typer.Option(help="a file for a summary in Markdown")] = None,
) -> None:
    """Compare two runs, paired by label and sample: red if something is worse, missing or failed for the first time.

    Given one folder of runs, each is compared with the first, and a control chart is drawn there.

    Examples: `harness compare results/base results/tonight`,
    `harness compare results/base results/tonight --tolerance spearman=0.05 --junit compare.xml`,
    `harness compare results/nightly`.

    Exit codes: 0 nothing is red; 1 something is; 2 they cannot be compared.
    """
    from harness.control_chart import control_chart, draw_control_chart, runs_in
    from harness.regression_report import as_junit, as_markdown
    from harness.regressions import Tolerance
    from harness.regressions import compare as compared

    if not 0 < level < 1:
        raise InputError(f"--level: expected a number between 0 and 1, got {level}")
    measures, spread = _numbers(tolerance or [], "--tolerance")
    allowed = Tolerance(spread[-1] if spread else Tolerance().spread, measures)
    if new is None:
        runs = runs_in(base)
        nights = control_chart(runs, tolerance=allowed, level=level)
        nights.to_csv(base / "control_chart.csv", index=False)
        draw_control_chart(nights, runs[0].manifest["run"]).savefig(base / "control_chart.png", dpi=150)
        console.print(f"control chart: {base}/control_chart.png, {base}/control_chart.csv", markup=False)
        outcome = compared(runs[0], runs[-1], tolerance=allowed, level=level)
    else:
        outcome = compared(base, new, tolerance=allowed, level=level)
    for path, text in ((junit, as_junit), (markdown, as_markdown)):
        if path:
            path.write_text(text(outcome))
    _show(outcome)
    raise typer.Exit(1 if len(outcome.red) else 0)


def _numbers(given: Sequence[str], option: str) -> tuple[dict[str, float], list[float]]:
    """Read `NAME=VALUE` and `VALUE`.

    Raises:
        InputError: a value is no number, or below zero.
    """
    named, others = {}, []
    for each in given:
        name, equals, number = each.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < inf or (equals and not name):
            raise InputError(f"{option}: expected NAME=VALUE with a number from 0 on, got {each!r}")
        if equals:
            named[name] = value
        else:
            others.append(value)
    return named, others


def _show(outcome: "Comparison") -> None:
    from harness.regression_report import SHOWN, headline, lines

    quiet = outcome.rows["outcome"] == "same"
    print_table(outcome.rows.loc[~quiet, SHOWN], "what is not the same")
    for line in lines(outcome):
        errors.print(plain(line))
    console.print(plain(headline(outcome)), style="bold red" if len(outcome.red) else "bold green")
