"""Figures, as PNG files: the cascade picture, flipping and retraining curves. Views of the run, like the tables."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.figure import Figure

from harness.glance import GROUP
from harness.pictures import Cascade, read_cascade
from harness.rank_figures import draw_models, draw_ranks
from harness.statistics import Thresholds, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.results import Results

DPI, PANELS = 150, 3
CLIP_PERCENTILE = 99.5
DIVERGING = "RdBu_r"
LINES = ("-", "--", ":")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, told apart by colour-blind readers; line styles tell the rest apart."""

SIGNS = (("signed", COLOURS[0], "o", -0.25), ("up_to_sign", COLOURS[2], "^", 0.0), ("absolute", COLOURS[1], "s", 0.25))
"""How maps are compared: their colour, marker and place beside the line of their method."""

CURVES = {"pixel_flipping": "probability", "remove_and_retrain": "correct"}
"""The metrics whose curves are drawn, and what of them."""


def write_figures(results: "Results", folder: Path) -> list[Path]:
    """Every figure that the rows and the kept maps allow."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kept in sorted(folder.glob("cascade-*.npz")):
        picture, _ = read_cascade(kept)
        if picture.maps.ndim == 4:
            written.append(_save(draw_cascade(picture), kept.with_suffix(".png")))
    lifts = results.table("headlines").query("measure == 'lift'")
    if len(lifts):
        written.append(_save(draw_lifts(lifts), folder / "lifts.png"))
    across = results.table("across_models")
    if len(across) and across["mean_rank"].notna().any():
        written.append(_save(draw_models(across), folder / "ranks-across-models.png"))
    points = curves(results)
    ranked, compared = results.table("rankings"), results.table("comparisons")
    judged = results.table("verdicts")
    for (model, seed), name in results.subjects.items():
        here = points[(points["model"] == model) & (points["model_seed"] == seed)]
        for kind, draw in (("pixel_flipping", draw_curves), ("remove_and_retrain", draw_retraining)):
            some = here[here["kind"] == kind]
            if len(some):
                written.append(_save(draw(some, name), folder / f"{kind}-{name}.png"))
        some = ranked[(ranked["model"] == model) & (ranked["model_seed"] == seed)]
        if len(some):
            pairs = compared[(compared["model"] == model) & (compared["model_seed"] == seed)]
            written.append(
                _save(draw_ranks(some, pairs, f"{name}: mean ranks over samples"), folder / f"ranks-{name}.png")
            )
        rows = judged[(judged["model"] == model) & (judged["model_seed"] == seed)] if len(judged) else judged
        for test in ("parameter_randomization", "random_logit"):
            shown = rows[(rows["test"] == test) & (rows["measure"] == "spearman")] if len(rows) else rows
            if shown["low"].notna().any() if len(shown) else False:
                figure = draw_survival(shown, f"{name}: {test}", results.thresholds)
                written.append(_save(figure, folder / f"survival-{test}-{name}.png"))
    return written


def curves(results: "Results") -> pd.DataFrame:
    """One row for each point of a curve of probability or accuracy against what is removed, with its interval."""
    rows = []
    for stack in results.stacks():
        kind = stack.info.get("metric_function", "")
        points = pc.field("step").is_valid() & pc.field("mode").is_valid() & (pc.field("measure") == CURVES.get(kind))
        for series in stack.series(points) if kind in CURVES else ():
            place = {name: series.labels[name] for name in ("mode", "step")}
            rows.append({**stack.labels, "kind": kind, **place, **asdict(mean_interval(series.values))})
    return pd.DataFrame(rows, columns=[*GROUP, "kind", "mode", "step", "value", "low", "high"])


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


def _curve(axis: "Axes", points: pd.DataFrame, colour: str, style: object, label: str) -> None:
    known = points[points["value"].notna()].sort_values("step")
    if len(known):
        axis.plot(known["step"], known["value"], color=colour, linestyle=style, lw=1.4, label=label)
        axis.fill_between(known["step"], known["low"], known["high"], color=colour, alpha=0.12, lw=0)


def limit_of(values: np.ndarray) -> float:
    """Where the colours of a map end: the 99.5th percentile of its absolute values.

    The largest one of a map with fewer values than that beside zero, and 0 for one that is zero everywhere.
    """
    return float(np.percentile(np.abs(values), CLIP_PERCENTILE) or np.abs(values).max())


def show_map(axis: "Axes", values: np.ndarray, **placed: Any) -> None:
    """Draw a map [h, w] in red where it is positive, blue where it is negative and white where it is zero."""
    if np.isnan(values).all():
        axis.text(0.5, 0.5, "n/a", ha="center", va="center", transform=axis.transAxes, fontsize=8)
        return
    limit = limit_of(values) or 1.0
    # Where there are more values than pixels, values are averaged and not colours: red and blue do not make purple.
    axis.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation_stage="data", **placed)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    return path
