"""The figures behind the claims: what is left stage by stage, beside networks that learnt noise, and beside edges."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from harness.curve_figures import COLOURS, LINES
from harness.evidence import Evidence, Reading
from harness.figures import DPI
from harness.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = {
    "signed": "rank correlation, signed",
    "up_to_sign": "rank correlation, up to a sign",
    "absolute": "rank correlation, absolute",
    "ssim": "SSIM",
}

LEARNT: Mapping[str, tuple[str, str, str]] = {
    "ceiling_retrain": ("two networks, both trained on true labels", "^", COLOURS[2]),
    "test": ("trained on true labels, trained on permuted labels", "o", COLOURS[1]),
    "floor_random": ("two networks, both trained on permuted labels", "x", "grey"),
}
EDGES: Mapping[str, tuple[str, str, str]] = {
    "test": ("with the edges of the picture", "o", COLOURS[1]),
    "floor_shift": ("with these edges shifted", "x", "grey"),
}
"""Role -> what it is of, marker, colour."""

EDGE_DETECTOR = "sobel"


def write_claim_figures(
    figures: Mapping[str, Callable[[Sequence[Evidence]], Figure | None]], evidence: Sequence[Evidence], folder: Path
) -> list[Path]:
    """`NAME-MODEL.png` for each model, where there is something to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for model in dict.fromkeys(each.model for each in evidence):
        here = [each for each in evidence if each.model == model]
        for name, draw in figures.items():
            figure = draw(here)
            if figure:
                written.append(folder / f"{name}-{model}.png")
                figure.savefig(written[-1], dpi=DPI)
    return written


def draw_stages(
    evidence: Sequence[Evidence], mode: str = "top_down", views: Sequence[str] = ("signed", "absolute", "ssim")
) -> Figure | None:
    """What is left of each map, stage by stage of a cascade: a column for each protocol, a row for each view.

    Args:
        evidence: of one model, one for each protocol.
        mode: of the cascade: `top_down`, or `independent`, one stage random at a time.
        views: how maps are compared.
    """
    found = (method for each in evidence for method in _methods(each, "parameter_randomization"))
    methods = list(dict.fromkeys(found))
    stages = max((each.stages(method, mode) for each in evidence for method in methods), key=len, default=[])
    if not stages:
        return None
    figure = Figure(figsize=(4.6 * len(evidence) + 2.2, 2.6 * len(views) + 0.6), layout="constrained")
    axes = figure.subplots(len(views), len(evidence), sharex=True, sharey=True, squeeze=False)
    for column, each in enumerate(evidence):
        for row, view in enumerate(views):
            axis = axes[row, column]
            for index, method in enumerate(methods):
                readings = [each.left(method, view, mode=mode, stage=stage) for stage in stages]
                style = (COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)])
                _line(axis, [reading.interval for reading in readings], style, method)
            axis.axhline(0, color="black", lw=0.6)
            axis.set_ylim(-0.35, 1.08)
            axis.grid(alpha=0.25)
            axis.set_ylabel(SHOWN[view] if column == 0 else "")
        how = "share left above chance" if each.protocol.above_chance else "similarity as it is"
        axes[0, column].set_title(f"{each.protocol.name}: {how}", fontsize=9)
        axes[-1, column].set_xticks(range(len(stages) + 1), ["trained", *stages], rotation=60, ha="right", fontsize=7)
    known = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    named = [method for method in methods if method in known]
    figure.legend([known[n] for n in named], named, loc="outside right center", fontsize=8, frameon=False)
    which = "alone" if mode == "independent" else "and all above it"
    figure.suptitle(f"{evidence[0].model}: the named layer {which} randomized", fontsize=10)
    return figure


def draw_levels(evidence: Evidence, test: str, roles: Mapping[str, tuple[str, str, str]]) -> Figure | None:
    """The similarities of a test and of its levels: a line for each method, maps signed and absolute side by side."""
    methods = _methods(evidence, test)
    if not methods:
        return None
    views = [view for view in ("signed", "absolute") if not _all_lack(evidence, methods, view, test)]
    figure = Figure(figsize=(3.6 * len(views) + 2.0, 0.34 * len(methods) + 1.7), layout="constrained")
    axes = figure.subplots(1, len(views), sharey=True, squeeze=False)[0]
    for axis, view in zip(axes, views, strict=True):
        for role, (said, marker, colour) in roles.items():
            readings = [evidence.similarity(method, view, test, role=role) for method in methods]
            _points(axis, readings, marker, colour, said)
        axis.set_title(SHOWN[view], fontsize=9)
        axis.axvline(0, color="black", lw=0.6)
        axis.grid(alpha=0.25, axis="x")
        axis.set_xlim(-0.25, 1.05)
    axes[0].set_yticks(range(len(methods)), methods, fontsize=8)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, frameon=False)
    figure.suptitle(f"{evidence.model}: similarity of maps", fontsize=10)
    return figure


def _methods(evidence: Evidence, test: str) -> list[str]:
    """Those that have numbers, and of the controls one that never changes."""
    label = evidence.protocol.prefix + test
    stacks = {method: stack for (method, metric), stack in evidence.stacks.items() if metric == label}
    return [
        method
        for method, stack in stacks.items()
        if method == EDGE_DETECTOR or stack.info.get("method_family") != "control"
        if not all(evidence.similarity(method, view, test).lacks for view in ("signed", "absolute"))
    ]


def _all_lack(evidence: Evidence, methods: Sequence[str], view: str, test: str) -> bool:
    return all(evidence.similarity(method, view, test).lacks for method in methods)


def _line(axis: "Axes", intervals: Sequence[Interval], style: tuple[str, str], label: str) -> None:
    values, low, high = (np.array([1.0, *(getattr(each, n) for each in intervals)]) for n in ("value", "low", "high"))
    if np.isnan(values[1:]).all():
        return
    colour, line = style
    places = np.arange(len(values))
    axis.plot(places, values, color=colour, ls=line, lw=1.3, marker=".", ms=4, label=label)
    axis.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)


def _points(axis: "Axes", readings: Sequence[Reading], marker: str, colour: str, label: str) -> None:
    each = [reading.interval for reading in readings]
    values, low, high = (np.array([getattr(one, n) for one in each]) for n in ("value", "low", "high"))
    around = np.nan_to_num(np.stack([values - low, high - values]))
    axis.errorbar(values, range(len(values)), xerr=around, fmt=marker, color=colour, ms=5, lw=1.2, label=label)


FIGURES: Mapping[str, Callable[[Sequence[Evidence]], Figure | None]] = {
    "stages": draw_stages,
    "alone": lambda evidence: draw_stages(evidence, "independent"),
    "labels": lambda evidence: draw_levels(evidence[-1], "label_randomization", LEARNT),
    "edges": lambda evidence: draw_levels(evidence[-1], "edge_similarity", EDGES),
}
"""Name -> what draws it: the figures of the randomization tests."""
