"""Critical-difference diagrams: where methods rank, and which are not told apart."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.statistics import cliques

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
INK, BAR = "#222222", "#0072B2"


def draw_ranks(rankings: pd.DataFrame, compared: pd.DataFrame, title: str) -> Figure:
    """A panel for each metric: the mean rank of each method over the samples of one model, the best on the left.

    A bar joins neighbours of which no two are told apart by the paired comparisons (p-values by Holm, and intervals).

    Args:
        rankings: the table of this name, of one model.
        compared: the table of comparisons, of this model.
        title: what stands above.
    """
    panels = []
    for metric, rows in rankings.groupby("metric", sort=False):
        methods = list(rows["method"])
        apart = _apart(compared[compared["metric"] == metric], methods)
        note = f"Kendall's W over {rows['samples'].iloc[0]} samples {rows['kendall_w'].iloc[0]:.2f}"
        panels.append((f"{metric}: {note}", methods, rows["mean_rank"].to_numpy(), apart, 0.0))
    return _draw(panels, title)


def draw_models(across: pd.DataFrame) -> Figure:
    """A panel for each metric: the mean rank over models; bars join what is within Nemenyi's critical difference."""
    panels = []
    for metric, rows in across[across["mean_rank"].notna()].groupby("metric", sort=False):
        ranks, critical = rows["mean_rank"].to_numpy(), float(rows["critical_difference"].iloc[0])
        apart = np.abs(ranks[:, None] - ranks) > critical
        note = f"{rows['models'].iloc[0]} models, Friedman p {rows['friedman_p'].iloc[0]:.2g}"
        panels.append((f"{metric}: {note}", list(rows["method"]), ranks, apart, critical))
    return _draw(panels, "mean ranks over models; a bar joins what Nemenyi's test does not tell apart")


Panel = tuple[str, list[str], np.ndarray, np.ndarray, float]


def _apart(compared: pd.DataFrame, methods: list[str]) -> np.ndarray:
    place = {method: index for index, method in enumerate(methods)}
    apart = np.zeros((len(methods), len(methods)), dtype=bool)
    for first, second, outcome in compared[["first", "second", "outcome"]].itertuples(index=False):
        if first in place and second in place and outcome.endswith(("better", "higher")):
            apart[place[first], place[second]] = apart[place[second], place[first]] = True
    return apart


def _draw(panels: list[Panel], title: str) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(methods) for _, methods, *_ in panels)
    figure = Figure(figsize=(6.6 * columns, (0.16 * most + 1.3) * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, *panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def _panel(axis: "Axes", title: str, methods: list[str], ranks: np.ndarray, apart: np.ndarray, critical: float) -> None:
    """Names on both sides below a scale of ranks; the lines that lead to them do not cross."""
    order, count = np.argsort(ranks, kind="stable"), len(methods)
    left, lowest = order[: (count + 1) // 2], (count + 1) // 2
    joined = cliques(ranks, apart)
    depth = 0.5 + 0.35 * len(joined)
    for position, item in enumerate(order):
        on_left = item in left
        level = depth + (position if on_left else count - 1 - position) + 0.5
        end = 0.8 if on_left else count + 0.2
        axis.plot([ranks[item], ranks[item], end], [0, -level, -level], color=INK, lw=0.8)
        side: dict[str, Any] = {"ha": "right" if on_left else "left", "va": "center", "fontsize": 7}
        axis.text(end + (-0.05 if on_left else 0.05), -level, f"{methods[item]}  {ranks[item]:.2f}", **side)
    for row, clique in enumerate(joined):
        ends = ranks[clique[0]] - 0.04, ranks[clique[-1]] + 0.04
        axis.plot(ends, 2 * [-0.4 - 0.35 * row], color=BAR, lw=3, solid_capstyle="butt")
    axis.plot([1, count], [0, 0], color=INK, lw=1)
    for rank in range(1, count + 1):
        axis.plot([rank, rank], [0, 0.2], color=INK, lw=1)
        axis.text(rank, 0.3, str(rank), ha="center", va="bottom", fontsize=7)
    if critical:
        axis.plot([1, 1 + min(critical, count - 1)], [1.6, 1.6], color=BAR, lw=1.5)
        axis.text(1, 1.7, f"critical difference {critical:.2f}", fontsize=7, va="bottom", color=BAR)
    axis.set_xlim(-0.35 * count, 1.35 * count + 1)
    axis.set_ylim(-depth - lowest - 0.2, 2.6 if critical else 1.2)
    axis.set_title(title, fontsize=8)
    axis.axis("off")
