"""The gallery as a figure: a band for each sample, in it the sample and a labelled panel for each method."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure

from harness.colouring import DIVERGING, limit_of
from harness.figures import DPI, show_map
from harness.gallery import Gallery
from harness.space import Kind
from harness.store import write_atomically
from harness.types import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE, LARGEST_SIDE, WIDTH, NARROWEST = 225, 450, 2000, 900
"""Pixels: of a panel with an image, at least and at most, and of the whole, roughly at most and at least."""

SIGNAL, TABLE, BAR, MOST_BARS = (450, 135), 270, 20, 40
"""Width and height of a panel with a signal; width with a table, height of a bar, and how many bars at most."""

MARGIN, BELOW, HEADER, LINE = 38, 34, 48, 21
"""Pixels: around everything, for the number below a panel, over a band, for a line of text."""

GAPS: dict[Kind, int] = {"image": 18, "signal": 18, "bands": 18, "table": 45}
COLUMNS = 8

TITLE, HEADING, SMALL, TINY = 11.0, 9.0, 7.5, 6.5
SHRUNK = 0.8
"""Of the size of names: how small one may be before it takes two lines."""

NAME_LETTER, TEXT_LETTER = 10, 8
"""Pixels of a letter of the small size, roughly."""

TALLEST = 2**15
"""Pixels beyond which pictures can hardly be opened."""

OF_CHANNELS: dict[Kind, str] = {"bands": "The lowest frequency is at the bottom, time runs to the right."}
CAPTION = (
    "Red is positive, blue negative, white zero. The colours of each panel end at the number "
    "below it, the 99.5th percentile of its absolute values, so they compare within a panel only."
)


@dataclass(frozen=True)
class Layout:
    """Where everything goes, in pixels from the top left corner.

    Whole pixels, and a whole number of them for each of an image: resampled, neighbours of opposite sign would
    cancel in some places and not in others.

    Attributes:
        kind: of the samples.
        shape: of one map.
        samples: how many bands.
        panels: of one band, that of the sample included.
        lines: of the longest name.
    """

    kind: Kind
    shape: tuple[int, ...]
    samples: int
    panels: int
    lines: int = 1

    @property
    def panel(self) -> tuple[int, int]:
        """Width and height of a panel."""
        if self.kind == "signal":
            return SIGNAL
        if self.kind == "table":
            return TABLE, BAR * (1 + min(self.shape[0], MOST_BARS))
        longest = max(self.shape)
        scale = max(1, round(SIDE / longest)) if longest <= LARGEST_SIDE else LARGEST_SIDE / longest
        return max(1, round(self.shape[1] * scale)), max(1, round(self.shape[0] * scale))

    @property
    def cell(self) -> int:
        """Width of a panel with its name and the gap to the next one."""
        return max(self.panel[0], SIDE) + GAPS[self.kind]

    @property
    def columns(self) -> int:
        """Panels side by side."""
        return min(COLUMNS, WIDTH // self.cell, self.panels)

    @property
    def width(self) -> int:
        """Of the figure."""
        return max(NARROWEST, 2 * MARGIN + self.columns * self.cell - GAPS[self.kind])

    @property
    def caption(self) -> list[str]:
        """What the colours mean, in lines that fit."""
        said = f"{OF_CHANNELS.get(self.kind, 'Channels are summed.')} {CAPTION}"
        return textwrap.wrap(said, (self.width - 2 * MARGIN) // TEXT_LETTER)

    @property
    def letters(self) -> int:
        """Of a name that fit on a line."""
        return self.cell // NAME_LETTER

    @property
    def above(self) -> int:
        """Height of the names."""
        return 9 + self.lines * LINE

    @property
    def top(self) -> int:
        """Where the first band begins."""
        return MARGIN + HEADER + LINE * len(self.caption)

    @property
    def line(self) -> int:
        """Height of a line of panels."""
        return self.above + self.panel[1] + BELOW

    @property
    def band(self) -> int:
        """Height of a band."""
        return HEADER + math.ceil(self.panels / self.columns) * self.line

    @property
    def height(self) -> int:
        """Of the figure."""
        return self.top + self.samples * self.band + MARGIN

    def corner(self, sample: int, panel: int) -> tuple[int, int]:
        """Left and top of a panel."""
        line, column = divmod(panel, self.columns)
        inset = (self.cell - GAPS[self.kind] - self.panel[0]) // 2
        top = self.top + sample * self.band + HEADER + line * self.line + self.above
        return MARGIN + column * self.cell + inset, top


def layout_of(kind: Kind, shape: tuple[int, ...], samples: int, names: Sequence[str]) -> Layout:
    """The layout for samples that are drawn in this shape, [c, *axes] or [f], and panels with these names.

    Raises:
        InputError: the picture would be too large to be opened.
    """
    layout = Layout(kind, shape[1:] or shape, samples, len(names))
    layout = replace(layout, lines=max(_wrapped(name, layout.letters).count("\n") for name in names) + 1)
    if layout.height > TALLEST:
        raise InputError(f"{samples} samples with {len(names) - 1} maps each make too tall a picture: show fewer")
    return layout


def draw(gallery: Gallery) -> Figure:
    """The figure: for each sample the sample itself, then the map of each method in the order of the gallery."""
    names = [max((sample.predicted for sample in gallery.samples), key=len), *gallery.maps]
    layout = layout_of(gallery.kind, gallery.samples[0].values.shape, len(gallery.samples), names)
    figure = Figure(figsize=(layout.width / DPI, layout.height / DPI), dpi=DPI)

    def write(text: str, left: int, top: int, size: float, **style: Any) -> None:
        at = (left / layout.width, 1 - top / layout.height)
        figure.text(*at, text, fontsize=size, va="top", parse_math=False, **style)

    count, refused = len(gallery.maps), len(gallery.refused)
    said = f"{count} method{'' if count == 1 else 's'}{f' ({refused} more do not apply)' if refused else ''}"
    write(f"{gallery.label}: {said}", MARGIN, MARGIN, TITLE, weight="bold")
    for row, line in enumerate(layout.caption):
        write(line, MARGIN, MARGIN + HEADER + row * LINE, SMALL, color="0.35")
    for row, sample in enumerate(gallery.samples):
        top = layout.corner(row, 0)[1] - layout.above - 30
        write(f"{_tail(sample.name, layout)}   ({sample.about})", MARGIN, top, HEADING)
        axis = _axis(figure, layout, row, 0, sample.predicted, weight="bold")
        _draw_sample(axis, sample.values, gallery.kind)
        for column, (method, maps) in enumerate(gallery.maps.items(), start=1):
            axis = _axis(figure, layout, row, column, method)
            if maps is None:
                axis.text(0.5, 0.5, "failed", ha="center", va="center", transform=axis.transAxes, color="0.4")
                continue
            _draw_map(axis, maps[row], sample.values, gallery.kind)
            limit = limit_of(maps[row])
            axis.set_xlabel(f"±{limit:.2g}" if limit else "zero everywhere", fontsize=TINY, labelpad=2, color="0.35")
    return figure


def check_writable(path: Path) -> None:
    """Check that a picture can go there, before anything is computed for it.

    Raises:
        InputError: it is no .png, a folder, or below a file.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the picture is a PNG file: its name must end in .png")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    wrong = next((str(each) for each in path.parents if each.exists() and not each.is_dir()), "")
    if wrong:
        raise InputError(f"{path}: {wrong} is a file, no folder")


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure so that the file is either whole or not there."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomically(path, buffer.getvalue())


