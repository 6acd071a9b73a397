"""Writes the report: everything that it shows goes into one file, scripts and pictures too."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from harness.figures import draw_cascade
from harness.pictures import read_cascade
from harness.report.charts import charts, styles
from harness.report.exhibits import exhibits_of
from harness.report.maps import address_of, colours, gallery, said_of
from harness.report.network_charts import network_charts, section_of
from harness.report.networks import asked, network_tables
from harness.report.parts import MOST_ROWS, Table, counted, leaderboard, matrix, plain_table
from harness.report.wording import GLOSSARY, OF_MAPS, SECTIONS, TABLES
from harness.store import Folder, write_atomically
from harness.verdicts import in_error
from harness.words import statements

if TYPE_CHECKING:
    from harness.results import Results

PAGE = Path(__file__).parent / "page"
DPI, WIDEST = 100, 2000
"""Pixels of a cascade picture."""


def write_report(results: "Results", path: Path, gallery: int | None = None) -> Path:
    """Write the report of a run into one HTML file that needs no network.

    Args:
        results: of the run, finished or not.
        path: of the file.
        gallery: how many samples of each model it shows, at most; by default all, as long as the file stays small.

    Returns:
        The path.

    Raises:
        StoppedError: nothing can be written there.
    """
    write_atomically(path, page(results, gallery).encode())
    return path


def page(results: "Results", most: int | None = None) -> str:
    """The report as the text of an HTML file."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "counted": counted}
    outcomes, introspections = results.outcomes, results.introspections
    controls = set(outcomes.loc[outcomes["method_family"] == "control", "method"])
    methods = [name for name in dict.fromkeys(outcomes["method"]) if name not in introspections]
    looks = styles(methods, controls)
    drawn = [*charts(results, {style.name: style for style in looks}), *network_charts(results)]
    exhibits = exhibits_of(results)
    without = (*(() if methods else OF_MAPS), *(() if introspections else ("global",)))
    maps, said = gallery(results, most), said_of(results)
    return environment.get_template("report.html").render(
        study=results.manifest["study"]["name"],
        begun=results.manifest.get("begun", ""),
        subjects=list(results.subjects.values()),
        statements={title: [_split(each) for each in said] for title, said in statements(results).items()},
        matrix=matrix(results),
        leaderboard=leaderboard(results),
        tables={section: list(_tables(results, section)) for section in SECTIONS},
        doubt=in_error(results.table("verdicts")),
        charts=drawn,
        specifications=_embedded({**{str(i): chart.specification for i, chart in enumerate(drawn)}, **exhibits.charts}),
        looks=looks,
        controls=sorted(controls),
        cascades=list(_cascades(results)),
        gallery=_embedded({"models": maps, "colours": colours(), "said": said}) if maps else "",
        judged=bool(said),
        failures=results.failures.to_dict("records"),
        stale=len(results.stale),
        provenance=dict(_provenance(results)),
        yaml=yaml.safe_dump(results.manifest["study"], sort_keys=False),
        glossary=GLOSSARY,
        sections={name: title for name, title in SECTIONS.items() if name not in without},
        introspections=asked(results),
        networks=network_tables(results),
        exhibits=exhibits,
        section_of=section_of,
        vega=_vega(),
    )


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub is wrong
    # Inside of a page these words would end the script.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _embedded(value: Any) -> str:
    """A value as JSON that may stand inside of a page."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line behind its signs."""
    return Markup(re.sub(r"([_\[=,])", r"\1<wbr>", str(escape(name))))


def _split(statement: str) -> tuple[str, str]:
    """What is said, and of which methods."""
    said, colon, methods = statement.rpartition(": ")
    return (said, methods) if colon else (statement, "")


def _tables(results: "Results", section: str) -> Iterator[Table]:
    """The tables of a section that are neither empty nor too long to be read."""
    for name, caption, columns in TABLES.get(section, ()):
        if 0 < len(results.table(name)) <= MOST_ROWS:
            yield plain_table(results, name, caption, columns)


def _cascades(results: "Results") -> Iterator[Mapping[str, str]]:
    """The cascade pictures that the run has kept."""
    folder = results.store.path / "figures" if isinstance(results.store, Folder) else None
    for subject in results.subjects.values():
        kept = folder / f"cascade-{subject}.npz" if folder else None
        cascade = read_cascade(kept)[0] if kept and kept.exists() else None
        if cascade is None or cascade.maps.ndim != 4:
            continue
        canvas = FigureCanvasAgg(draw_cascade(cascade))
        canvas.figure.set_dpi(min(DPI, WIDEST / canvas.figure.get_figwidth()))
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        words = f"{cascade.caption}: rows are {', '.join(cascade.methods)}; columns are {', '.join(cascade.stages)}"
        yield {"subject": subject, "address": address_of(picture, "webp"), "words": words}


def _provenance(results: "Results") -> Iterator[tuple[str, str]]:
    """What the numbers come from, in words."""
    manifest, cells = results.manifest, results.cells
    thresholds = results.thresholds
    yield "run", str(manifest["run"])
    yield "seed", str(manifest["study"].get("seed", ""))
    yield "explained class", str(manifest["study"].get("target", ""))
    for each in manifest.get("subjects", ()):
        name = results.subjects.get((each["model"], each["model_seed"]), each["model"])
        skipped = f", {len(each['skipped'])} skipped" if each["skipped"] else ""
        weights = f"weights {each['weights'][:16]} from {each['weights_from']}"
        yield name, f"{each['samples']} samples of {each['dataset']}{skipped}; {weights}; {each['twins']}"
    for name, value in manifest.get("environment", {}).items():
        yield name, str(value)
    for name in ("dtype", "matmul_precision", "model_form", "chunk"):
        if name in cells:
            yield name.replace("_", " "), ", ".join(str(each) for each in cells[name].dropna().unique())
    yield "thresholds", f"PASS below {thresholds.pass_below:g}, FAIL above {thresholds.fail_above:g} of the similarity"
    states = cells["status"].value_counts()
    yield "cells", ", ".join(f"{count} {str(state).replace('_', ' ')}" for state, count in states.items())
