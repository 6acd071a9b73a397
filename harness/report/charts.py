"""The charts of the report, as Vega-Lite specifications by Altair: one panel each, as wide as the page lets it be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import altair as alt
import pandas as pd

from harness.catalogue import METRICS
from harness.curve_figures import COLOURS
from harness.method_figures import SMALLEST
from harness.plotted import PERCENTILES, of_model, seconds
from harness.statistics import Thresholds

if TYPE_CHECKING:
    from harness.results import Results

GREY, MARK, MUTED = "#808080", "var(--mark)", "var(--muted)"
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
RANDOM = "removed at random"
SIGNS = {"signed": "signed", "up_to_sign": "up to the sign", "absolute": "absolute"}
SHAPES = ("circle", "triangle-up", "square")
TESTS = {
    "parameter_randomization": "Another network: what survives when all weights are random",
    "random_logit": "Another class: what survives when another class is explained",
}
BETTER = {"higher": "Higher is better.", "lower": "Lower is better."}
DESCRIBED = "It describes maps: neither high nor low is better."
JUDGED = "The less is left the better, but noise leaves least: such a test judges, and does not rank."
STEP, WIDE_STEP, SPARE = 20, 32, 20
"""The height of one line of a chart, of one that holds several marks, and what it has above them all."""

CHOSEN = "chosen"
"""The parameter of a chart that holds the methods which are told apart; empty: all are."""


@dataclass(frozen=True)
class Chart:
    """A chart: of which model, in which section, its title, what it says in words, and its specification."""

    subject: str
    section: str
    title: str
    summary: str
    specification: Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """How the line of a method looks: the controls grey, all others in a colour, with dashes that tell the rest."""

    name: str
    colour: str
    dashes: Sequence[int]


def styles(methods: Sequence[str], controls: set[str]) -> list[Style]:
    """The styles of methods, in their order."""
    found, coloured, grey = [], 0, 0
    for name in methods:
        if name in controls:
            found.append(Style(name, GREY, DASHES[grey % len(DASHES)]))
            grey += 1
        else:
            found.append(Style(name, COLOURS[coloured % len(COLOURS)], DASHES[coloured // len(COLOURS) % len(DASHES)]))
            coloured += 1
    return found


def charts(results: "Results", looks: Mapping[str, Style]) -> Iterator[Chart]:
    """All charts that the rows allow, model by model.

    Args:
        results: of a run.
        looks: the style of each method.
    """
    points, spread = results.curves, results.residuals
    judged, stages, long, cost = (results.table(n) for n in ("verdicts", "cascade", "headlines", "cost"))
    readings = _readings(results)
    for (model, seed), name in results.subjects.items():
        mine = partial(of_model, model=model, model_seed=seed)
        for rows in _by_metric(mine(judged)):
            yield from _survival(rows, name, results.thresholds)
        for rows in _by_metric(mine(stages)):
            yield from _stages(rows, name, looks)
        yield from _curves(mine(points), name, looks)
        yield from _residuals(mine(spread), name)
        yield from _headlines(mine(long[~long["method"].isin(results.introspections)]), name, readings)
        yield from _costs(mine(cost), name)


def _readings(results: "Results") -> dict[str, str]:
    """Metric -> which of its values are better, in words."""
    found = {}
    done = results.cells[results.cells["status"] == "done"].drop_duplicates("metric")
    for _, cell in done.iterrows():
        known = METRICS.get(cell["metric_function"])
        reading = BETTER.get(cell["direction"], DESCRIBED)
        tests = known is not None and known.family == "randomization" and reading != DESCRIBED
        found[cell["metric"]] = JUDGED if tests else reading
    return found


def _by_metric(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each entry of a metric: a study may have several with other options."""
    return [part for _, part in rows.groupby("metric", sort=False)] if len(rows) else []


