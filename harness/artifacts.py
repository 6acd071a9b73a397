"""Artifacts of introspections: kept beside their cells, read by the report and by figures."""

import json
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from harness.plan import Cell
from harness.store import Store
from harness.types import Artifact

FOLDER = "artifacts"


def keep_artifacts(artifacts: Sequence[Artifact], cell: Cell, store: Store) -> None:
    """Keep the artifacts of a cell, if it has any.

    Raises:
        ValueError: two of one network have the same name and layer.
        StoppedError: nothing can be written.
    """
    names = [(each.name, each.stage, each.network) for each in artifacts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"artifact {twice[0]!r} of layer {twice[1]} was yielded twice")
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


def _artifact(meta: dict[str, object], values: np.ndarray) -> Artifact:
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in meta.items()}
    return Artifact(values=torch.from_numpy(values), **listed)  # type: ignore[arg-type]
