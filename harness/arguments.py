"""A model and data as they are given on the command line."""

from pathlib import Path
from typing import Any

import yaml

from harness.data import images
from harness.data.audio import EXTENSIONS as SOUNDS
from harness.data.images import EXTENSIONS as PICTURES
from harness.doctor import guess_shape
from harness.places import Place
from harness.study import ModelEntry, models_of
from harness.subjects import load_source
from harness.types import InputError


def guess_data(text: str, base: Path) -> str:
    """The source that a bare path stands for: a folder of pictures or recordings, an archive or a table.

    Raises:
        InputError: the path is there, but nothing says what it is.
    """
    path = base / text
    if not path.exists():
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
    """Add a preprocessing to the data where the weights bring none: pixels in [0, 1], of the size that the model takes.

    Raises:
        InputError: the model takes no pictures.
    """
    (entry,) = models_of([{**given, "data": None}], None, Place("arguments"), needs_data=False)
    source = load_source(entry, base)
    if source.preprocessing(entry.weights):
        return []
    shape = source.shape or guess_shape(source.build((), 0))
    if len(shape) != 3 or shape[0] not in images.MODES:
        raise InputError(f"{entry.source} takes inputs of shape {list(shape)}, and pictures are [1 or 3, h, w]")
    wanted |= {"resize": shape[1], "crop": shape[1], "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    return [f"nothing says how the model was trained: pictures of {shape[1]} x {shape[2]} pixels in [0, 1] are assumed"]
