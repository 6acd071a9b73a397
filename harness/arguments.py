"""A model and data as they are given on the command line."""

from collections.abc import Iterable, Sequence
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
from harness.data.files import existing
from harness.data.images import EXTENSIONS as PICTURES
from harness.entries import nearest
from harness.model_entries import ModelEntry, models_of
from harness.places import Place
from harness.shapes import guess_shape
from harness.subjects import Target, load_source
from harness.types import InputError

ARCHIVES = {".npz": "npz", ".csv": "csv"}
"""Suffix -> the data source of such files."""

POLICIES: tuple[Target, ...] = ("predicted", "label", "runner_up")

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
        if path.suffix not in ARCHIVES:
            raise InputError(f"{text}: expected a folder, or a file that ends in {' or '.join(ARCHIVES)}")
        return f"{ARCHIVES[path.suffix]}:{text}"
    suffixes = {each.suffix.lower() for each in path.rglob("*") if each.is_file()}
    for scheme, extensions in (("folder", PICTURES), ("audio", SOUNDS)):
        if suffixes & set(extensions):
            return f"{scheme}:{text}"
    raise InputError(f"{text}: no pictures ({', '.join(PICTURES)}) and no recordings ({', '.join(SOUNDS)}) in it")


def data_of_images(images: Sequence[str], options: str | None, base: Path) -> dict[str, Any] | None:
    """The data entry that pictures, or one data source, on the command line stand for; None if nothing is named.

    Args:
        images: paths of pictures, or one data source as in `entry_of`.
        options: a YAML mapping of what else the data entry says, such as how pictures become inputs.
        base: what paths are relative to.

    Raises:
        InputError: neither pictures nor one data source, one that cannot be opened, or options of nothing.
    """
    more = _mapping(options) if options else {}
    others = [text for text in images if not _is_picture(text, base)]
    if images and not others:
        for text in images:
            _check_picture(text, base)
        return {"source": "pictures", "files": list(dict.fromkeys(images)), **more}
    if len(images) > 1:
        raise InputError(f"expected pictures, or one data source alone: {others[0]!r} is no picture")
    if images:
        return {**_mapping(images[0]), **more}
    if more and "source" not in more:
        raise InputError(f"options of which data? Name pictures or data after the model, or a `source` in {options}")
    return more or None


def _is_picture(text: str, base: Path) -> bool:
    suffix = Path(text).suffix.lower()
    return suffix in PICTURES or ((base / text).is_file() and suffix not in (*ARCHIVES, *SOUNDS))


def _check_picture(text: str, base: Path) -> None:
    try:
        with Image.open(existing(base / text)):
            pass
    except OSError as error:
        raise InputError(f"cannot read {text!r}: {error}") from None


def method_entries(texts: Sequence[str]) -> list[str | dict[str, Any]]:
    """The method entries that were named on the command line: with commas between them, or YAML mappings."""
    entries: list[str | dict[str, Any]] = []
    for text in texts:
        if text.lstrip().startswith("{"):
            entries.append(_mapping(text))
        else:
            entries += [name.strip() for name in text.split(",") if name.strip()]
    return entries


def target_of(text: str) -> Target:
    """The explained class as a policy, or as an index.

    Raises:
        InputError: neither.
    """
    if text in POLICIES:
        return POLICIES[POLICIES.index(text)]
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--target is predicted, label, runner_up or a class index, got {text!r}") from None


def entry_of(
    model: str, data: str | dict[str, Any] | None, weights: str | None, base: Path
) -> tuple[ModelEntry, list[str]]:
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
        if wanted["source"].partition(":")[0] in ("folder", "pictures", "torchvision") and "mean" not in wanted:
            assumed = _assume(given, wanted, base)
    (entry,) = models_of([given], None, Place("arguments"), needs_data=False)
    return entry, assumed


def _mapping(text: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(text, dict):
        return dict(text)
    if not text.lstrip().startswith("{"):
        return {"source": text}
    try:
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{text}: not a YAML mapping: {error}") from None


def _assume(given: dict[str, Any], wanted: dict[str, Any], base: Path) -> list[str]:
    """Add a preprocessing to the data where neither they nor the weights say one; returns what was assumed.

    That of weights that are published for this network, else pixels in [0, 1] of the pictures' own size, else of a
    size that the model takes. What the data do say stays.

    Raises:
        InputError: the model takes no pictures, or nothing says a size.
    """
    (entry,) = models_of([{**given, "data": None}], None, Place("arguments"), needs_data=False)
    source = load_source(entry, base)
    if source.preprocessing(entry.weights):
        return []
    known = ((name, each.preprocessing) for name, each in source.pretrained.items() if each.preprocessing)
    published = next(known, None)
    if published:
        name, usual = published
        wanted |= {**_options_of(usual), **wanted}
        said = ", ".join(f"{key} {wanted[key]}" for key in ("resize", "crop", "mean", "std"))
        return [f"nothing says how the model was trained: as the published weights {name} is assumed, {said}"]
    network = None if source.shape else source.build((), 0)
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None) if network else None
    side = _common_side(wanted, base)
    if side and not source.shape:
        shape: tuple[int, ...] = (first.in_channels if first else 3, side, side)
    else:
        shape = source.shape or guess_shape(source.build((), 0))
    if len(shape) != 3 or shape[0] not in images.MODES:
        raise InputError(f"{entry.source} takes inputs of shape {list(shape)}, and pictures are [1 or 3, h, w]")
    plain = {"resize": shape[1], "crop": shape[1], "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    wanted |= {**plain, **wanted}
    own = "their own size" if side == shape[1] else "a size that the model takes"
    size = f"{shape[1]} x {shape[2]} pixels, {own}"
    return [f"nothing says how the model was trained: values in [0, 1] are assumed, and {size}"]


def _options_of(usual: images.Preprocessing) -> dict[str, Any]:
    """A preprocessing as options of data."""
    given = {"resize": list(usual.resize) if usual.resize else None, "crop": usual.crop}
    return {**given, "mean": list(usual.mean), "std": list(usual.std), "interpolation": usual.interpolation}


def _common_side(wanted: dict[str, Any], base: Path) -> int:
    """The side of the first of these pictures if they are squares of one size, else 0."""
    scheme, _, path = str(wanted["source"]).partition(":")
    if scheme not in ("folder", "pictures"):
        return 0
    files: Iterable[Path] = (base / file for file in wanted.get("files") or ())
    if scheme == "folder":
        files = (each for each in (base / path).rglob("*") if each.suffix.lower() in PICTURES)
    sizes = set()
    for file in islice(files, LOOKED_AT):
        with suppress(OSError), Image.open(file) as picture:
            sizes |= set(picture.size)
    return sizes.pop() if len(sizes) == 1 else 0
