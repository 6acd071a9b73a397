"""Maps and samples that a run keeps beside its cells, for the gallery of the report and for other tools."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from harness.case import Case
from harness.digests import digest
from harness.entries import Introspection
from harness.plan import Cell, Group, identity_of, numerics
from harness.space import Kind
from harness.store import Store

MAPS, SAMPLES = "maps", "samples"
COMPARED = ("weights", "contents", "method_function", "method_version", "method_options")
"""What the maps of a file and the cells of its labels must have been computed from alike."""


@dataclass(frozen=True)
class KeptMaps:
    """The raw maps of one method on one model, as `--save-maps` kept them.

    Attributes:
        maps: in the shape of the samples, or one channel.
        ids: of the samples.
        target: the explained class of each.
    """

    maps: np.ndarray
    ids: tuple[str, ...]
    target: np.ndarray


@dataclass(frozen=True)
class KeptSamples:
    """The samples that a model was explained on, to be looked at.

    Attributes:
        x: pictures as 8-bit numbers over their valid range, signals and tables as the model takes them.
        ids: of the samples.
        target: the explained class of each.
        explained: its name, or number where it has none.
        labels: the names of the true classes; empty where nobody knows them.
        kind: of the samples.
    """

    x: np.ndarray
    ids: tuple[str, ...]
    target: np.ndarray
    explained: tuple[str, ...]
    labels: tuple[str, ...]
    kind: Kind


def about(group: Group) -> dict[str, Any]:
    """What the maps of a group are made of, as it is written beside its cells and its maps."""
    method = group.explainer.method
    return {
        "weights": group.subject.source.weights,
        "contents": digest(group.subject.contents),
        "method_function": method.name,
        "method_version": method.version,
        "method_options": dict(group.explainer.options),
    }


def lacks_maps(group: Group, store: Store, seed: int) -> bool:
    """Whether the maps of a group are not kept yet, or are those of something else; an introspection has none."""
    if isinstance(group.explainer.method, Introspection):
        return False
    kept = store.arrays(_place(MAPS, group.tasks[0].cell), "meta") if group.tasks else {}
    return bool(group.tasks) and (kept is None or _meta(kept).get("key") != _key(group, seed))


def keep_maps(group: Group, case: Case, store: Store) -> None:
    """Keep the maps of a case, and its samples if no method before has done so."""
    cell = group.tasks[0].cell
    maps = case.maps.cpu().numpy()
    known = {"ids": np.array(case.samples, dtype=str), "target": case.target.cpu().numpy()}
    meta = {**about(group), "key": _key(group, case.seed), "model": cell.model, "method": cell.method}
    store.put_arrays(_place(MAPS, cell), {"maps": maps, **known, "meta": np.array(json.dumps(meta))})
    where, key = _place(SAMPLES, cell), digest(case.samples, group.subject.contents, case.target, case.space)
    before = store.arrays(where, "meta")
    if before is None or _meta(before).get("key") != key:
        meta = {"key": key, "kind": case.space.kind, **_named(group)}
        store.put_arrays(where, {"x": _shown(case), **known, "meta": np.array(json.dumps(meta))})


def are_kept(cells: Iterable[Cell], store: Store) -> bool:
    """Whether the maps of the cells of one model and method are there, made of what the cells were made of."""
    blocks = _by_block(cells)
    for block in blocks:
        found = store.arrays(_place(MAPS, block[0]), "meta")
        info = next((info for cell in block if (info := store.info(cell))), {})
        meta = _meta(found) if found else {}
        if found is None or any(meta.get(name) != _plain(info[name]) for name in COMPARED if name in info):
            return False
    return bool(blocks)


def maps_of(cells: Sequence[Cell], store: Store) -> KeptMaps | None:
    """The kept maps of the cells of one model and method; None where `are_kept` says so."""
    if not are_kept(cells, store):
        return None
    parts = [store.arrays(_place(MAPS, block[0])) or {} for block in _by_block(cells)]
    return KeptMaps(_joined(parts, "maps"), _ids(parts), _joined(parts, "target"))


def samples_of(cells: Iterable[Cell], store: Store) -> KeptSamples | None:
    """The kept samples of the cells of one model; None where they are not there."""
    parts = [store.arrays(_place(SAMPLES, block[0])) for block in _by_block(cells)]
    there = [part for part in parts if part is not None]
    if not there or len(there) < len(parts):
        return None
    metas = [_meta(part) for part in there]
    explained, labels = (tuple(name for meta in metas for name in meta[what]) for what in ("explained", "labels"))
    kind: Kind = metas[0]["kind"]
    return KeptSamples(_joined(there, "x"), _ids(there), _joined(there, "target"), explained, labels, kind)


def _place(what: str, cell: Cell) -> str:
    """Where the arrays of a cell's model, method and block are: names that any file system takes."""
    model = quote(cell.model, safe="") + (f"@{cell.model_seed}" if cell.model_seed else "")
    method = f"{quote(cell.method, safe='[]=,')}-" if what == MAPS else ""
    return f"{what}/{model}/{method}{cell.block}"


def _key(group: Group, seed: int) -> str:
    subject = group.subject
    where = (subject.source.identity, subject.samples, subject.contents, subject.target, subject.space)
    return digest(*where, numerics(subject), identity_of(group.explainer, subject), seed)


def _shown(case: Case) -> np.ndarray:
    """The samples as they are looked at."""
    if case.space.kind != "image":
        return case.x.cpu().numpy()
    within = case.space.within_box(case.x).clamp(0, 1)
    return (within * 255).round().byte().cpu().numpy()


def _named(group: Group) -> dict[str, list[str]]:
    data = group.subject.reader.data

    def named(index: int) -> str:
        return data.classes[index] if 0 <= index < len(data.classes) else str(index)

    labels = [] if data.labels is None else [named(int(data.labels[row])) for row in group.subject.rows]
    return {"explained": [named(index) for index in group.subject.target.tolist()], "labels": labels}


def _by_block(cells: Iterable[Cell]) -> list[list[Cell]]:
    blocks: dict[int, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.block, []).append(cell)
    return [blocks[index] for index in sorted(blocks)]


def _meta(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
    return found


def _plain(value: Any) -> Any:
    """A value as it is after it was written as JSON."""
    return json.loads(json.dumps(value))


def _joined(parts: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([part[name] for part in parts])


def _ids(parts: Sequence[Mapping[str, np.ndarray]]) -> tuple[str, ...]:
    return tuple(str(each) for part in parts for each in part["ids"])
