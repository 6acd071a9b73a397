"""Where in a picture the truth lies: pictures that are masks, and boxes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from harness.data import BrokenSampleError, Data
from harness.data.files import files_below, read_table
from harness.entries import nearest
from harness.types import InputError

LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""What masks may end in, the first that is there counts: JPEG and WebP change the pixels beside an edge."""

TRANSPARENT = ("LA", "PA", "RGBA")
EDGES = ("x_min", "y_min", "x_max", "y_max")

Size = tuple[int, int]
Truth = Callable[[int, Size], Image.Image]
"""Row, width and height of its picture -> a picture of that size, above zero where the truth lies."""


def above_zero(picture: Image.Image) -> Image.Image:
    """White where a mask is above zero: its palette index, its grey, or one of its colours; else black.

    What is wholly transparent is no truth, whatever its colour.
    """
    values = np.asarray(picture)
    seen = values[..., -1:] > 0 if picture.mode in TRANSPARENT else True
    colours = values[..., :-1] if picture.mode in TRANSPARENT else values
    truth = (colours > 0) & seen
    return Image.fromarray((truth.any(2) if truth.ndim == 3 else truth).astype(np.uint8) * 255)


def mask_picture(file: Path, size: Size) -> Image.Image:
    """A picture of a mask.

    Raises:
        ValueError: it cannot be read, its colours say nothing of zero, or it is not of this width and height.
    """
    try:
        with Image.open(file) as mask:
            mask.load()
    # Decoders raise many kinds of errors; whichever it is, this file cannot be read.
    except Exception as error:
        raise ValueError(f"cannot read {str(file)!r}: {error}") from None
    if mask.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"{str(file)!r} is {mask.mode}, where zero is not black: save it as grey or RGB")
    if mask.size != size:
        raise ValueError(
            f"{str(file)!r} has {_pixels(mask.size)} pixels, its picture {_pixels(size)}: masks belong to the pictures "
            "as they are stored, before `resize` and `crop`"
        )
    return mask


def with_boxes(boxes: Float[np.ndarray, "boxes 4"], size: Size) -> Image.Image:
    """White inside at least one of the boxes (x_min, y_min, x_max, y_max), else black.

    A pixel is in a box if its centre is: column $i$ where $x_{min} <= i + 1/2 < x_{max}$. For integers these are the
    columns from x_min, where the picture's first is 0, to x_max - 1.

    Raises:
        ValueError: a box ends before it begins, or lies a pixel or more outside the picture.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = ((low > -1) & (low <= high) & (high < np.array(size) + 1)).all(1)
    if not inside.all():
        box = ", ".join(f"{edge:g}" for edge in boxes[~inside][0])
        raise ValueError(f"the box [{box}] (x_min, y_min, x_max, y_max) is not inside {_pixels(size)} pixels")
    columns, rows = (
        (low[:, axis, None] <= centres) & (centres < high[:, axis, None])
        for axis, centres in enumerate(np.arange(side) + 0.5 for side in size)
    )
    return Image.fromarray((rows.T @ columns).astype(np.uint8) * 255)


def of_folder(ids: Sequence[str], folder: Path, name: str) -> Truth:
    """Masks that are pictures in a folder, each with the path of the picture that it belongs to.

    Raises:
        InputError: no such folder, or no mask for one of the pictures.
    """
    files: dict[str, str] = {}
    for file in sorted(files_below(folder, LOSSLESS, name), key=lambda file: LOSSLESS.index(_suffix(file))):
        files.setdefault(_stem(file), file)
    missing = [each for each in ids if _stem(each) not in files]
    if missing:
        wanted = str(folder / f"{_stem(missing[0])}.png")
        raise InputError(
            f"{name}: no mask for {missing[0]!r} ({len(missing)} pictures lack one): expected {wanted!r}, "
            f"or another of {', '.join(LOSSLESS)}"
        )
    return lambda row, size: mask_picture(folder / files[_stem(ids[row])], size)


def of_table(ids: Sequence[str], table: Path, folder: Path, name: str) -> Truth:
    """Masks that are boxes in a CSV file, `file, x_min, y_min, x_max, y_max`; several rows of a file are all truth.

    Raises:
        InputError: no CSV file with these columns, a box that is none, one of a picture that is not in the folder, or
            none for one of the pictures.
    """
    rows = read_table(table, name, ["file"])
    for column in ("file", *EDGES):
        if column not in rows:
            raise InputError(
                f"{name}: {table.name} has no column {column!r}; {nearest(column, map(str, rows.columns))}"
            )
    edges = rows[list(EDGES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    good = np.isfinite(edges).all(1) & (edges[:, :2] >= 0).all(1) & (edges[:, :2] < edges[:, 2:]).all(1)
    if not good.all():
        row = int((~good).argmax())
        found = ", ".join(f"{edge}={rows[edge].iloc[row]}" for edge in EDGES)
        file = rows["file"].iloc[row]
        raise InputError(
            f"{name}: {table.name}: expected pixels 0 <= x_min < x_max and 0 <= y_min < y_max (the last one is "
            f"outside the box), got {found} for {file!r}"
        )
    boxes = {str(file): edges[where] for file, where in rows.groupby("file").indices.items()}
    known = set(ids)
    strange = [file for file in boxes if file not in known and not (folder / file).is_file()]
    if strange:
        raise InputError(
            f"{name}: {table.name} has a box for {strange[0]!r}, and there is no such picture ({len(strange)} are not "
            "there); paths are relative to the folder of the pictures"
        )
    missing = [each for each in ids if each not in boxes]
    if missing:
        raise InputError(f"{name}: {table.name} has no box for {missing[0]!r} ({len(missing)} pictures lack one)")
    return lambda row, size: with_boxes(boxes[ids[row]], size)


def masked(data: Data, prepare: Callable[[Image.Image], Tensor], file: Callable[[int], Path], truth: Truth) -> Data:
    """These samples with masks.

    A sample whose mask cannot be read is broken itself, so that this comes out, or the sample is skipped, when the
    samples are read for the first time and nothing is computed yet.

    Args:
        data: samples that are pictures.
        prepare: picture of a mask -> mask, aligned with the sample.
        file: row -> the file of its picture.
        truth: where the truth lies in that picture as it is stored.
    """

    def read_mask(row: int) -> Tensor:
        try:
            with Image.open(file(row)) as picture:
                size = picture.size
            return prepare(truth(row, size))
        # As for pictures: whichever error it is, this mask cannot be read.
        except Exception as error:
            raise BrokenSampleError(f"cannot tell where the truth lies in {data.ids[row]!r}: {error}") from None

    def read(row: int) -> Tensor:
        x = data.read(row)
        read_mask(row)
        return x

    return replace(data, read=read, read_mask=read_mask)


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
