"""What introspections show, side by side: pictures and maps as small images, matrices in colours, curves as charts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image

from harness.artifacts import NETWORKS, Exhibit
from harness.colouring import Pixels, heat_map, pictures_of
from harness.curve_figures import COLOURS
from harness.introspection_figures import spans_magnitudes
from harness.report.charts import DASHES, chart_of, records_of, tips
from harness.report.maps import address_of
from harness.text import sentence
from harness.types import Artifact

if TYPE_CHECKING:
    from harness.results import Results

MOST_PICTURES = 24
"""Of one network in one exhibit."""

MOST_BYTES = 4_000_000
"""Of all pictures of a report; exhibits that come later are named only."""

SIDE, LONGEST, SMALL, WIDE = 112, 512, 128**2, 2.0
"""Pixels of the shorter and the longer side of a picture, and of one that is exact; width by height of a strip."""

MOST_NAMES, HEIGHT = 40, 170
"""Rows or columns whose names are shown; the height of a chart of curves."""


@dataclass(frozen=True)
class Picture:
    """One picture: its address, what it is called, and what it is for who does not see it."""

    address: str
    label: str
    words: str


@dataclass(frozen=True)
class Panel:
    """What is seen of one network.

    Attributes:
        network: whose it is, in words.
        kind: of the artifact.
        pictures: small ones, or the one that a matrix is.
        rows: names of the rows of a matrix; empty where they have none, or too many.
        columns: likewise.
        height: of the picture of a matrix, in lines of text.
        wide: whether pictures are strips, of which each has a line of its own.
        scale: which numbers the colours of a matrix are.
        chart: the key of a chart of curves.
    """

    network: str
    kind: str
    pictures: Sequence[Picture] = ()
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    height: int = 0
    wide: bool = False
    scale: str = ""
    chart: str = ""


@dataclass(frozen=True)
class Shown:
    """An exhibit in the report: of which model and introspection, its title, what is said of it, its panels."""

    subject: str
    introspection: str
    kind: str
    title: str
    caption: str
    panels: Sequence[Panel]


@dataclass
class Exhibits:
    """All that is shown, the specifications of its charts by key, and what has no room."""

    shown: list[Shown] = field(default_factory=list)
    charts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: int = 0


def exhibits_of(results: "Results") -> Exhibits:
    """What the introspections of a run show, as the report shows it."""
    found, room = Exhibits(), MOST_BYTES
    for (model, seed), subject in results.subjects.items():
        for label in results.introspections:
            if not any((cell.model, cell.model_seed, cell.method) == (model, seed, label) for cell in results.planned):
                continue
            for beside in results.artifacts(label, model, seed):
                panels = list(_panels(beside, found.charts))
                size = sum(len(picture.address) for panel in panels for picture in panel.pictures)
                if size > room:
                    found.left_out += 1
                    continue
                room -= size
                first = next(iter(beside.values()))
                title = f"{first.name}, {first.stage}" if first.stage else first.name
                found.shown.append(Shown(subject, label, first.kind, title, _caption(first), panels))
    return found


def _caption(artifact: Artifact) -> str:
    """What is seen, how it is scaled, and how much of it is shown."""
    scaled = {
        "pictures": "Black and white are the ends of the valid range of the input.",
        "maps": "Red is above zero, blue below; each map has a scale of its own.",
        "matrix": f"{sentence(artifact.axes[0])} Each network has a scale of its own.",
        "curves": "",
    }[artifact.kind]
    count = len(artifact.values)
    few = f"{MOST_PICTURES} of {count} are shown." if artifact.kind in IMAGES and count > MOST_PICTURES else ""
    return " ".join(filter(None, (artifact.caption, scaled, few)))


IMAGES = ("pictures", "maps")


def _panels(beside: Exhibit, charts: dict[str, Mapping[str, Any]]) -> Iterator[Panel]:
    """A panel for each network; specifications of curves are added to the charts."""
    ends = _ends(beside.values()) if next(iter(beside.values())).kind == "curves" else (0.0, 1.0)
    for network, artifact in beside.items():
        panel = Panel(NETWORKS[network], artifact.kind)
        if artifact.kind == "curves":
            key = f"curves-{len(charts)}"
            charts[key] = _curves(artifact, ends)
            yield replace(panel, chart=key)
        elif artifact.kind == "matrix":
            yield _matrix(panel, artifact)
        else:
            height, width = artifact.values.shape[-2:]
            pictures = list(_pictures(artifact, NETWORKS[network]))
            yield replace(panel, pictures=pictures, wide=width > WIDE * height)


def _pictures(artifact: Artifact, network: str) -> Iterator[Picture]:
    for index, pixels in enumerate(pictures_of(artifact)[:MOST_PICTURES]):
        label = artifact.labels[index] if index < len(artifact.labels) else ""
        words = f"{artifact.name}, {network}: {label or index + 1}"
        if artifact.kind == "maps":
            values = artifact.values[index].double().nan_to_num()
            share = float(values.clamp(min=0).sum() / values.abs().sum().clamp(min=1e-30))
            words += f", {share:.0%} of it positive"
        yield Picture(image_of(pixels), label, words)


def image_of(pixels: Pixels) -> str:
    """Pixels [h, w, 3] as the address of a picture: exact where it is small."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if (pixels == pixels[..., :1]).all():
        picture = picture.convert("L")
    if picture.width * picture.height <= SMALL:
        return address_of(picture, "png")
    factor = min(1.0, SIDE / min(picture.size), LONGEST / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return address_of(picture.resize(size, Image.Resampling.LANCZOS), "webp")


def _matrix(panel: Panel, artifact: Artifact) -> Panel:
    heat = heat_map(artifact)
    rows, columns = artifact.values.shape
    colours = ("blue", "white at zero", "red") if heat.signed else ("white", "black")
    numbers = (heat.low, None, heat.high) if heat.signed else (heat.low, heat.high)
    scale = ", ".join(name if at is None else f"{name} {at:.3g}" for name, at in zip(colours, numbers, strict=True))
    words = f"{artifact.name}, {panel.network}: {rows} rows, {columns} columns; {scale}"
    picture = Image.fromarray(heat.pixels)
    return replace(
        panel,
        pictures=[Picture(address_of(picture, "png"), "", words)],
        rows=[str(name) for name in artifact.labels] if rows <= MOST_NAMES else (),
        height=rows if rows <= MOST_NAMES else MOST_NAMES // 2,
        columns=[str(name) for name in artifact.columns] if columns <= MOST_NAMES else (),
        scale=scale,
    )


def _ends(artifacts: Any) -> tuple[float, float]:
    """The least and the largest number of the curves of all networks."""
    values = np.concatenate([each.values.double().numpy().ravel() for each in artifacts])
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _curves(artifact: Artifact, ends: tuple[float, float]) -> Mapping[str, Any]:
    """The specification of a chart of lines over columns."""
    lines, points = artifact.values.shape
    labels = [str(name) for name in artifact.labels] or [f"{index + 1}" for index in range(lines)]
    columns = list(artifact.columns) or [float(index + 1) for index in range(points)]
    names = [str(column) for column in columns] if isinstance(columns[0], str) else []
    rows = pd.DataFrame(
        [
            {"line": label, "at": column, "value": float(value)}
            for label, line in zip(labels, artifact.values.double().tolist(), strict=True)
            for column, value in zip(columns, line, strict=True)
        ]
    )
    known = rows[np.isfinite(rows["value"])]
    base = alt.Chart(alt.Data(values=records_of(known, ["line", "at", "value"])))
    title = artifact.axes[1] or None
    if names:
        axis = alt.Axis(labelAngle=-40, labelLimit=100)
        x: Any = alt.X("at:N", sort=names, title=title, axis=axis, scale=alt.Scale(domain=names))
    else:
        scale = alt.Scale(type="log") if spans_magnitudes(artifact.columns) else alt.Scale(zero=False, nice=False)
        x = alt.X("at:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    y = alt.Y("value:Q", title=artifact.axes[0] or None, scale=alt.Scale(domain=list(ends), zero=False))
    colours = [COLOURS[index % len(COLOURS)] for index in range(lines)]
    strokes = [list(DASHES[index // len(COLOURS) % len(DASHES)]) for index in range(lines)]
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=130) if lines > 1 else None
    colour = alt.Color("line:N", sort=labels, scale=alt.Scale(domain=labels, range=colours), legend=legend)
    dashes = alt.StrokeDash("line:N", sort=labels, scale=alt.Scale(domain=labels, range=strokes))
    said = [*tips("line"), alt.Tooltip("at:N", title=title or "at"), *tips("value")]
    line = base.mark_line(point={"size": 18} if points <= MOST_NAMES else False)
    chart = line.encode(x=x, y=y, color=colour, strokeDash=dashes, tooltip=said)
    return chart_of("", "", "", "", chart, HEIGHT).specification
