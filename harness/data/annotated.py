"""Pictures whose objects are annotated, Pascal VOC and COCO: a sample for each class that is in a picture."""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageChops
from torchvision.datasets import CocoDetection, VOCDetection, VOCSegmentation
from torchvision.datasets.voc import ET_parse

from harness.data import Data
from harness.data.files import Broken, existing
from harness.data.images import Interpolation, Preprocessing, declared, of_paths
from harness.data.masks import Size, mask_picture, masked, with_boxes
from harness.entries import nearest
from harness.registry import data_source
from harness.types import InputError

VOC = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)
"""The classes of Pascal VOC by index; that of a pixel in its segmentations is one higher, as 0 is background."""

NAMED = 5

Kind = Literal["boxes", "segmentation"]


@dataclass(frozen=True)
class Annotated:
    """A picture, and where in it the objects of each class are.

    Attributes:
        path: below the folder of the pictures, as in the ids of samples.
        file: where it is.
        size: its width and height by the annotation; None if that does not say it.
        objects: name of the class -> size -> a picture of that size, above zero where objects of the class are.
    """

    path: str
    file: Path
    size: Size | None
    objects: Mapping[str, Callable[[Size], Image.Image]]


@data_source(argument="PATH")
def voc(
    path: str,
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    truth: Kind = "boxes",
    year: int = 2012,
    split: str = "val",
    difficult: bool = False,
    download: bool = False,
    classes: list[str] | None = None,
    as_class: dict[str, int] | None = None,
    broken: Broken = "refuse",
    resize: int | list[int] | None = None,
    crop: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Data:
    """Pascal VOC in the folder with `VOCdevkit`: a sample for each class in a picture, with a mask of its objects.

    Ids are `2007_000027.jpg#person`. The mask is that of the label, so explain it: `target: label` or
    `select: correct`. Boxes begin and end with the pixels that VOC names, which it counts from 1. In a segmentation
    the border of objects (index 255) is no truth.

    Args:
        path: of the folder.
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        truth: the boxes of the objects, or their pixels, for the pictures that have a segmentation.
        year: of the challenge.
        split: train, val, trainval, or test in 2007.
        difficult: whether a class is explained in a picture where all its objects are marked as difficult; where one
            is not, the mask is of all. A segmentation leaves difficult objects out.
        download: whether it may be downloaded into the folder.
        classes: the names of all outputs of the model by index; by default the twenty of VOC in alphabetical order.
        as_class: name in VOC -> index of the output that means it; other names are left out with a warning.
        broken: refuse a picture that cannot be read, or whose mask cannot, or skip it.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: it is not there, an annotation is none, or no class that it names is an output.
    """
    name = f"voc:{path}"
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, name)
    kind = VOCDetection if truth == "boxes" else VOCSegmentation
    try:
        dataset = _voc(kind, {"root": str(base / path), "year": str(year), "image_set": split}, download)
    except (RuntimeError, OSError, ValueError) as error:
        hopeless = download or isinstance(error, ValueError)
        remedy = "" if hopeless else "; `download: true` lets it be fetched"
        raise InputError(f"{name}: no VOCdevkit that can be read in {str(base / path)!r}: {error}{remedy}") from None
    pictures = []
    for picture, target in zip(map(Path, dataset.images), map(Path, dataset.targets), strict=True):
        annotation = target.parents[1] / "Annotations" / f"{picture.stem}.xml"
        pictures.append(_of_xml(annotation, picture, None if truth == "boxes" else target, difficult, name))
    return _of_pictures(name, pictures, prepare, VOC, classes, as_class, broken)


def _voc(kind: Callable[..., Any], options: Mapping[str, str], download: bool) -> Any:
    try:
        return kind(**options)
    except (RuntimeError, OSError):
        if not download:
            raise
        # Only now, because torchvision would unpack the whole archive again where it has been unpacked.
        return kind(**options, download=True)


