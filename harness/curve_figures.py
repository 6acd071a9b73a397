"""Figures of curves: flipping, retraining, the stages of a cascade."""

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 3
LINES = ("-", "--", ":")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, told apart by colour-blind readers; line styles tell the rest apart."""


def draw_curves(points: pd.DataFrame, model: str) -> Figure:
    """Mean probability of the explained class against the fraction removed, with 95 % bands: the rows of `curves`.

    A pair of panels for each metric entry (fill, unit), one an order. The dashed black line removes at random.
    """
    metrics, methods = list(points["metric"].unique()), list(points["method"].unique())
    columns = min(len(metrics), PANELS)
    rows = 2 * -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.4, 3.1 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for number, metric in enumerate(metrics):
        here = points[points["metric"] == metric]
        reference = here[(here["mode"] == "random") & (here["method"] == methods[0])]
        for below, mode in enumerate(("most_first", "least_first")):
            axis = axes[2 * (number // columns) + below, number % columns]
            axis.set_visible(True)
            for index, method in enumerate(methods):
                line = here[(here["mode"] == mode) & (here["method"] == method)]
                style = LINES[index // len(COLOURS) % len(LINES)]
                _curve(axis, line, COLOURS[index % len(COLOURS)], style, str(method))
            _curve(axis, reference, "black", (0, (4, 2)), "removed at random")
            options = str(metric).partition("[")[2].rstrip("]").replace(",", ", ") or metric
            axis.set_title(f"{options}: {mode.replace('_', ' relevant ')}", fontsize=9)
            axis.grid(alpha=0.25)
            axis.tick_params(labelbottom=True)
    figure.supxlabel("fraction removed", fontsize=10)
    figure.supylabel("probability of the explained class", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{model}: pixel flipping, mean with 95 % interval over samples", fontsize=10)
    return figure


def draw_retraining(points: pd.DataFrame, model: str) -> Figure:
    """Accuracy of networks trained without a fraction of every sample against that fraction, with 95 % bands.

    One panel a metric entry. The dashed black line removes at random: a map is as good as it lies below.
    """
    metrics = list(points["metric"].unique())
    figure = Figure(figsize=(4.6 * len(metrics) + 2.2, 3.8), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    methods = list(points["method"].unique())
    for axis, metric in zip(panels, metrics, strict=True):
        here = points[points["metric"] == metric]
        for index, method in enumerate(methods):
            line = here[(here["mode"] == "most_first") & (here["method"] == method)]
            style = LINES[index // len(COLOURS) % len(LINES)]
            _curve(axis, line, COLOURS[index % len(COLOURS)], style, str(method))
        reference = here[(here["mode"] == "random") & (here["method"] == methods[0])]
        _curve(axis, reference, "black", (0, (4, 2)), "removed at random")
        axis.set_title(str(metric), fontsize=9)
        axis.set_xlabel("fraction removed from all samples, most relevant first")
        axis.grid(alpha=0.25)
    panels[0].set_ylabel("accuracy of the network trained on the rest")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{model}: remove and retrain", fontsize=10)
    return figure


def draw_stages(stages: pd.DataFrame, title: str) -> Figure:
    """What survives at each stage of a cascade, with 95 % bands: the table of this name, of one model, signed maps."""
    modes, methods = list(stages["mode"].unique()), list(stages["method"].unique())
    figure = Figure(figsize=(5.2 * len(modes) + 2.2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axis, mode in zip(panels, modes, strict=True):
        here = stages[stages["mode"] == mode]
        points = here[["method", "stage_index"]].assign(step=here["stage_index"])
        points = points.assign(value=here["survival"], low=here["survival_low"], high=here["survival_high"])
        for index, method in enumerate(methods):
            line = points[points["method"] == method]
            _curve(axis, line, COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)], str(method))
        names = here.drop_duplicates("stage_index").sort_values("stage_index")
        axis.set_xticks(names["stage_index"], names["stage"], rotation=45, ha="right", fontsize=7)
        axis.set_ylim(-0.25, 1.1)
        axis.set_title(str(mode).replace("_", " "), fontsize=9)
        axis.grid(alpha=0.25)
    panels[0].set_ylabel("share of the similarity\nabove chance that survives", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _curve(axis: "Axes", points: pd.DataFrame, colour: str, style: object, label: str) -> None:
    known = points[points["value"].notna()].sort_values("step")
    if len(known):
        axis.plot(known["step"], known["value"], color=colour, linestyle=style, lw=1.4, label=label)
        axis.fill_between(known["step"], known["low"], known["high"], color=colour, alpha=0.12, lw=0)
