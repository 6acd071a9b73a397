"""Figures of a run, as PNG and PDF: views of its rows, like the tables. Those of curves are in `curve_figures`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.colouring import DIVERGING, limit_of
from harness.curve_figures import COLOURS, draw_curves, draw_retraining, draw_stages
from harness.introspection_figures import figures_of_networks
from harness.method_figures import draw_costs, draw_headlines, draw_residuals
from harness.pictures import Cascade, read_cascade
from harness.plotted import of_model, seconds
from harness.rank_figures import draw_models, draw_ranks
from harness.statistics import Thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.results import Results

DPI = 150
SIGNS = (("signed", COLOURS[0], "o", -0.25), ("up_to_sign", COLOURS[2], "^", 0.0), ("absolute", COLOURS[1], "s", 0.25))
"""How maps are compared: their colour, marker and place beside the line of their method."""


def write_figures(results: "Results", folder: Path) -> list[Path]:
    """Every figure that the rows and the kept cascades allow, each as PNG and as PDF."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures_of(results, folder):
        for path in (folder / f"{name}.png", folder / f"{name}.pdf"):
            figure.savefig(path, dpi=DPI)
            written.append(path)
    return written


def figures_of(results: "Results", folder: Path) -> Iterator[tuple[str, Figure]]:
    """The figures by name, those over all models first.

    Args:
        results: of a run.
        folder: where the cascades are kept.
    """
    for kept in sorted(folder.glob("cascade-*.npz")):
        picture, _ = read_cascade(kept)
        if picture.maps.ndim == 4:
            yield kept.stem, draw_cascade(picture)
    lifts = results.table("headlines").query("measure == 'lift'")
    if len(lifts):
        yield "lifts", draw_lifts(lifts)
    across = results.table("across_models")
    if len(across) and across["mean_rank"].notna().any():
        yield "ranks-across-models", draw_models(across)
    points, spread = results.curves, results.residuals
    for (model, seed), name in results.subjects.items():
        mine = partial(of_model, model=model, model_seed=seed)
        for kind, draw in (("pixel_flipping", draw_curves), ("remove_and_retrain", draw_retraining)):
            some = mine(points[points["kind"] == kind])
            if len(some):
                yield f"{kind}-{name}", draw(some, name)
        ranked = mine(results.table("rankings"))
        if len(ranked):
            pairs = mine(results.table("comparisons"))
            yield f"ranks-{name}", draw_ranks(ranked, pairs, f"{name}: mean ranks over samples")
        judged, stages = mine(results.table("verdicts")), mine(results.table("cascade"))
        for test in ("parameter_randomization", "random_logit"):
            shown = judged[(judged["test"] == test) & (judged["measure"] == "spearman")] if len(judged) else judged
            if shown["low"].notna().any() if len(shown) else False:
                yield f"survival-{test}-{name}", draw_survival(shown, f"{name}: {test}", results.thresholds)
        if len(stages) and stages["survival"].notna().any():
            signed = stages[stages["sign"] == "signed"]
            yield f"stages-{name}", draw_stages(signed, f"{name}: what survives down to each block")
        if len(mine(spread)):
            yield f"residuals-{name}", draw_residuals(mine(spread), f"{name}: completeness over samples")
        long, cost = mine(results.table("headlines")), mine(results.table("cost"))
        long = long[~long["method"].isin(results.introspections)]
        if long["value"].notna().any() if "value" in long else False:
            yield f"headlines-{name}", draw_headlines(long, f"{name}: headlines with 95 % intervals")
        if len(cost):
            yield f"cost-{name}", draw_costs(seconds(cost), f"{name}: what each method took")
    yield from figures_of_networks(results)