def _of_xml(annotation: Path, picture: Path, segmentation: Path | None, difficult: bool, name: str) -> Annotated:
    """A picture of VOC by its annotation.

    Raises:
        InputError: the annotation is not there, or none of VOC.
    """
    file = existing(annotation)
    try:
        tree = VOCDetection.parse_voc_xml(ET_parse(file).getroot())["annotation"]
        boxes: dict[str, list[list[float]]] = {}
        plain = set()
        for each in tree.get("object", []):
            box = [float(each["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(each["name"], []).append([box[0] - 1, box[1] - 1, *box[2:]])
            if each.get("difficult", "0") == "0":
                plain.add(each["name"])
        size = (int(tree["size"]["width"]), int(tree["size"]["height"])) if "size" in tree else None
    # A missing key, another kind of node, a word for a number or no XML at all: in each case it is none of VOC.
    except (SyntaxError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: {str(annotation)!r} is no annotation of Pascal VOC: {reason}") from None
    objects: dict[str, Callable[[Size], Image.Image]] = {}
    for each in boxes if difficult else plain:
        if segmentation is None:
            objects[each] = partial(with_boxes, np.array(boxes[each]))
        elif each in VOC:
            objects[each] = partial(_segment, segmentation, 1 + VOC.index(each))
        else:
            raise InputError(f"{name}: {str(annotation)!r}: nothing says which pixels of a segmentation are {each!r}")
    return Annotated(picture.name, picture, size, objects)


def _segment(file: Path, index: int, size: Size) -> Image.Image:
    indices = np.asarray(mask_picture(file, size))
    if indices.ndim != 2:
        raise ValueError(f"{str(file)!r} has colours instead of indices of classes")
    return Image.fromarray((indices == index).astype(np.uint8) * 255)


@data_source(argument="PATH")
def coco(
    path: str,
    *,
    base: Path,
    preprocessing: Preprocessing | None,
    pictures: str = "",
    truth: Kind = "boxes",
    classes: list[str] | None = None,
    as_class: dict[str, int] | None = None,
    broken: Broken = "refuse",
    resize: int | list[int] | None = None,
    crop: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    interpolation: Interpolation = "bilinear",
) -> Data:
    """COCO by its file of annotations: a sample for each class in a picture, with a mask of its objects; extra `coco`.

    Ids are `000000000139.jpg#person`. The mask is that of the label, so explain it: `target: label` or
    `select: correct`. A class of which a picture also shows a crowd (`iscrowd`) is left out there, as nothing says
    where in it the objects are.

    Args:
        path: of the annotations, such as annotations/instances_val2017.json.
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        pictures: the folder with the pictures, such as val2017.
        truth: the boxes of the objects, or their outlines.
        classes: the names of all outputs of the model by index; by default the categories in the order of their ids.
        as_class: name of a category -> index of the output that means it; others are left out with a warning.
        broken: refuse a picture that cannot be read, or whose mask cannot, or skip it.
        resize: the shorter side, or [height, width].
        crop: the side of the square cut from the centre.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        interpolation: of the resizing.

    Raises:
        InputError: pycocotools are not installed, a file is not there or holds no annotations of COCO, or no category
            is an output.
    """
    name = f"coco:{path}"
    if importlib.util.find_spec("pycocotools") is None:
        raise InputError(f"{name}: pycocotools are not installed: pip install 'attribution-harness[coco]'")
    prepare = declared(preprocessing, resize, crop, mean, std, interpolation, name)
    folder = base / pictures
    if not pictures or not folder.is_dir():
        raise InputError(f"{name}: no folder {pictures!r}: `pictures` says where the pictures are, such as val2017")
    file = existing(base / path)
    try:
        with redirect_stdout(StringIO()):  # pycocotools print what they are about to do
            index = CocoDetection(str(folder), str(file)).coco
        categories = {each: str(index.cats[each]["name"]) for each in sorted(index.cats)}
        found = [_of_record(index, index.imgs[each], folder, categories, truth) for each in sorted(index.imgs)]
    # They check nothing, so that a file of another kind fails in many ways.
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: no annotations of objects as COCO writes them: {reason}") from None
    return _of_pictures(name, found, prepare, tuple(categories.values()), classes, as_class, broken)


def _of_record(
    index: Any, record: Mapping[str, Any], folder: Path, categories: Mapping[int, str], truth: Kind
) -> Annotated:
    """A picture of COCO by its record.

    Raises:
        ValueError: an object has no outline where outlines are asked for, or something else than four edges.
    """
    by_class: dict[str, list[Any]] = {}
    crowds = set()
    for each in index.imgToAnns.get(record["id"], []):
        by_class.setdefault(categories[each["category_id"]], []).append(each)
        if each.get("iscrowd"):
            crowds.add(categories[each["category_id"]])
    objects: dict[str, Callable[[Size], Image.Image]] = {}
    for name in by_class.keys() - crowds:
        if truth == "segmentation":
            lacking = [each["id"] for each in by_class[name] if not each.get("segmentation")]
            if lacking:
                raise ValueError(f"the object {lacking[0]} has no segmentation; `truth: boxes` does without")
            objects[name] = partial(_outlined, index, by_class[name])
        else:
            corners = np.array([each["bbox"] for each in by_class[name]], dtype=np.float64).reshape(-1, 2, 2)
            objects[name] = partial(with_boxes, corners.cumsum(1).reshape(-1, 4))
    size = (int(record["width"]), int(record["height"]))
    return Annotated(record["file_name"], folder / record["file_name"], size, objects)


def _outlined(index: Any, objects: Iterable[Mapping[str, Any]], _size: Size) -> Image.Image:
    return Image.fromarray(np.maximum.reduce([index.annToMask(each) for each in objects]) * 255)


def _of_pictures(
    name: str,
    pictures: Sequence[Annotated],
    prepare: Preprocessing,
    own: Sequence[str],
    classes: Sequence[str] | None,
    as_class: Mapping[str, int] | None,
    broken: Broken,
) -> Data:
    """A sample for each picture and output of the model that its objects mean.

    Raises:
        InputError: no class of an object is an output.
    """
    names = tuple(classes or (own if as_class is None else ()))
    found = Counter(each for picture in pictures for each in picture.objects)
    outputs = _outputs(found, own, names, as_class, name)
    samples = []
    for picture in pictures:
        meant: dict[int, list[str]] = {}
        for each in sorted(picture.objects.keys() & outputs.keys()):
            meant.setdefault(outputs[each], []).append(each)
        samples += [(picture, output, meant[output]) for output in meant]

    def truth(row: int, size: Size) -> Image.Image:
        picture, _, objects = samples[row]
        if picture.size not in (None, size):
            raise ValueError(f"{str(picture.file)!r} has {size} pixels, and its annotation is of {picture.size}")
        where = [picture.objects[each](size) for each in objects]
        for other in where[1:]:
            where[0] = ImageChops.lighter(where[0], other)
        if where[0].getbbox() is None:
            raise ValueError(f"no pixel of {str(picture.file)!r} is {' or '.join(objects)} by its annotation")
        return where[0]

    ids = [f"{picture.path}#{'+'.join(objects)}" for picture, _, objects in samples]
    files = [picture.file for picture, _, _ in samples]
    labels = torch.tensor([output for _, output, _ in samples], dtype=torch.int64)
    data = of_paths(name, ids, files, prepare, labels, names, broken)
    return masked(data, prepare.mask, files.__getitem__, truth)


def _outputs(
    found: Mapping[str, int],
    own: Sequence[str],
    classes: Sequence[str],
    as_class: Mapping[str, int] | None,
    name: str,
) -> dict[str, int]:
    """The index of the output that each class of an object means; what means none is left out with a warning.

    Args:
        found: class -> in how many pictures it is.
        own: names of classes that the data know.
        classes: names of all outputs.
        as_class: class -> index; by default that of the output of the same name.
        name: of the data, for messages.

    Raises:
        InputError: none is left, or a name or an index does not exist or stands for two.
    """
    known = {*found, *own}
    for each, index in (as_class or {}).items():
        if each not in known:
            raise InputError(f"{name}: as_class: no object is called {each!r}; {nearest(each, known)}")
        if index < 0 or (classes and index >= len(classes)):
            raise InputError(f"{name}: as_class: {each!r} means the output {index}, which does not exist")
    for each in sorted(found):
        if as_class is None and classes.count(each) > 1:
            raise InputError(
                f"{name}: the class {each!r} stands twice in `classes`: `as_class` says which one is meant"
            )
    every = {each: index for index, each in enumerate(classes)} if as_class is None else as_class
    meant = {each: every[each] for each in found if each in every}
    others = {each: found[each] for each in sorted(found) if each not in every}
    shown = ", ".join([f"{each} ({count})" for each, count in others.items()][:NAMED] + ["..."] * (len(others) > NAMED))
    if not meant:
        what = f"of {shown}, none is called like one" if others else "there are no objects"
        raise InputError(f"{name}: no object of a class of the model: {what}; `as_class` says which output each means")
    if others:
        pairs = f"{sum(others.values())} of {sum(found.values())} pairs of a picture and a class"
        warnings.warn(
            f"{name}: {pairs} are left out, because no output means them: {shown}; `as_class` says which one does",
            stacklevel=2,
        )
    return meant
