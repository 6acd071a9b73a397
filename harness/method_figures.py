"""Figures with one line for each method: headlines, residuals, cost."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.curve_figures import COLOURS
from harness.plotted import PERCENTILES

PANELS = 2
SMALLEST = 1e-12
"""The smallest residual that is drawn: what is below is rounding."""


def draw_headlines(long: pd.DataFrame, title: str) -> Figure:
    """A panel for each metric: the headline of each method with its 95 % interval; `long`: the table of headlines."""
    known = long[long["value"].notna()]
    metrics, methods = list(known["metric"].unique()), list(known["method"].unique())
    columns = min(len(metrics), PANELS)
    rows = -(-len(metrics) // columns)
    size = (4.2 * columns + 1.6, (0.24 * len(methods) + 0.9) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        here = known[known["metric"] == metric]
        places = [methods.index(method) for method in here["method"]]
        axis.hlines(places, here["low"], here["high"], color=COLOURS[0], lw=1.5)
        axis.plot(here["value"], places, "o", color=COLOURS[0], ms=4)
        axis.axvline(0, color="grey", ls=":", lw=1)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_xlabel(str(here["measure"].iloc[0]).replace("_", " "), fontsize=8)
        axis.set_title(str(metric), fontsize=9)
        axis.grid(alpha=0.2)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_residuals(residuals: pd.DataFrame, title: str) -> Figure:
    """The relative residual of completeness over samples: the median, the middle half, and 5th to 95th percentile."""
    names = [f"{method}" for method in residuals["method"]]
    figure = Figure(figsize=(7, 0.34 * len(names) + 1.4), layout="constrained")
    axis = figure.subplots()
    shown = residuals[list(PERCENTILES)].clip(lower=SMALLEST)
    for row, (_, spread) in enumerate(shown.iterrows()):
        axis.plot([spread["p5"], spread["p95"]], [row, row], color=COLOURS[0], lw=1)
        axis.plot([spread["p25"], spread["p75"]], [row, row], color=COLOURS[0], lw=6, alpha=0.5, solid_capstyle="butt")
        axis.plot(spread["p50"], row, "o", color=COLOURS[0], ms=5)
    axis.axvline(0.01, color=COLOURS[1], ls=":", lw=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("residual, relative to the output (dotted: 1 %)")
    axis.grid(alpha=0.2)
    axis.set_title(title, fontsize=10)
    return figure


def draw_costs(seconds: pd.DataFrame, title: str) -> Figure:
    """Seconds of each method, those of its maps and those of the metrics: the frame of `harness.plotted.seconds`."""
    figure = Figure(figsize=(7, 0.28 * len(seconds) + 1.4), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(seconds))
    axis.barh(places, seconds["maps"], color=COLOURS[1], label="maps")
    axis.barh(places, seconds["metrics"], left=seconds["maps"], color=COLOURS[4], label="metrics")
    axis.set_yticks(places, seconds["method"], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(title, fontsize=10)
    return figure