def _survival(rows: pd.DataFrame, subject: str, thresholds: Thresholds) -> Iterator[Chart]:
    test, metric = rows["test"].iloc[0], rows["metric"].iloc[0]
    rows = rows[rows["measure"] == "spearman"].drop_duplicates(["method", "sign"])
    known = rows[rows["low"].notna()]
    if known.empty or test not in TESTS:
        return
    title = TESTS[test] if metric == test else f"{TESTS[test]} ({metric})"
    data = records_of(known, ["method", "sign", "survival", "low", "high", "verdict"])
    for each in data:
        each["sign"] = SIGNS[each["sign"]]
    signs = list(SIGNS.values())
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("method:N", sort=_methods(known), title=None),
        yOffset=alt.YOffset("sign:N", sort=signs),
        color=alt.Color(
            "sign:N",
            sort=signs,
            scale=alt.Scale(domain=signs, range=[COLOURS[0], COLOURS[2], COLOURS[1]]),
            # Two columns, because one line is wider than a phone.
            legend=alt.Legend(title="maps compared", orient="top", columns=2),
        ),
        tooltip=tips("method", "sign", "survival", "low", "high", "verdict"),
    )
    domain = [min(-0.1, float(known["low"].min())), max(1.1, float(known["high"].max()))]
    x = alt.X("survival:Q", title="share that survives", scale=alt.Scale(domain=domain, clamp=True))
    shape = alt.Shape("sign:N", sort=signs, scale=alt.Scale(domain=signs, range=list(SHAPES)))
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=domain, clamp=True)), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, shape=shape)
    limits = alt.LayerChart()
    ends: tuple[tuple[float, str, Literal["left", "right"]], ...] = (
        (thresholds.pass_below, "PASS <", "right"),
        (thresholds.fail_above, "FAIL >", "left"),
    )
    for at, said, align in ends:
        limit = alt.Chart(alt.Data(values=[{"at": at, "said": f"{said} {at:g}"}])).encode(x="at:Q")
        aside = 4 if align == "left" else -4
        text = limit.mark_text(align=align, dx=aside, dy=-4, y=0, color=MUTED, fontSize=10).encode(text="said:N")
        limits += limit.mark_rule(strokeDash=[2, 3], color=MUTED) + text
    counted = rows[rows["sign"] == "signed"]["verdict"].value_counts()
    summary = f"Signed maps, controls too: {', '.join(f'{count} {word}' for word, count in counted.items())}."
    left = [name for name in _methods(rows) if name not in set(known["method"])]
    summary += f" Nothing to draw of {', '.join(left)}." if left else ""
    yield chart_of(subject, "randomization", title, summary, limits + bars + dots, _height(known, WIDE_STEP))


def _stages(stages: pd.DataFrame, subject: str, looks: Mapping[str, Style]) -> Iterator[Chart]:
    metric = stages["metric"].iloc[0]
    entry = "" if metric == "parameter_randomization" else f" ({metric})"
    stages = stages[(stages["sign"] == "signed") & stages["survival"].notna()]
    for mode in stages["mode"].unique():
        here = stages[stages["mode"] == mode]
        data = records_of(here, ["method", "stage", "stage_index", "survival", "survival_low", "survival_high"])
        order = list(here.sort_values("stage_index")["stage"].unique())
        x = alt.X("stage:N", sort=order, title="randomized down to", axis=alt.Axis(labelAngle=-40, labelLimit=120))
        lowest, highest = float(here["survival"].min()), float(here["survival"].max())
        scale = alt.Scale(domain=[min(-0.25, lowest), max(1.1, highest)], clamp=True)
        y = alt.Y("survival:Q", title="share that survives", scale=scale)
        base = alt.Chart(alt.Data(values=data))
        band = base.mark_area().encode(x=x, y=alt.Y("survival_low:Q", scale=scale), y2="survival_high:Q")
        band = band if here["survival_low"].notna().any() else None
        shown_on = tips("method", "stage", "survival", "survival_low", "survival_high")
        line = base.mark_line(point={"size": 22}).encode(x=x, y=y, tooltip=shown_on)
        title = f"Cascade, {str(mode).replace('_', ' ')}: what survives of signed maps{entry}"
        summary = "Lines that stay up are of maps which do not notice that the network has forgotten."
        yield chart_of(subject, "randomization", title, summary, _lines(line, band, here, looks), height=300)


