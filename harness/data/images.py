"""Pictures in a folder, and how a picture becomes an input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from harness.data import BrokenSampleError, Data
from harness.data.files import Broken, class_indices, existing, of_files
from harness.data.masks import above_zero, masked, of_folder, of_table
from harness.registry import data_source
from harness.space import InputSpace
from harness.types import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB"}
SIXTEEN_BITS = 65535

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input: resize, centre crop, scale to [0, 1], normalize.

    Attributes:
        mean: of each channel in [0, 1]; as many as the model has input channels, 1 (grey) or 3 (RGB).
        std: its standard deviation.
        resize: the shorter side after resizing; [height, width] to ignore the aspect ratio; None leaves it.
        crop: the side of the square cut from the centre; None leaves it.
        interpolation: of the resizing, always with antialiasing.

    Raises:
        InputError: not 1 or 3 channels, another number in mean than in std, or sizes that are none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, ...] | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) not in MODES or len(self.mean) != len(self.std):
            raise InputError(f"expected mean and std for 1 (grey) or 3 (RGB) channels, got {self.mean} and {self.std}")
        sizes = (*(self.resize or ()), *(() if self.crop is None else (self.crop,)))
        if len(self.resize or ()) > 2 or any(size < 1 for size in sizes):
            raise InputError(
                f"expected resize as a side or [height, width] and crop as a side, got {self.resize} and {self.crop}"
            )

    @property
    def space(self) -> InputSpace:
        """The input space of what it makes."""
        return InputSpace("image", self.mean, self.std)

    def __call__(self, picture: Image.Image) -> Float[Tensor, "c h w"]:
        """The input that a picture becomes."""
        picture = self._framed(_in_mode(picture, MODES[len(self.mean)]), self.interpolation)
        pixels = F.pil_to_tensor(picture).to(torch.float32) / 255
        return F.normalize(pixels, list(self.mean), list(self.std))

    def mask(self, picture: Image.Image) -> Float[Tensor, "1 h w"]:
        """The mask, of zeros and ones, that a picture of a mask becomes, aligned with the input of its picture.

        A position is truth if the pixel of the mask below its centre is above zero: nothing is averaged, so that what
        is thinner than a position may be lost. What `crop` adds around a small picture is no truth.
        """
        return (F.pil_to_tensor(self._framed(above_zero(picture), "nearest")) > 0).to(torch.float32)

    def _framed(self, picture: Image.Image, interpolation: Interpolation) -> Image.Image:
        if self.resize:
            picture = F.resize(picture, list(self.resize), InterpolationMode(interpolation), antialias=True)
        return F.center_crop(picture, [self.crop, self.crop]) if self.crop else picture


@data_source(argument="PATH")
def folder(
    path: str,
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    labels: str = "",
    label: str = "label",
    classes: list[str] | None = None,
    train: str = "",
    held_out: str = "",
    mask_folder: str = "",
    boxes: str = "",
    broken: Broken = "refuse",
    resize: int | list[int] | None = None,
    crop: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Data:
    """Image files in a folder, at any depth; ids are their paths.

    The class is the subfolder, unless `labels` says otherwise. How a picture becomes an input is declared here
    by `resize`, `crop`, `mean` and `std`, or else comes with the weights of the model.

    Where the truth lies is said by `mask_folder` or `boxes`, in pixels of the pictures as they are stored: it is
    resized and cropped with them. It is that of the label, so it says nothing of other explained classes.

    Args:
        path: of the folder.
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        labels: a CSV file with the column `file`, or a regular expression whose first group is the class.
        label: the column of that CSV file with the class.
        classes: names of all classes by index; by default those that occur, sorted.
        train: another folder, with the training samples.
        held_out: a regular expression that the paths of samples to explain match; the others are trained on.
        mask_folder: a folder with a picture for each of these, of the same path up to the extension, which is above
            zero where the truth lies (palette index, grey or one of the colours, and not wholly transparent). Not
            JPEG or WebP, which change the pixels beside an edge.
        boxes: a CSV file with the columns `file`, `x_min`, `y_min`, `x_max`, `y_max`: columns x_min to x_max - 1 from
            the left, which is 0, and rows from the top alike. What is in one of the boxes of a file is truth.
        broken: refuse a file that cannot be read, or has no readable mask where there should be one, or skip it.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: an empty folder, a file without a class, nothing that says how pictures become inputs, a picture
            without a mask, or boxes that are none.
    """
    name = f"folder:{path}"
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, name)
    if mask_folder and boxes:
        raise InputError(f"{name}: mask_folder: {mask_folder!r} stands beside boxes: {boxes!r}; choose one")
    data = of_files(
        "folder",
        path,
        EXTENSIONS,
        prepare.space,
        _decoder(prepare),
        base=base,
        labels=labels,
        label=label,
        classes=classes,
        train=train,
        held_out=held_out,
        broken=broken,
    )
    if not (mask_folder or boxes):
        return data
    if mask_folder:
        truth = of_folder(data.ids, base / mask_folder, name)
    else:
        truth = of_table(data.ids, base / boxes, base / path, name)
    return masked(data, prepare.mask, lambda row: base / path / data.ids[row], truth)


@data_source()
def pictures(
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    files: list[str] | None = None,
    labels: list[int] | list[str] | None = None,
    classes: list[str] | None = None,
    train: str = "",
    broken: Broken = "refuse",
    resize: int | list[int] | None = None,
    crop: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Data:
    """Image files that are named one by one; ids are their paths as they are given.

    Args:
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        files: their paths.
        labels: the class of each, as an index or as one of the names in `classes`; none by default.
        classes: names of all classes by index.
        train: a folder with training samples.
        broken: refuse a file that cannot be read, or skip it.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: no files, one that is not there, another number of labels, or nothing that says how pictures
            become inputs.
    """
    if not files:
        raise InputError("pictures: no files: `files` lists their paths")
    if labels is not None and len(labels) != len(files):
        raise InputError(f"pictures: expected a label for each of the {len(files)} files, got {len(labels)}")
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, "pictures")
    paths = [existing(base / file) for file in files]
    y, names = None, tuple(classes or ())
    if labels is not None:
        y, names = class_indices([str(label) for label in labels], "pictures", classes)
    rest = folder(train, base=base, preprocessing=prepare) if train else None
    return of_paths("pictures", files, paths, prepare, y, names, broken, train=rest)


def of_paths(
    name: str,
    ids: Sequence[str],
    paths: Sequence[Path],
    prepare: Preprocessing,
    labels: Int[Tensor, " n"] | None,
    classes: tuple[str, ...],
    broken: Broken,
    train: Data | None = None,
) -> Data:
    """These picture files as data that are decoded when they are read."""
    decode = _decoder(prepare)
    return Data(name, prepare.space, ids, labels, lambda row: decode(paths[row]), classes, train, broken == "skip")


def declared(
    preprocessing: Preprocessing | None,
    resize: int | list[int] | None,
    crop: int | None,
    mean: list[float] | None,
    std: list[float] | None,
    interpolation: Interpolation,
    name: str,
) -> Preprocessing:
    """The preprocessing that a data entry declares, else that of the weights.

    Raises:
        InputError: neither, or a declaration that stops half-way.
    """
    if mean is not None and std is not None:
        size = (resize,) if isinstance(resize, int) else tuple(resize or ())
        return Preprocessing(tuple(mean), tuple(std), size or None, crop, interpolation)
    if (mean, std, resize, crop, interpolation) != (None, None, None, None, "bilinear"):
        raise InputError(f"{name}: declare mean and std together, with resize and crop where the model needs them")
    if preprocessing is None:
        raise InputError(
            f"{name}: nothing says how a picture becomes an input: declare resize, crop, mean and std as in the "
            "model's training (mean: [0], std: [1] for pixels in [0, 1]), or use weights that bring them"
        )
    return preprocessing


def _decoder(prepare: Preprocessing) -> Callable[[Path], Tensor]:
    def decode(path: Path) -> Tensor:
        try:
            with Image.open(path) as picture:
                picture.load()
                return prepare(picture)
        # Decoders raise many kinds of errors; whichever it is, this file cannot be read.
        except Exception as error:
            raise BrokenSampleError(f"cannot read {str(path)!r}: {error}") from None

    return decode


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture as grey (L) or colour (RGB) of 8 bits; what is transparent is opaque, as in torchvision.

    Raises:
        ValueError: nobody knows which numbers are black and white in it.
    """
    if picture.mode.startswith("I"):
        # Pillow cuts what is above 255 instead of scaling it.
        levels = np.asarray(picture, dtype=np.float64) / SIXTEEN_BITS
        if levels.min() < 0 or levels.max() > 1:
            raise ValueError("its pixels are beyond 16 bits, and nothing says which one is white")
        picture = Image.fromarray((levels * 255).round().astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and nothing says which one is white")
    if "transparency" in picture.info and picture.mode in ("P", "LA", "PA"):
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)
