"""Figures of an exam: how each metric scores maps of known quality, and which metrics agree."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.curve_figures import COLOURS
from harness.figures import DPI

COLUMNS = 5
APART = {"negated": -1.2, "inverted": -0.95, "noise": -0.7, "picture": -0.45}
"""Where the other maps are drawn, left of all qualities."""


def draw_levels(levels: pd.DataFrame, marks: pd.DataFrame) -> Figure:
    """A panel for each metric: mean scores with 95 % intervals against quality, other maps on the left.

    Panels of metrics that failed have a red title with what is wrong.
    """
    metrics = list(marks["metric"])
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 6.0), 2.3 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    for axis, (_, marked) in zip(axes.flat, marks.iterrows(), strict=False):
        here = levels[levels["metric"] == marked["metric"]] if len(levels) else levels
        for number, (task, rows_of_task) in enumerate(here.groupby("task", sort=False) if len(here) else ()):
            places = rows_of_task["map"].map(_place)
            for apart in (True, False):
                some = rows_of_task[places.notna() & (places.isin(APART.values()) == apart)]
                at = some["map"].map(_place).to_numpy() + 0.015 * number
                error = np.abs(some[["low", "high"]].to_numpy().T - some["value"].to_numpy())
                style = {"marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1, "color": COLOURS[number]}
                axis.errorbar(
                    at, some["value"], error, linestyle="" if apart else "-", label="" if apart else task, **style
                )
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        faults = f"\n{marked['faults']}" if marked["faults"] else ""
        axis.set_title(f"{marked['metric']}{faults}", fontsize=8, color=COLOURS[1] if faults else "black")
        axis.set_xticks([*APART.values(), 0, 0.5, 1], ["neg", "inv", "noise", "pic", "0", "0.5", "1"])
        axis.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(
        "score against quality (0: a wrong map, 1: the truth); on the left: negated, inverted, noise, the picture",
        fontsize=9,
    )
    return figure


def draw_agreement(agreement: pd.DataFrame) -> Figure:
    """Kendall's tau-b between metrics, as a matrix; grey where one scores all maps of a sample alike."""
    matrix = agreement.set_index("metric")
    size = 0.34 * max(len(matrix), 4) + 2.4
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("0.85")
    image = axis.imshow(matrix.to_numpy(dtype=float), vmin=-1, vmax=1, cmap="RdBu")
    axis.set_xticks(range(len(matrix)), matrix.columns, rotation=90, fontsize=7)
    axis.set_yticks(range(len(matrix)), matrix.index, fontsize=7)
    figure.colorbar(image, ax=axis, shrink=0.7)
    axis.set_title("do two metrics rank the maps of a sample alike? (Kendall's tau-b: without ties)", fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=DPI)


def _place(label: str) -> float:
    """Where a map is drawn; NaN for one that is not."""
    if label in APART:
        return APART[label]
    return float(label.removeprefix("quality-")) if label.startswith("quality-") else np.nan