def _curves(points: pd.DataFrame, subject: str, looks: Mapping[str, Style]) -> Iterator[Chart]:
    for metric in points["metric"].unique() if len(points) else ():
        here = points[points["metric"] == metric]
        # The same for all methods: one that has it speaks for all.
        removed = here[(here["mode"] == "random") & here["value"].notna()]
        removed = removed[removed["method"].isin(removed["method"].head(1))].assign(method=RANDOM)
        retrained = here["kind"].iloc[0] == "remove_and_retrain"
        what = "accuracy after training again" if retrained else "probability of the explained class"
        for mode in ("most_first", "least_first"):
            some = pd.concat([here[here["mode"] == mode], removed])
            some = some[some["value"].notna()]
            if not (some["mode"] == mode).any():
                continue
            data = records_of(some, ["method", "step", "value", "low", "high"])
            base = alt.Chart(alt.Data(values=data))
            x = alt.X("step:Q", title="fraction removed")
            y = alt.Y("value:Q", title=what)
            band = base.mark_area().encode(x=x, y="low:Q", y2="high:Q") if some["low"].notna().any() else None
            line = base.mark_line().encode(x=x, y=y, tooltip=tips("method", "step", "value", "low", "high"))
            order = mode.replace("_", " relevant ")
            good = "below" if mode == "most_first" else "above"
            summary = f"A map that knows what matters lies {good} the black dashed line of a random order."
            yield chart_of(
                subject, "flipping", f"{metric}: {order}", summary, _lines(line, band, some, looks), height=280
            )


def _residuals(spread: pd.DataFrame, subject: str) -> Iterator[Chart]:
    if spread.empty:
        return
    names = list(PERCENTILES)
    shown = spread.assign(**{name: spread[name].clip(lower=SMALLEST) for name in names})
    several = shown["metric"].nunique() > 1
    shown = shown.assign(method=shown["method"] + (" · " + shown["metric"] if several else ""))
    data = records_of(shown, ["method", *names])
    shown_on = tips("method", *names)
    base = alt.Chart(alt.Data(values=data)).encode(
        y=alt.Y("method:N", sort=_methods(shown), title=None), tooltip=shown_on
    )
    scale = alt.Scale(type="log")

    def x(name: str) -> alt.X:
        axis = alt.Axis(format=".0e", labelSeparation=8)
        return alt.X(f"{name}:Q", scale=scale, title="relative residual (log)", axis=axis)

    whole = base.mark_rule(color=MARK).encode(x=x("p5"), x2="p95:Q")
    half = base.mark_bar(color=MARK, opacity=0.4, height=9).encode(x=x("p25"), x2="p75:Q")
    middle = base.mark_tick(color=MARK, thickness=3, size=14).encode(x=x("p50"))
    limit = alt.Chart(alt.Data(values=[{"at": 0.01}])).mark_rule(strokeDash=[2, 3], color=COLOURS[1]).encode(x="at:Q")
    summary = "What the sum of a map misses of what it claims to distribute, as a part of it: median, middle half, and "
    summary += "5th to 95th percentile of samples; the dotted line is 1 %."
    title = "Completeness: how far the map is from adding up"
    yield chart_of(subject, "completeness", title, summary, limit + whole + half + middle, _height(shown))


