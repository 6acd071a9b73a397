"""Artifacts of introspections: kept beside their cells, read by the report and by figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from harness.plan import Cell
from harness.space import InputSpace
from harness.store import Store
from harness.types import Artifact, Network

FOLDER = "artifacts"

NETWORKS: Mapping[Network, str] = {"trained": "trained", "random": "re-initialized", "shuffled": "shuffled weights"}
"""Whose artifact it is -> how it is called beside the others, in their order."""

Exhibit = Mapping[Network, Artifact]
"""What is seen of the trained network, and beside it the same of networks that have learnt nothing."""


def as_shown(artifact: Artifact, space: InputSpace) -> Artifact:
    """An artifact as it is kept: pictures as bytes, 0 at the low end of the valid range and 255 at its high end.

    Where no range is declared, that of each picture serves. Frequencies that are channels rise from the bottom to the
    top.

    Raises:
        InputError: the pictures cannot be inputs of the model.
    """
    if space.kind == "bands" and artifact.kind in ("pictures", "maps"):
        artifact = replace(artifact, values=artifact.values.flip(-2))
    if artifact.kind != "pictures":
        return artifact
    space = space if space.kind == "image" else InputSpace("image")
    space.check(artifact.values)
    within = space.within_box(artifact.values).nan_to_num().clamp(0, 1)
    return replace(artifact, values=(within * 255).round().byte())


def distinct(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """The artifacts of a cell, once it is clear that they can be told apart.

    Raises:
        ValueError: two of one network have the same name and layer.
    """
    found = tuple(artifacts)
    names = [(each.name, each.stage, each.network) for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"artifact {twice[0]!r} of layer {twice[1]} was yielded twice")
    return found


def keep_artifacts(artifacts: Sequence[Artifact], cell: Cell, store: Store) -> None:
    """Keep the artifacts of a cell, if it has any.

    Raises:
        StoppedError: nothing can be written.
    """
    if not artifacts:
        return
    # Not `asdict`, which would copy the numbers.
    meta = [{f.name: getattr(each, f.name) for f in fields(each) if f.name != "values"} for each in artifacts]
    arrays = {str(row): each.values.detach().cpu().numpy() for row, each in enumerate(artifacts)}
    store.put_arrays(f"{FOLDER}/{cell.key}", {**arrays, "meta": np.array(json.dumps(meta))})


def artifacts_of(cell: Cell, store: Store) -> list[Artifact]:
    """The artifacts of a finished cell, in the order in which they were yielded; none if it has none."""
    found = store.arrays(f"{FOLDER}/{cell.key}")
    if found is None or store.info(cell) is None:
        return []
    return [_artifact(each, found[str(row)]) for row, each in enumerate(json.loads(str(found["meta"])))]


def side_by_side(cells: Iterable[Cell], store: Store) -> list[Exhibit]:
    """The artifacts of one model and introspection by name and layer, in the order in which they were yielded.

    They are those of the cell that has asked most kinds of networks.
    """
    kept = [artifacts_of(cell, store) for cell in cells]
    most = max(kept, key=lambda artifacts: len({each.network for each in artifacts}), default=[])
    found: dict[tuple[str, str | None], dict[Network, Artifact]] = {}
    for each in most:
        found.setdefault((each.name, each.stage), {})[each.network] = each
    return [{name: beside[name] for name in NETWORKS if name in beside} for beside in found.values()]


def _artifact(meta: dict[str, object], values: np.ndarray) -> Artifact:
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in meta.items()}
    return Artifact(values=torch.from_numpy(values), **listed)  # type: ignore[arg-type]