def _axis(figure: Figure, layout: Layout, row: int, column: int, title: str, **style: Any) -> "Axes":
    left, top = layout.corner(row, column)
    width, height = layout.panel
    below = layout.height - top - height
    box = (left / layout.width, below / layout.height, width / layout.width, height / layout.height)
    axis = figure.add_axes(box)
    title = _wrapped(title, layout.letters)
    size = SMALL * min(1.0, layout.letters / max(map(len, title.split("\n"))))
    axis.set_title(title, fontsize=size, pad=3, parse_math=False, **style)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(linewidth=0.5, color="0.7")
    return axis


def _tail(name: str, layout: Layout) -> str:
    """A name, or as many of the last parts of a path as leave room for what is explained."""
    most, parts = (layout.width - 2 * MARGIN) // NAME_LETTER // 2, name.split("/")
    tails = (f"…/{'/'.join(parts[start:])}" for start in range(1, len(parts)))
    return next((each for each in (name, *tails) if len(each) <= most), f"…{name[1 - most :]}")


def _wrapped(name: str, letters: int) -> str:
    """A name on two lines if it is too long for one, broken where its parts meet; what is still too long is cut."""
    most = int(letters / SHRUNK)
    if len(name) <= most:
        return name
    joints = [match.end() for match in re.finditer(r"[ _,:\[-]", name) if match.end() <= most]
    first = joints[-1] if joints else most
    rest = name[first:].lstrip()
    return f"{name[:first].rstrip()}\n{rest if len(rest) <= most else rest[: most - 1] + '…'}"


def _draw_sample(axis: "Axes", values: Float[np.ndarray, "..."], kind: Kind) -> None:
    if kind in ("image", "bands"):
        # Only one and three channels are colours.
        pixels = np.moveaxis(values, 0, -1) if len(values) == 3 else values.mean(0)
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    elif kind == "signal":
        _draw_waves(axis, values)
    else:
        _draw_bars(axis, values, np.full(len(values), 0.55), "gray")


def _draw_map(axis: "Axes", values: Float[np.ndarray, "..."], sample: Float[np.ndarray, "..."], kind: Kind) -> None:
    if kind in ("image", "bands"):
        show_map(axis, values, interpolation="nearest", aspect="auto")
    elif kind == "signal":
        _draw_waves(axis, sample)
        show_map(axis, values[None], extent=(0, len(values), *axis.get_ylim()), aspect="auto")
    else:
        limit = limit_of(values) or 1.0
        _draw_bars(axis, values, (values / limit + 1) / 2, DIVERGING)


def _draw_waves(axis: "Axes", waves: Float[np.ndarray, "c t"]) -> None:
    for wave in waves:
        axis.plot(np.arange(len(wave)) + 0.5, wave, color="black", lw=0.5, alpha=0.7)
    axis.set_xlim(0, waves.shape[1])
    axis.set_ylim(*axis.get_ylim())


def _draw_bars(axis: "Axes", values: Float[np.ndarray, " f"], shades: Float[np.ndarray, " f"], colours: str) -> None:
    """One horizontal bar a feature, the first on top; of many features those with the largest values."""
    rows = np.sort(np.argsort(-np.abs(values), kind="stable")[:MOST_BARS])
    axis.barh(range(len(rows)), values[rows], color=colormaps[colours](shades[rows]), edgecolor="0.5", lw=0.4)
    axis.axvline(0, color="0.4", lw=0.5)
    end = np.abs(values).max() or 1.0
    axis.set_xlim(-1.05 * end, 1.05 * end)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [str(row) for row in rows], fontsize=5)
    axis.tick_params(length=1.5, width=0.5, pad=1)
