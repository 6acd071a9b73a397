"""Arrays of NumPy archives, mapped from disk rather than loaded."""

import tempfile
import zipfile
from pathlib import Path
from shutil import copyfileobj

import numpy as np
import torch
from numpy.lib import format as npy

from harness.data import Data
from harness.data.files import existing
from harness.entries import nearest
from harness.registry import data_source
from harness.space import InputSpace, Kind
from harness.types import InputError

KINDS: dict[int, Kind] = {2: "table", 3: "signal", 4: "image"}
LOCAL_HEADER = 30


@data_source(argument="PATH")
def npz(
    path: str,
    *,
    base: Path,
    x: str = "x",
    y: str = "y",
    masks: str = "masks",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Data:
    """Arrays of a NumPy archive: samples `x` as the model takes them, labels `y` where there are any.

    `masks`, where there are any, are above zero where the truth lies: [n,h,w], [n,t] or [n,f].
    `train_x` and `train_y` beside them are the training part. Pixels are `x * std + mean`; without `mean` and
    `std` nothing is known about them, and fills that need pixels are refused.

    Raises:
        InputError: no such file or array, or arrays of Python objects, which could run code and are not opened.
    """
    file, name = existing(base / path), f"npz:{path}"
    wanted = (x, y, masks, f"train_{x}", f"train_{y}")
    try:
        with zipfile.ZipFile(file) as archive:
            members = {each.removesuffix(".npy"): each for each in archive.namelist()}
            arrays = {each: _mapped(archive, members[each], file) for each in wanted if each in members}
    # Archives and arrays break in many ways; whichever it is, this file cannot be read.
    except Exception as error:
        raise InputError(f"{name}: no NumPy archive of numbers (np.savez makes one): {error}") from None
    if x not in arrays:
        raise InputError(f"{name}: no array {x!r}; {nearest(x, members)}")
    if arrays[x].ndim not in KINDS:
        raise InputError(f"{name}: expected {x!r} of shape [n,c,h,w], [n,c,t] or [n,f], got {list(arrays[x].shape)}")
    kind = KINDS[arrays[x].ndim]
    space = InputSpace(kind, tuple(mean) if mean else None, tuple(std) if std else None, low, high)
    train = None
    if f"train_{x}" in arrays:
        train = _of_array(f"{path}/train", arrays[f"train_{x}"], arrays.get(f"train_{y}"), space, None)
        if arrays[f"train_{x}"].shape[1:] != arrays[x].shape[1:]:
            shapes = [list(arrays[each].shape) for each in (x, f"train_{x}")]
            raise InputError(f"{name}: {x!r} and 'train_{x}' hold samples of different shapes: {shapes}")
    return _of_array(path, arrays[x], arrays.get(y), space, train, arrays.get(masks))


def _of_array(
    path: str,
    x: np.ndarray,
    y: np.ndarray | None,
    space: InputSpace,
    train: Data | None,
    masks: np.ndarray | None = None,
) -> Data:
    if x.dtype.kind not in "biuf" or 0 in x.shape:
        raise InputError(f"npz:{path}: expected samples that are real numbers, got {x.dtype} of shape {list(x.shape)}")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iu"):
        raise InputError(f"npz:{path}: expected {len(x)} integer labels, got {y.dtype} of shape {list(y.shape)}")
    one_channel = (len(x), *x.shape[2:]) if x.ndim > 2 else x.shape
    if masks is not None and (masks.shape != one_channel or masks.dtype.kind not in "biuf"):
        raise InputError(f"npz:{path}: expected masks of shape {list(one_channel)}, got {list(masks.shape)}")
    labels = None if y is None else torch.from_numpy(y.astype(np.int64))

    def read(row: int) -> torch.Tensor:
        return torch.from_numpy(np.array(x[row], dtype=np.float64 if x.dtype == np.float64 else np.float32))

    def read_mask(row: int) -> torch.Tensor:
        assert masks is not None
        mask = torch.from_numpy(np.array(masks[row] > 0, dtype=np.float32))
        return mask[None] if x.ndim > 2 else mask

    ids = [f"{path}/{row}" for row in range(len(x))]
    name, masked = f"npz:{path}", None if masks is None else read_mask
    return Data(name, space, ids, labels, read, train=train, read_mask=masked)


def _mapped(archive: zipfile.ZipFile, member: str, path: Path) -> np.ndarray:
    """An array of the archive without its contents in memory.

    Raises:
        ValueError: it holds Python objects, or is no array.
    """
    info = archive.getinfo(member)
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        offset = stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{member} holds Python objects, which are not opened because they could run code")
        if 0 in shape:
            return np.zeros(shape, dtype)
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(info.header_offset)
                header = file.read(LOCAL_HEADER)
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            offset += info.header_offset + LOCAL_HEADER + lengths
            return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
        # What is compressed cannot be mapped, so it is unpacked into a file that vanishes with the process.
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (the map keeps it open)
        copyfileobj(stream, unpacked)
        return np.memmap(unpacked, dtype, "r", 0, shape, "F" if fortran else "C")