def draw_cascade(picture: Cascade) -> Figure:
    """Rows are methods, columns are stages from the trained network to the fully randomized one.

    Red is positive, blue negative, white zero; each map is scaled by its own 99.5th percentile of absolute values.
    """
    rows, columns = len(picture.methods), len(picture.stages)
    figure = Figure(figsize=(1.15 * (columns + 1) + 1.2, 1.15 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns + 1, squeeze=False)
    image = np.moveaxis(picture.image, 0, -1)
    for row, method in enumerate(picture.methods):
        axes[row, 0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(method, rotation=0, ha="right", va="center", fontsize=8)
        for column in range(columns):
            show_map(axes[row, column + 1], picture.maps[row, column])
    for column, title in enumerate(["input", *picture.stages]):
        axes[0, column].set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{picture.caption}: randomized from the output down to the named block", fontsize=9)
    return figure


def draw_lifts(lifts: pd.DataFrame) -> Figure:
    """Methods x models, a panel for each metric of localization: the lift over chance, 1 where a map finds all.

    Blue is better than chance, red worse, both by the number; empty where there is none.
    """
    metrics = list(lifts["metric"].unique())
    methods, models = (list(lifts[name].unique()) for name in ("method", "model"))
    columns = min(len(metrics), 2)
    rows = -(-len(metrics) // columns)
    size = ((0.5 * len(models) + 0.6) * columns + 2.6, (0.24 * len(methods) + 1.0) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        wide = lifts[lifts["metric"] == metric].pivot_table(
            index="method", columns="model", values="value", sort=False, dropna=False
        )
        values = wide.reindex(index=methods, columns=models).to_numpy(dtype=float)
        image = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axis.set_xticks(range(len(models)), models, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.set_title(metric, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.5, label="lift over chance")
    return figure


def draw_survival(judged: pd.DataFrame, title: str, thresholds: Thresholds) -> Figure:
    """What survives, with 95 % intervals, beside the verdicts that other thresholds would give.

    Left: one line a method; maps signed, up to their sign and absolute; a grey cross is what survives above the floor
    of two randomized networks. Right: how many methods pass and fail by the signed map, against the threshold.

    Args:
        judged: rows of the table of verdicts, of one test and measure.
        title: of the figure.
        thresholds: drawn as they are.
    """
    methods = list(judged["method"].unique())
    figure = Figure(figsize=(10.5, 0.32 * len(methods) + 2.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    for sign, colour, marker, shift in SIGNS:
        rows = judged[(judged["sign"] == sign) & judged["survival"].notna()]
        places = np.array([methods.index(method) + shift for method in rows["method"]])
        around = np.abs(np.stack([rows["survival"] - rows["low"], rows["high"] - rows["survival"]]))
        style = {"fmt": marker, "color": colour, "ms": 4, "lw": 1.4}
        left.errorbar(
            rows["survival"], places, xerr=np.nan_to_num(around), label=f"maps, {sign}".replace("_", " "), **style
        )
        label = "above two randomized networks" if sign == "signed" else None
        if rows["above_random"].notna().any():
            left.plot(rows["above_random"], places, "x", color="grey", ms=4, lw=0, label=label)
    for place, method in enumerate(methods):
        if judged.loc[judged["method"] == method, "survival"].isna().all():
            left.text(0.01, place, "invalid", fontsize=7, va="center", color="grey")
    left.set_yticks(range(len(methods)), methods, fontsize=8)
    left.invert_yaxis()
    left.set_xlim(min(-0.1, judged["low"].min() - 0.05), max(1.1, judged["high"].max() + 0.05))
    left.set_xlabel("share of the similarity above chance that survives")
    left.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)
    signed = judged[(judged["sign"] == "signed") & judged["low"].notna()]
    grid = np.linspace(0, 1, 201)
    counts = {"PASS": (signed["high"], np.less), "FAIL": (signed["low"], np.greater)}
    for (word, (limit, beyond)), colour in zip(counts.items(), (COLOURS[2], COLOURS[3]), strict=True):
        right.step(grid, [int(beyond(limit, at).sum()) for at in grid], color=colour, label=word)
    right.set_xlabel("threshold")
    right.set_ylabel("methods, by the signed map")
    right.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        ends = (("pass", thresholds.pass_below, COLOURS[2]), ("fail", thresholds.fail_above, COLOURS[3]))
        for word, at, colour in ends:
            axis.axvline(at, color=colour, ls=":", lw=1)
            placed = {"transform": axis.get_xaxis_transform(), "rotation": 90, "ha": "right", "va": "bottom"}
            axis.text(at, 0.01, word, color=colour, fontsize=7, **placed)
        axis.grid(alpha=0.2)
    figure.suptitle(title, fontsize=10)
    return figure


def show_map(axis: "Axes", values: np.ndarray, **placed: Any) -> None:
    """Draw a map [h, w] in red where it is positive, blue where it is negative and white where it is zero."""
    if np.isnan(values).all():
        axis.text(0.5, 0.5, "n/a", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        return
    limit = limit_of(values) or 1.0
    # Where there are more values than pixels, values are averaged and not colours: red and blue do not make purple.
    axis.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation_stage="data", **placed)
