"""The datasets of torchvision."""

from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor

from harness.data import BrokenSampleError, Data
from harness.data.files import Broken
from harness.data.images import Interpolation, Preprocessing, declared
from harness.entries import nearest
from harness.registry import data_source
from harness.types import InputError


@data_source(argument="NAME")
def _torchvision(
    dataset: str,
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    root: str = "data",
    download: bool = False,
    split: str = "test",
    train_split: str = "train",
    broken: Broken = "refuse",
    resize: int | list[int] | None = None,
    crop: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Data:
    """A dataset of torchvision by its class name, such as CIFAR10; the test part is explained.

    Args:
        dataset: the name of the class in `torchvision.datasets`.
        base: what `root` is relative to.
        preprocessing: that of the model's weights.
        root: the folder with the data.
        download: whether they may be downloaded into it.
        split: which part is explained; `test` or `train` where the dataset has no other names for its parts.
        train_split: which part is trained on; none if it is the explained one.
        broken: refuse a picture that cannot be read, or skip it.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: no such dataset, its files are not there, or it is not one of pictures with a class each.
    """
    name = f"torchvision:{dataset}"
    every = {each: getattr(torchvision.datasets, each) for each in torchvision.datasets.__all__}
    known = {each: kind for each, kind in every.items() if _can_be_had(kind)}
    if dataset not in known:
        raise InputError(f"{name}: no dataset of torchvision is called so; {nearest(dataset, known)}")
    kind = known[dataset]
    parameters = signature(kind).parameters
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, name)

    def part(which: str) -> Any:
        options: dict[str, Any] = {"root": str(base / root)}
        if "split" in parameters:
            options["split"] = which
        elif which not in ("test", "train"):
            raise InputError(f"{name}: the parts of this dataset are test and train, got {which!r}")
        elif "train" in parameters:
            options["train"] = which == "train"
        if "download" in parameters:
            options["download"] = download
        try:
            return kind(**options)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            remedy = "; `download: true` lets it be fetched into `root`" if options.get("download") is False else ""
            raise InputError(f"{name}: cannot be read from {str(base / root)!r}: {error}{remedy}") from None

    explained = part(split)
    has_parts = {"train", "split"} & set(parameters) and split != train_split
    train = _of_dataset(f"{name}/{train_split}", part(train_split), prepare, broken, None) if has_parts else None
    return _of_dataset(name, explained, prepare, broken, train)


def _can_be_had(kind: Any) -> bool:
    """Whether it is a dataset in a folder that needs no more than a name."""
    if not isinstance(kind, type) or kind is torchvision.datasets.VisionDataset:
        return False
    parameters = signature(kind).parameters
    needed = {each for each, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return "root" in parameters and needed <= {"root", "split"}


def _of_dataset(name: str, samples: Any, prepare: Preprocessing, broken: Broken, train: Data | None) -> Data:
    # Most datasets know their labels without decoding a picture.
    labels = next((getattr(samples, each) for each in ("targets", "labels", "_labels") if hasattr(samples, each)), None)
    try:
        labels = torch.as_tensor([sample[1] for sample in samples] if labels is None else labels)
    except Exception as error:
        raise InputError(f"{name}: expected a class for each picture: {error}") from None
    if labels.shape != (len(samples),) or labels.is_floating_point():
        raise InputError(f"{name}: expected a class for each picture, got {labels.dtype} {list(labels.shape)}")
    classes = tuple(map(str, getattr(samples, "classes", ())))

    def read(row: int) -> Tensor:
        try:
            picture = samples[row][0]
            if not isinstance(picture, Image.Image):
                raise TypeError(f"expected a picture, got {type(picture).__name__}")
            return prepare(picture)
        # Decoders raise many kinds of errors; whichever it is, this sample cannot be read.
        except Exception as error:
            raise BrokenSampleError(f"cannot read {ids[row]!r}: {error}") from None

    ids = [f"{name}/{row}" for row in range(len(samples))]
    return Data(name, prepare.space, ids, labels.long(), read, classes, train, broken == "skip")
