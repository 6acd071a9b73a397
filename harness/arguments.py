"""A model and data as they are given on the command line."""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from torch import nn

from harness.catalogue import DATA
from harness.data import images
from harness.data.audio import EXTENSIONS as SOUNDS
from harness.data.images import EXTENSIONS as PICTURES
from harness.places import Place
from harness.registry import nearest
from harness.shapes import guess_shape
from harness.study import ModelEntry, models_of
from harness.subjects import load_source
from harness.types import InputError

LOOKED_AT = 50
"""Pictures whose size is looked at before one is assumed."""


def guess_data(text: str, base: Path) -> str:
    """The source that a bare path stands for: a folder of pictures or recordings, an archive or a table.

    Raises:
        InputError: nothing is there, or nothing says what it is.
    """
    path = base / text
    if not path.exists():
        if ":" not in text and text not in DATA:
            usages = [entry.usage for entry in DATA.values()]
            raise InputError(f"{text}: no such folder or file, and no data are called so; {nearest(text, usages)}")
        return text
    if path.is_file():
        by_suffix = {".npz": "npz", ".csv": "csv"}
        if path.suffix not in by_suffix:
            raise InputError(f"{text}: expected a folder, or a file that ends in {' or '.join(by_suffix)}")
        return f"{by_suffix[path.suffix]}:{text}"
    suffixes = {each.suffix.lower() for each in path.rglob("*") if each.is_file()}
    for scheme, extensions in (("folder", PICTURES), ("audio", SOUNDS)):
        if suffixes & set(extensions):
            return f"{scheme}:{text}"
    raise InputError(f"{text}: no pictures ({', '.join(PICTURES)}) and no recordings ({', '.join(SOUNDS)}) in it")


def entry_of(model: str, data: str | None, weights: str | None, base: Path) -> tuple[ModelEntry, list[str]]:
    """The entry that a model and data on the command line stand for, and what had to be assumed about the data.

    Both are sources as in a study, or YAML mappings such as `{source: folder:photos, resize: 256}`; data may be a
    bare path. Where pictures need a preprocessing and nothing says which, it is assumed and said so.

    Raises:
        InputError: they are no valid entry.
    """
    given = _mapping(model) | ({"weights": weights} if weights else {})
    assumed: list[str] = []
    if data is not None:
        wanted = _mapping(data)
        wanted["source"] = guess_data(str(wanted.get("source")), base)
        given["data"] = wanted
        if wanted["source"].startswith(("folder:", "torchvision:")) and "mean" not in wanted:
            assumed = _assume(given, wanted, base)
    (entry,) = models_of([given], None, Place("arguments"), needs_data=False)
    return entry, assumed


def _mapping(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"source": text}
    try:
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{text}: not a YAML mapping: {error}") from None


def _assume(given: dict[str, Any], wanted: dict[str, Any], base: Path) -> list[str]:
    """Add a preprocessing to the data where the weights bring none: pixels in [0, 1], of the pictures' own size.

    Where they differ in size, that which the model takes.

    Raises:
        InputError: the model takes no pictures, or nothing says a size.
    """
    (entry,) = models_of([{**given, "data": None}], None, Place("arguments"), needs_data=False)
    source = load_source(entry, base)
    if source.preprocessing(entry.weights):
        return []
    network = None if source.shape else source.build((), 0)
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None) if network else None
    side = _common_side(wanted, base)
    if side and not source.shape:
        shape: tuple[int, ...] = (first.in_channels if first else 3, side, side)
    else:
        shape = source.shape or guess_shape(source.build((), 0))
    if len(shape) != 3 or shape[0] not in images.MODES:
        raise InputError(f"{entry.source} takes inputs of shape {list(shape)}, and pictures are [1 or 3, h, w]")
    wanted |= {"resize": shape[1], "crop": shape[1], "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    own = "their own size" if side == shape[1] else "a size that the model takes"
    size = f"{shape[1]} x {shape[2]} pixels, {own}"
    return [f"nothing says how the model was trained: values in [0, 1] are assumed, and {size}"]


def _common_side(wanted: dict[str, Any], base: Path) -> int:
    """The side of the first pictures of a folder if they are squares of one size, else 0."""
    scheme, _, path = str(wanted["source"]).partition(":")
    if scheme != "folder":
        return 0
    sizes = set()
    for file in islice((each for each in (base / path).rglob("*") if each.suffix.lower() in PICTURES), LOOKED_AT):
        with suppress(OSError), Image.open(file) as picture:
            sizes |= set(picture.size)
    return sizes.pop() if len(sizes) == 1 else 0