def _headlines(long: pd.DataFrame, subject: str, readings: Mapping[str, str]) -> Iterator[Chart]:
    for metric in long["metric"].unique() if len(long) else ():
        here = long[(long["metric"] == metric) & long["value"].notna()]
        if here.empty:
            continue
        data = records_of(here, ["method", "value", "low", "high"])
        y = alt.Y("method:N", sort=_methods(here), title=None)
        base = alt.Chart(alt.Data(values=data)).encode(y=y, tooltip=tips("method", "value", "low", "high"))
        measure, statistic = here["measure"].iloc[0], here["statistic"].iloc[0]
        x = alt.X("value:Q", title=str(measure).replace("_", " "), scale=alt.Scale(zero=False))
        bars = base.mark_rule(strokeWidth=2, color=MARK).encode(x=alt.X("low:Q"), x2="high:Q")
        dots = base.mark_point(filled=True, size=55, opacity=1, color=MARK).encode(x=x)
        # A browser complains of a scale of nothing.
        drawn = bars + dots if here["low"].notna().any() else dots
        zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(color=MUTED, strokeDash=[1, 3])
        summary = f"The {statistic} with its 95 % interval over samples and draws. {readings.get(metric, '')}"
        yield chart_of(subject, "leaderboard", str(metric), summary, zero.encode(x="at:Q") + drawn, _height(here))


def _costs(cost: pd.DataFrame, subject: str) -> Iterator[Chart]:
    if cost.empty:
        return
    spent = seconds(cost)
    long = spent.melt("method", var_name="what", value_name="seconds")
    base = alt.Chart(alt.Data(values=records_of(long, ["method", "what", "seconds"])))
    colours = alt.Scale(domain=["maps", "metrics"], range=[COLOURS[1], COLOURS[4]])
    bars = base.mark_bar().encode(
        y=alt.Y("method:N", sort=list(spent["method"]), title=None),
        x=alt.X("seconds:Q", stack=True, title="seconds"),
        color=alt.Color("what:N", scale=colours, legend=alt.Legend(title=None, orient="top")),
        tooltip=tips("method", "what", "seconds"),
    )
    total = float(long["seconds"].sum())
    yield chart_of(subject, "cost", "Seconds by method", f"{total:.0f} seconds in all.", bars, _height(spent))


def _lines(line: Any, band: Any, rows: pd.DataFrame, looks: Mapping[str, Style]) -> Any:
    """Lines with bands, a colour and dashes for each method; those that are not chosen are faint."""
    there = [looks.get(name, Style(name, "var(--ink)", DASHES[1])) for name in rows["method"].unique()]
    names = [style.name for style in there]
    colour = alt.Color("method:N", legend=None, scale=alt.Scale(domain=names, range=[style.colour for style in there]))
    dashes = alt.StrokeDash(
        "method:N", legend=None, scale=alt.Scale(domain=names, range=[list(style.dashes) for style in there])
    )
    chosen = alt.param(name=CHOSEN, value=[])
    shown = f"length({CHOSEN}) == 0 || indexof({CHOSEN}, datum.method) >= 0 || datum.method == '{RANDOM}'"
    faint = alt.condition(shown, alt.value(1.0), alt.value(0.08))
    fainter = alt.condition(shown, alt.value(0.12), alt.value(0.02))
    drawn = line.encode(color=colour, strokeDash=dashes, opacity=faint)
    return (drawn if band is None else band.encode(color=colour, opacity=fainter) + drawn).add_params(chosen)


def chart_of(subject: str, section: str, title: str, summary: str, chart: Any, height: int) -> Chart:
    """A chart of this height that is as wide as its place in the page."""
    sized = alt.AutoSizeParams(type="fit-x", contains="padding")
    specification = chart.properties(width="container", height=height, autosize=sized).to_dict(validate=False)
    # Said by the page itself, and addressed to a server that nobody asks.
    specification.pop("$schema", None)
    return Chart(subject, section, title, summary, specification)


def _height(rows: pd.DataFrame, step: int = STEP) -> int:
    return step * rows["method"].nunique() + SPARE


def _methods(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows["method"].unique()]


def records_of(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as JSON takes them: numbers of five digits, and nothing where there is none."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return None if value != value else float(f"{value:.5g}")
        return value

    return [{name: plain(row[name]) for name in columns} for row in rows[list(columns)].to_dict("records")]


def tips(*names: str) -> list[alt.Tooltip]:
    """What is said of a mark that is pointed at: these fields."""
    words = {"method", "sign", "verdict", "stage", "what", "network", "line"}
    return [alt.Tooltip(f"{n}:N") if n in words else alt.Tooltip(f"{n}:Q", format=".3g") for n in names]
