"""Figures of introspections: each measure by layer, and what is seen, of the trained network and of others."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.artifacts import NETWORKS as SHOWN_OF
from harness.artifacts import Exhibit
from harness.colouring import Pixels, heat_map, pictures_of
from harness.curve_figures import COLOURS, LINES
from harness.plotted import NETWORKS, TRAINED, layers, of_model, while_randomized
from harness.types import Artifact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.results import Results

LOOKS: dict[str, dict[str, Any]] = {
    network: {"color": colour, "marker": marker, "linestyle": line}
    for network, colour, marker, line in zip(NETWORKS, COLOURS, "o^s", LINES, strict=False)
}
"""Kind of network -> its colour, marker and line, so that it is told apart without colour, too."""

MOST_PICTURES, MOST_EXHIBITS, MOST_NAMES = 25, 8, 16
"""Of one network in a contact sheet; rows of a sheet; names on an axis."""

WIDTH, LOWEST, HIGHEST = 3.4, 1.1, 2.9
"""Of the columns and rows of a contact sheet, in inches."""


def figures_of_networks(results: "Results") -> Iterator[tuple[str, Figure]]:
    """Of each model and introspection its measures by layer, and a contact sheet of what it shows."""
    networks, partly = results.table("global"), results.table("partly_random")
    for (model, seed), subject in results.subjects.items():
        points = layers(of_model(networks, model, seed))
        stages = while_randomized(of_model(networks, model, seed), of_model(partly, model, seed))
        for label in results.introspections:
            mine, through = points[points["method"] == label], stages[stages["method"] == label]
            if len(mine) or len(through):
                yield f"layers-{label}-{subject}", draw_layers(mine, through, f"{subject}: {label}")
            exhibits = results.artifacts(label, model, seed)
            if exhibits:
                yield f"artifacts-{label}-{subject}", draw_artifacts(exhibits, f"{subject}: {label}")


def draw_layers(points: pd.DataFrame, stages: pd.DataFrame, title: str) -> Figure:
    """Each measure by layer, and below it while the network is randomized from the output down.

    Bands reach two standard deviations to both sides of what random networks have: a PASS lies beyond them.

    Args:
        points: of `harness.plotted.layers`, of one introspection and model.
        stages: of `harness.plotted.while_randomized`, likewise.
        title: of the figure.
    """
    through = stages.assign(network=TRAINED, low=np.nan, high=np.nan)
    frames = {"by layer": points, "randomized from the output down to": through}
    frames = {name: frame[frame["value"].notna()] for name, frame in frames.items() if frame["value"].notna().any()}
    measures = list(dict.fromkeys(measure for frame in frames.values() for measure in frame["measure"]))
    size = (4.2 * max(len(measures), 1) + 0.6, 3.2 * max(len(frames), 1) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(max(len(frames), 1), max(len(measures), 1), squeeze=False)
    for row, (name, frame) in zip(axes, frames.items(), strict=False):
        for axis, measure in zip(row, measures, strict=True):
            here = frame[frame["measure"] == measure]
            _networks(axis, here)
            axis.set_visible(len(here) > 0)
            axis.set_title(measure.replace("_", " "), fontsize=9)
            axis.set_xlabel("" if name == "by layer" else name, fontsize=8)
    lines = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _networks(axis: "Axes", points: pd.DataFrame) -> None:
    """A line for each kind of network over layers or stages, with its band."""
    names = list(points["stage"].unique())
    for network, look in LOOKS.items():
        here = points[points["network"] == network]
        places = [names.index(stage) for stage in here["stage"]]
        if places:
            # Hollow, because the trained network may lie upon the others.
            hollow: dict[str, Any] = {} if network == TRAINED else {"markerfacecolor": "none", "markersize": 8}
            axis.plot(places, here["value"], label=network, **{"lw": 1.4, "markersize": 4, **look, **hollow})
            axis.fill_between(places, here["low"], here["high"], color=look["color"], alpha=0.15, lw=0)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axis.grid(alpha=0.25)


def draw_artifacts(exhibits: Sequence[Exhibit], title: str) -> Figure:
    """A contact sheet: a row for each artifact and layer, a column for each kind of network.

    Pictures stand in the valid range of the input, each map and matrix in a scale of its own, curves in one that the
    networks share.
    """
    exhibits = exhibits[:MOST_EXHIBITS]
    columns = [network for network in SHOWN_OF if any(network in beside for beside in exhibits)]
    heights = [_height(next(iter(beside.values()))) for beside in exhibits]
    figure = Figure(figsize=(WIDTH * len(columns) + 1.2, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(exhibits), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, beside in zip(axes, exhibits, strict=True):
        for axis, network in zip(row, columns, strict=True):
            axis.set_visible(network in beside)
            if network in beside:
                _show(axis, beside[network])
        if next(iter(beside.values())).kind == "curves":
            low, high = (end([axis.get_ylim() for axis in row if axis.get_visible()]) for end in (np.min, np.max))
            for axis in row:
                axis.set_ylim(low, high)
        first = next(iter(beside.values()))
        row[0].set_ylabel("\n".join(filter(None, (first.name, first.stage, first.axes[0]))), fontsize=8)
    for axis, network in zip(axes[0], columns, strict=True):
        axis.set_title(SHOWN_OF[network], fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _height(artifact: Artifact) -> float:
    """Of a row of a contact sheet, in inches: that of its pictures, where these are wide and low."""
    if artifact.kind not in ("pictures", "maps"):
        return HIGHEST
    height, width, _ = mosaic(pictures_of(artifact)[:MOST_PICTURES]).shape
    return float(np.clip(WIDTH * height / width, LOWEST, HIGHEST))


def _show(axis: "Axes", artifact: Artifact) -> None:
    """One artifact of one network."""
    if artifact.kind == "curves":
        _curves(axis, artifact)
    elif artifact.kind == "matrix":
        heat = heat_map(artifact)
        axis.imshow(heat.pixels, aspect="auto", interpolation="nearest")
        _named(axis.set_yticks, artifact.labels, len(heat.pixels))
        _named(axis.set_xticks, artifact.columns, heat.pixels.shape[1], rotation=45, ha="right")
        axis.set_xlabel(f"{artifact.axes[1]}\ncolours from {heat.low:.3g} to {heat.high:.3g}".strip(), fontsize=7)
    else:
        axis.imshow(mosaic(pictures_of(artifact)[:MOST_PICTURES]), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])


def _curves(axis: "Axes", artifact: Artifact) -> None:
    lines = artifact.values.numpy()
    numbers = artifact.columns and not isinstance(artifact.columns[0], str)
    places = np.array(artifact.columns, dtype=float) if numbers else np.arange(lines.shape[1])
    for index, line in enumerate(lines):
        label = artifact.labels[index] if artifact.labels else None
        look: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": LINES[index // len(COLOURS) % len(LINES)],
        }
        axis.plot(places, line, lw=1.2, marker="." if lines.shape[1] < MOST_NAMES else "", label=label, **look)
    if artifact.columns and not numbers:
        _named(axis.set_xticks, artifact.columns, len(places), rotation=45, ha="right")
    if spans_magnitudes(artifact.columns):
        axis.set_xscale("log")
    axis.set_xlabel(artifact.axes[1], fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    if artifact.labels:
        axis.legend(fontsize=6, frameon=False)


def spans_magnitudes(columns: Sequence[str] | Sequence[float]) -> bool:
    """Whether places are drawn by their logarithms: positive numbers of which one is a thousand times another."""
    numbers = [each for each in columns if not isinstance(each, str)]
    return bool(numbers) and min(numbers) > 0 and max(numbers) >= 1000 * min(numbers)


def mosaic(pictures: Pixels) -> Pixels:
    """Pictures [k, h, w, 3] as one, row by row, with grey between them."""
    count, height, width, _ = pictures.shape
    # About as wide as high: of strips one in a row.
    columns = min(count, max(1, int(np.ceil(np.sqrt(count * height / width)))))
    rows, gap = -(-count // columns), max(1, height // 20)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 200, np.uint8)
    for index, each in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        whole[top : top + height, left : left + width] = each
    return whole


def _named(set_ticks: object, names: Iterable[object], count: int, **style: object) -> None:
    """The names of rows or columns, where they are few enough to be read."""
    names = [str(name) for name in names]
    assert callable(set_ticks)
    shown = 0 < len(names) <= MOST_NAMES
    set_ticks(range(count) if shown else [], names if shown else [], fontsize=6, **style)
