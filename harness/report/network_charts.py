"""Charts of introspections: each measure by layer, and while the network is randomized, beside other networks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from harness.introspection_figures import LOOKS
from harness.plotted import NETWORKS, TRAINED, layers, of_model, while_randomized
from harness.report.charts import DASHES, SHAPES, Chart, chart_of, records_of, tips

if TYPE_CHECKING:
    from harness.results import Results

HEIGHT = 230
SIDES = {
    "higher": "It is to be higher than in networks that have learnt nothing.",
    "lower": "It is to be lower than in networks that have learnt nothing.",
    "alike": "How much is the same as in the trained network: the less in others the better.",
}
"""Side -> how a chart is read."""

BANDS = " Bands reach two standard deviations to both sides of what such networks have: a PASS lies beyond them."
ENDS = "From the trained network on the left to one that has nothing learnt, from the output layer down."


def section_of(introspection: str) -> str:
    """What the section of its charts is called."""
    return f"global {introspection}"


def network_charts(results: "Results") -> Iterator[Chart]:
    """All charts of introspections that the tables allow, model by model."""
    networks, partly = results.table("global"), results.table("partly_random")
    for (model, seed), subject in results.subjects.items():
        mine = of_model(networks, model, seed)
        points, stages = layers(mine), while_randomized(mine, of_model(partly, model, seed))
        for label, measure in (
            mine[["method", "measure"]].drop_duplicates().itertuples(index=False) if len(mine) else ()
        ):
            which = {"method": label, "measure": measure}
            side = _of(mine, which)["side"].iloc[0]
            for chart, what, said in (
                (_by_layer(_of(points, which)), "by layer", SIDES[side] + BANDS),
                (_by_stage(_of(stages, which)), "while the network is randomized", ENDS),
            ):
                if chart is not None:
                    title = f"{measure.replace('_', ' ')}, {what}"
                    yield chart_of(subject, section_of(label), title, said, chart, HEIGHT)


def _of(rows: pd.DataFrame, which: dict[str, str]) -> pd.DataFrame:
    return rows[(rows["method"] == which["method"]) & (rows["measure"] == which["measure"])]


def _by_layer(points: pd.DataFrame) -> Any:
    """Lines of the three kinds of networks over the layers; None without any number."""
    points = points[points["value"].notna()]
    if points.empty:
        return None
    base = alt.Chart(alt.Data(values=records_of(points, ["stage", "network", "value", "low", "high"])))
    there = [name for name in NETWORKS if name in set(points["network"])]
    of = {name: index for index, name in enumerate(NETWORKS)}
    x = _stages(points, "layer")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    colours = [LOOKS[name]["color"] for name in there]
    colour = alt.Color("network:N", sort=there, scale=alt.Scale(domain=there, range=colours), legend=_legend())
    shape = alt.Shape("network:N", sort=there, scale=alt.Scale(domain=there, range=[SHAPES[of[n]] for n in there]))
    dashes = alt.StrokeDash(
        "network:N", sort=there, scale=alt.Scale(domain=there, range=[list(DASHES[of[n]]) for n in there])
    )
    line = base.mark_line().encode(x=x, y=y, color=colour, strokeDash=dashes)
    dots = base.encode(x=x, y=y, color=colour, shape=shape, tooltip=tips("network", "stage", "value", "low", "high"))
    # The trained network may lie upon the others, so that these are larger and hollow.
    of_others = dots.transform_filter(alt.datum.network != TRAINED).mark_point(size=110, strokeWidth=2, opacity=1)
    of_trained = dots.transform_filter(alt.datum.network == TRAINED).mark_point(filled=True, size=45, opacity=1)
    drawn = line + of_others + of_trained
    for name in points.loc[points["low"].notna(), "network"].unique():
        # Not by the colour of the lines, whose legend would be as pale.
        band = base.transform_filter(alt.datum.network == name).mark_area(opacity=0.15, color=LOOKS[name]["color"])
        drawn = band.encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q") + drawn
    return drawn


def _by_stage(points: pd.DataFrame) -> Any:
    """The line of the network that is randomized; None without any number."""
    points = points[points["value"].notna()]
    if len(points) < 2:
        return None
    base = alt.Chart(alt.Data(values=records_of(points, ["stage", "value"])))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    line = base.mark_line(color="var(--mark)", point=alt.OverlayMarkDef(color="var(--mark)", size=40))
    return line.encode(x=_stages(points, "randomized down to"), y=y, tooltip=tips("stage", "value"))


def _stages(points: pd.DataFrame, title: str) -> alt.X:
    order = [str(stage) for stage in points["stage"].unique()]
    return alt.X(
        "stage:N", sort=order, title=title, axis=alt.Axis(labelAngle=-40, labelLimit=120), scale=alt.Scale(padding=0.4)
    )


def _legend() -> alt.Legend:
    # One column, because longer lines are wider than a phone.
    return alt.Legend(title=None, orient="top", columns=1, labelLimit=260, symbolOpacity=1)
