"""The maps behind the cascade picture: one sample, every method, every stage of one cascade."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.digests import digest
from harness.drawn import maps_as_drawn, samples_as_drawn
from harness.metrics.cascade import Randomization, cascade, groups_of, output_of
from harness.plan import Group, identity_of, numerics
from harness.store import write_atomically


@dataclass(frozen=True)
class Cascade:
    """Maps [methods, stages, ...] of one sample as they are drawn; NaN where a method gave none."""

    image: np.ndarray
    maps: np.ndarray
    methods: list[str]
    stages: list[str]
    caption: str


def keep_cascade(group: Sequence[Group], labels: Sequence[str], path: Path, *, seed: int) -> None:
    """Keep the cascade of the first sample of these groups (one subject, one group a method), if `path` lacks it.

    The same twins, noise and options as in the first draw of `parameter_randomization`, so the picture
    shows what was measured.
    """
    group = [replace(each, subject=each.subject.first(1)) for each in group]
    subject = group[0].subject
    explainers = [identity_of(each.explainer, subject) for each in group]
    options = options_of(group[0])
    assert options, "only groups with a parameter randomization have a cascade"
    where = (
        subject.source.identity,
        subject.samples,
        subject.contents,
        subject.target,
        subject.space,
        numerics(subject),
    )
    key = digest(*where, explainers, list(labels), options, seed)
    if path.exists() and read_cascade(path)[1] == key:
        return
    groups = groups_of(subject.source.blocks, options["stages"])
    stages = ["trained", *(blocks[-1].name for blocks in groups)]
    rows = [_row(g, seed, len(stages), options) for g in group]
    caption = f"{subject.label}, sample {subject.samples[0]}, explained class {int(subject.target[0])}"
    image = samples_as_drawn(subject.space.within_box(subject.x), subject.space.kind)[0].clamp(0, 1).cpu().numpy()
    _write(Cascade(image, np.stack(rows), list(labels), stages, caption), path, {"key": key})


def options_of(group: Group) -> Mapping[str, Any]:
    """How the group's parameter randomization goes about it; nothing if it has none, and so no cascade."""
    options = [task.options for task in group.tasks if task.metric.name == "parameter_randomization"]
    return {name: options[0][name] for name in ("batch_norm", "fresh", "repredict", "stages")} if options else {}


def _row(group: Group, seed: int, stages: int, options: Mapping[str, Any]) -> np.ndarray:
    case = group.case(seed=seed, chunk=1)
    kind = case.space.kind
    empty = np.full((stages, *maps_as_drawn(case.x, case.x, kind).shape[1:]), np.nan)
    how = Randomization(options["batch_norm"], options["fresh"], options["stages"])
    try:
        maps = [case.maps]
        for stage in cascade(case, "top_down", 0, how):
            target = output_of(case, stage).predicted if options["repredict"] else None
            maps.append(case.explain(stage.model, target=target, call=("top_down", 0, stage.index)))
    except Exception:  # the cells of this method have recorded why; the picture leaves its row empty
        return empty
    return np.stack([maps_as_drawn(m, case.x, kind)[0].cpu().numpy() for m in maps])


def read_cascade(path: Path) -> tuple[Cascade, str]:
    """A cascade and the key of what it was computed from."""
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        return Cascade(file["image"], file["maps"], meta["methods"], meta["stages"], meta["caption"]), meta["key"]


def _write(picture: Cascade, path: Path, extra: Mapping[str, Any]) -> None:
    meta = {"methods": picture.methods, "stages": picture.stages, "caption": picture.caption, **extra}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=picture.image, maps=picture.maps, meta=np.array(json.dumps(meta)))
    write_atomically(path, buffer.getvalue())
