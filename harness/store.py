"""Where finished cells go: a folder, written atomically, or memory. Nothing finished is computed or lost twice."""

import errno
import io
import json
import os
import secrets
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from harness.plan import Cell
from harness.seals import intact, sealed
from harness.types import Artifact, InputError, StoppedError

try:
    import fcntl
except ImportError:  # where there is no such thing as a lock on a folder
    fcntl = None  # type: ignore[assignment]

SCRATCH = ".scratch"
SMALL = 2**17
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE)
INFO = b"cell"


@dataclass(frozen=True)
class Part:
    """A finished cell: its rows (none if it is not applicable) and how they came about.

    Its artifacts are written beside it and read for themselves (`harness.artifacts`).
    """

    rows: pa.Table
    info: Mapping[str, Any]
    artifacts: tuple[Artifact, ...] = ()


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

    def put_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays beside the cells, under a name such as `maps/mnist-cnn/gradient-0`."""

    def arrays(self, name: str, *wanted: str) -> Mapping[str, np.ndarray] | None:
        """The arrays of this name, or those that are wanted of them; None if there are none."""


@dataclass
class Memory:
    """A store that lives as long as the process."""

    parts: dict[str, Part] = field(default_factory=dict)
    failures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    kept: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

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

    def put_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Store`."""
        self.kept[name] = arrays

    def arrays(self, name: str, *wanted: str) -> Mapping[str, np.ndarray] | None:
        """See `Store`."""
        return self.kept.get(name)


@dataclass(frozen=True)
class Folder:
    """A run folder: `manifest.json`, `cells/<key>.parquet`, `failures/<key>.json`, arrays such as `maps/*/*.npz`.

    A part that is torn or was changed is moved to `damaged`, with a warning, and counts as not finished.
    """

    path: Path
    _intact: set[str] = field(default_factory=set, compare=False, repr=False)

    def info(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        return json.loads(pq.read_schema(self._part(cell)).metadata[INFO]) if self._finished(cell) else None

    def put(self, cell: Cell, part: Part) -> None:
        """See `Store`."""
        metadata = {**(part.rows.schema.metadata or {}), INFO: json.dumps(part.info).encode()}
        write_atomically(self._part(cell), sealed(part.rows.replace_schema_metadata(metadata)))
        self._intact.add(cell.key)
        self._failure(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, failure: Mapping[str, Any]) -> None:
        """See `Store`."""
        write_atomically(self._failure(cell), json.dumps(failure, indent=1).encode())

    def part(self, cell: Cell) -> Part | None:
        """See `Store`."""
        if not self._finished(cell):
            return None
        rows = pq.read_table(self._part(cell))
        return Part(rows, json.loads(rows.schema.metadata[INFO]))

    def rows(self, cell: Cell, columns: Sequence[str], where: pc.Expression) -> pa.Table | None:
        """See `Store`. What is left out is not kept in memory."""
        if not self._finished(cell):
            return None
        path = self._part(cell)
        if path.stat().st_size < SMALL:
            # To share a small file out among threads takes longer than to read it.
            return pq.ParquetFile(path).read(use_threads=False).filter(where).select(list(columns))
        return pq.read_table(path, columns=list(columns), filters=where)

    def failure(self, cell: Cell) -> Mapping[str, Any] | None:
        """See `Store`."""
        path = self._failure(cell)
        return json.loads(path.read_text()) if path.exists() else None

    def stale(self, cells: set[str]) -> list[str]:
        """See `Store`."""
        return sorted(path.stem for path in (self.path / "cells").glob("*.parquet") if path.stem not in cells)

    def put_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """See `Store`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **dict[str, Any](arrays))
        write_atomically(self.path / f"{name}.npz", buffer.getvalue())

    def arrays(self, name: str, *wanted: str) -> Mapping[str, np.ndarray] | None:
        """See `Store`. Every array in such a file has a checksum."""
        path = self.path / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return {each: file[each] for each in wanted or file.files}
        except (BadZipFile, EOFError, OSError, ValueError, KeyError, zlib.error):
            self._set_aside(path)
            return None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keep other runs of this machine out of the folder, and sweep away what a killed one left half written.

        Raises:
            InputError: another run is writing there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            if fcntl:
                _lock(handle, self.path)
                for scratch in self.path.rglob(f".*{SCRATCH}"):
                    scratch.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def write_manifest(self, manifest: Mapping[str, Any], cells: list[Cell]) -> None:
        """What this run consists of, the labels of the cells among it, and the resolved study for people."""
        write_atomically(self.path / "study.yaml", yaml.safe_dump(manifest["study"], sort_keys=False).encode())
        content = {**manifest, "cells": [asdict(cell) for cell in cells]}
        write_atomically(self.path / "manifest.json", json.dumps(content, indent=1).encode())

    def read_manifest(self) -> tuple[dict[str, Any], list[Cell]] | None:
        """The manifest and its cells; None if the folder holds no run.

        Raises:
            InputError: the manifest is damaged.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            return content, [Cell(**cell) for cell in content.pop("cells")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged ({error}): remove it and run the study again, finished cells stay"
            ) from error

    def _finished(self, cell: Cell) -> bool:
        """Whether there is a part of this cell, and whether it is what was written, which is looked at once."""
        path = self._part(cell)
        if not path.exists():
            return False
        if cell.key not in self._intact:
            if not intact(path.read_bytes()):
                self._set_aside(path)
                return False
            self._intact.add(cell.key)
        return True

    def _set_aside(self, path: Path) -> None:
        damaged = self.path / "damaged"
        damaged.mkdir(exist_ok=True)
        path.replace(damaged / path.name)
        warnings.warn(
            f"{path} is torn or was changed after it was written: moved to {damaged}, the next run computes it again",
            stacklevel=4,
        )

    def _part(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.key}.parquet"

    def _failure(self, cell: Cell) -> Path:
        return self.path / "failures" / f"{cell.key}.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there, also after a power cut; an interrupt leaves no scratch.

    Raises:
        StoppedError: there is no room, or no right to write.
    """
    # Unlike that of every other process, on whatever machine.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SCRATCH}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        _settle(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of a disk, while the block writes there, into one that says what to do.

    Raises:
        StoppedError: there is no room, or no right to write.
        OSError: any other, as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise StoppedError(
            f"cannot write {path} ({error.strerror}): what is finished is kept; make room there and run the same "
            "command again"
        ) from error


def _lock(handle: int, folder: Path) -> None:
    """Lock a folder as long as it is open: the lock is gone with the process, whatever happens to it.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run is writing into {folder}: wait for it, or use another --out") from None
    except OSError:
        return  # a file system without locks


def _settle(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do so."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
