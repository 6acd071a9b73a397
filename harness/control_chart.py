"""Many runs of one study: how far each lies from the first, night after night."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from harness.curve_figures import COLOURS, LINES
from harness.regressions import DEFAULT_TOLERANCE, RED, Tolerance, compare
from harness.results import Results
from harness.types import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, ASIDE = 3, 0.08


def runs_in(folder: Path) -> list[Results]:
    """The runs in the folders of a folder, oldest first; by name where that is not recorded.

    Raises:
        InputError: there are fewer than two.
    """
    found = [Results.load(path.parent) for path in sorted(folder.glob("*/manifest.json"))]
    if len(found) < 2:
        raise InputError(
            f"expected a folder of two runs or more, each in a folder of its own: {folder} has {len(found)}"
        )
    return sorted(found, key=lambda run: run.manifest.get("begun", ""))


def control_chart(
    runs: Sequence[Results], *, tolerance: Tolerance = DEFAULT_TOLERANCE, level: float = 0.05
) -> pd.DataFrame:
    """The rows of comparing each run with the first, with the name of the run and its position.

    Every night is compared with the same base and allowed the same tolerance, so that a slow drift adds up and is
    seen, and no night is tested for being different from the last.
    """
    base, *others = runs
    nights = []
    for position, run in enumerate(others, 1):
        rows = compare(base, run, tolerance=tolerance, level=level).rows
        nights.append(rows.assign(run=run.manifest["run"], position=position))
    return pd.concat(nights, ignore_index=True)


def draw_control_chart(nights: pd.DataFrame, base: str) -> Figure:
    """A panel for each model and metric: differences to the base with their intervals, a line for each method.

    The band is what is allowed, at its narrowest; a cross is red.
    """
    known = nights[nights["difference"].notna()]
    panels = list(known.groupby(["model", "model_seed", "metric"], sort=False))
    columns = min(COLUMNS, max(len(panels), 1))
    rows = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(4.6 * columns, 2.8 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    methods = list(dict.fromkeys(known["method"]))
    names = list(dict.fromkeys(nights["run"]))
    for axis, (key, some) in zip(axes, panels, strict=False):
        _panel(axis, some, methods)
        axis.set_title(f"{key[0]}: {key[2]} ({some['measure'].iloc[0]})", fontsize=9)
        axis.set_xticks(range(1, len(names) + 1), names, rotation=45, ha="right", fontsize=7)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"difference to {base}, with 95 % intervals over its samples and draws", fontsize=10)
    return figure


def _panel(axis: "Axes", rows: pd.DataFrame, methods: Sequence[str]) -> None:
    allowed = float(rows["tolerance"].min())
    axis.axhspan(-allowed, allowed, color="0.9", lw=0)
    axis.axhline(0, color="0.5", lw=0.8)
    for index, method in enumerate(methods):
        some = rows[rows["method"] == method].sort_values("position")
        colour, style = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
        beside = some["position"] + ASIDE * (index - (len(methods) - 1) / 2)
        errors = [(some["difference"] - some["low"]).fillna(0), (some["high"] - some["difference"]).fillna(0)]
        axis.errorbar(beside, some["difference"], errors, color=colour, ls=style, lw=1.2, capsize=2, label=method)
        red = some["outcome"].isin(RED)
        axis.plot(beside[red], some["difference"][red], "x", color="#D00000", ms=8, mew=2)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.2)
