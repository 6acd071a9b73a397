"""The datasets of torchvision."""

from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torchvision

from harness.data import Data
from harness.data.files import class_indices
from harness.data.images import Interpolation, Preprocessing, declared
from harness.registry import data_source, nearest
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
        split: which part is explained, where a dataset has named parts.
        train_split: which part is trained on.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: no such dataset, or its files are not there.
    """
    name = f"torchvision:{dataset}"
    every = {each: getattr(torchvision.datasets, each) for each in torchvision.datasets.__all__}
    known = {each: kind for each, kind in every.items() if "root" in signature(kind).parameters}
    if dataset not in known:
        raise InputError(f"{name}: no dataset of torchvision is called so; {nearest(dataset, known)}")
    kind = known[dataset]
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, name)

    def part(held_out: bool) -> Any:
        parameters = signature(kind).parameters
        options: dict[str, Any] = {"root": str(base / root)}
        if "train" in parameters:
            options["train"] = not held_out
        elif "split" in parameters:
            options["split"] = split if held_out else train_split
        if "download" in parameters:
            options["download"] = download
        try:
            return kind(**options)
        except (RuntimeError, OSError, ValueError) as error:
            remedy = "" if download else "; `download: true` lets it be fetched into `root`"
            raise InputError(f"{name}: cannot be read from {str(base / root)!r}: {error}{remedy}") from None

    has_parts = {"train", "split"} & set(signature(kind).parameters)
    train = _of_dataset(f"{name}/{train_split}", part(False), prepare, None) if has_parts else None
    return _of_dataset(name, part(True), prepare, train)


def _of_dataset(name: str, samples: Any, prepare: Preprocessing, train: Data | None) -> Data:
    # Most datasets know their labels without decoding a picture.
    labels = next((getattr(samples, each) for each in ("targets", "labels", "_labels") if hasattr(samples, each)), None)
    labels = torch.tensor([sample[1] for sample in samples]) if labels is None else labels
    y, classes = class_indices(torch.as_tensor(labels).tolist(), name)
    classes = tuple(map(str, getattr(samples, "classes", classes)))
    ids = [f"{name}/{row}" for row in range(len(samples))]
    return Data(name, prepare.space, ids, y, lambda row: prepare(samples[row][0]), classes, train)
