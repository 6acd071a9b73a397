"""Where finished cells go: a folder, written atomically, or memory. Nothing finished is computed or lost twice."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from harness.plan import Cell

INFO = b"cell"


@dataclass(frozen=True)
class Part:
    """A finished cell: its rows (none if it is not applicable) and how they came about."""

    rows: pa.Table
    info: Mapping[str, Any]


@runtime_checkable
class Store(Protocol):
    """What the engine needs of a place for results."""

    def info(self, cell: Cell) -> Mapping[str, Any] | None:
        """How a finished cell came about; None if it is not finished."""

    def put(self, cell: Cell, part: Part) -> None:
        """Keep a finished cell, and forget an earlier failure of it."""

    def fail(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """Keep the failure of a cell."""

    def part(self, cell: Cell) -> Part | None:
        """A finished cell; None if it is not finished."""

    def rows(self, cell: Cell, columns: Sequence[str], where: pc.Expression) -> pa.Table | None:
        """These columns of those rows of a finished cell; None if it is not finished."""

    def failure(self, cell: Cell) -> Mapping[str, Any] | None:
        """The failure of a cell; None if it has not failed."""

    def stale(self, cells: set[str]) -> list[str]:
        """The keys of finished cells that are not among these."""


@dataclass
class Memory:
    """A store that lives as long as the process."""

    parts: dict[str, Part] = field(default_factory=dict)
    failures: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def info(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        return self.parts[cell.key].info if cell.key in self.parts else None

    def put(self, cell: Cell, part: Part) -> None:
        """See `Store`."""
        self.parts[cell.key] = part
        self.failures.pop(cell.key, None)

    def fail(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """See `Store`."""
        self.failures[cell.key] = failure

    def part(self, cell: Cell) -> Part | None:
        """See `Store`."""
        return self.parts.get(cell.key)

    def rows(self, cell: Cell, columns: Sequence[str], where: pc.Expression) -> pa.Table | None:
        """See `Store`."""
        return self.parts[cell.key].rows.filter(where).select(columns) if cell.key in self.parts else None

    def failure(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        return self.failures.get(cell.key)

    def stale(self, cells: set[str]) -> list[str]:
        """See `Store`."""
        return sorted(set(self.parts) - cells)


@dataclass(frozen=True)
class Folder:
    """A run folder: `manifest.json`, `cells/<key>.parquet`, `failures/<key>.json`."""

    path: Path

    def info(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        path = self._part(cell)
        return json.loads(pq.read_schema(path).metadata[INFO]) if path.exists() else None

    def put(self, cell: Cell, part: Part) -> None:
        """See `Store`."""
        metadata = {**(part.rows.schema.metadata or {}), INFO: json.dumps(part.info).encode()}
        buffer = pa.BufferOutputStream()
        pq.write_table(part.rows.replace_schema_metadata(metadata), buffer, compression="zstd")
        write_atomically(self._part(cell), buffer.getvalue().to_pybytes())
        self._failure(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """See `Store`."""
        write_atomically(self._failure(cell), json.dumps(failure, indent=1).encode())

    def part(self, cell: Cell) -> Part | None:
        """See `Store`."""
        path = self._part(cell)
        if not path.exists():
            return None
        rows = pq.read_table(path)
        return Part(rows, json.loads(rows.schema.metadata[INFO]))

    def rows(self, cell: Cell, columns: Sequence[str], where: pc.Expression) -> pa.Table | None:
        """See `Store`. What is left out is not kept in memory, and a file without such rows is hardly read."""
        path = self._part(cell)
        return pq.read_table(path, columns=list(columns), filters=where) if path.exists() else None

    def failure(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        path = self._failure(cell)
        return json.loads(path.read_text()) if path.exists() else None

    def stale(self, cells: set[str]) -> list[str]:
        """See `Store`."""
        return sorted(path.stem for path in (self.path / "cells").glob("*.parquet") if path.stem not in cells)

    def write_manifest(self, manifest: Mapping[str, Any], cells: list[Cell]) -> None:
        """What this run consists of, the labels of the cells among it, and the resolved study for people."""
        write_atomically(self.path / "study.yaml", yaml.safe_dump(manifest["study"], sort_keys=False).encode())
        content = {**manifest, "cells": [asdict(cell) for cell in cells]}
        write_atomically(self.path / "manifest.json", json.dumps(content, indent=1).encode())

    def read_manifest(self) -> tuple[dict[str, Any], list[Cell]] | None:
        """The manifest and its cells; None if the folder holds no run."""
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        return content, [Cell(**cell) for cell in content.pop("cells")]

    def _part(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.key}.parquet"

    def _failure(self, cell: Cell) -> Path:
        return self.path / "failures" / f"{cell.key}.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there, also after a power cut; an interrupt leaves no scratch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
