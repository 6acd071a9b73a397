"""The gallery of the report: kept maps as small bytes that the page colours, and the samples as pictures."""

import base64
import io
import zlib
from collections.abc import Sequence
from itertools import islice
from math import sqrt
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from harness.colouring import DIVERGING, limit_of
from harness.glance import signed_ranks
from harness.kept_maps import KeptSamples
from harness.metrics.preprocessing import reduce_channels
from harness.report.parts import KINDS, SIGNS
from harness.types import InputError

if TYPE_CHECKING:
    from harness.results import Results

NUMBERS = 7_000_000
"""How many numbers of maps a report holds at most, a byte each before they are packed."""

SMALLEST_SIDE, LARGEST_SIDE, LONGEST = 32, 112, 512
PICTURE_SIDE = 160
TOP = 127
ABSOLUTE = "Greys"
EXCHANGED = {"parameter_randomization": "network", "random_logit": "class"}
"""Test -> what it exchanges, as the gallery says it."""


def gallery(results: "Results", most: int | None = None) -> list[dict[str, Any]]:
    """For each model with kept samples: pictures, captions, and the maps of each method that has some.

    Args:
        results: of a run.
        most: how many samples of each model are shown; as many as there is room for by default.
    """
    found = []
    for (model, seed), name in results.subjects.items():
        try:
            samples = results.samples(model, seed)
        except InputError:
            continue
        methods = [method for method in _methods(results, model, seed) if results.has_maps(method, model, seed)]
        if methods:
            found.append((model, seed, name, samples, methods))
    room = NUMBERS // max(sum(len(methods) for *_, methods in found), 1)
    return [_packed(results, *each, room, most or len(each[3].ids)) for each in found]


def said_of(results: "Results") -> dict[str, dict[str, list[list[str]]]]:
    """For each model and method its verdicts, as what was exchanged, the word, its kind and its sign."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    judged = signed_ranks(results.table("verdicts"))
    for _, row in judged.iterrows():
        what, kind = EXCHANGED.get(row["test"], ""), KINDS.get(row["verdict"], "")
        if what and kind:
            chips = found.setdefault(results.subjects[row["model"], row["model_seed"]], {})
            chips.setdefault(row["method"], []).append([what, row["verdict"], kind, SIGNS[kind]])
    return found


def colours() -> dict[str, str]:
    """The two colour tables, 256 times red, green, blue: diverging, with zero white, and from white to black."""
    return {name: _bytes(_table(which)) for name, which in (("signed", DIVERGING), ("absolute", ABSOLUTE))}


def _table(name: str) -> np.ndarray:
    table: np.ndarray = (matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return table


def _methods(results: "Results", model: str, seed: int) -> list[str]:
    mine = (cell.method for cell in results.planned if (cell.model, cell.model_seed) == (model, seed))
    return list(dict.fromkeys(mine))


def _packed(
    results: "Results",
    model: str,
    seed: int,
    name: str,
    samples: KeptSamples,
    methods: Sequence[str],
    room: int,
    most: int,
) -> dict[str, Any]:
    """The gallery of one model: `most` samples, and maps of as many numbers as there is `room` for in a method."""
    count = min(len(samples.ids), most, max(room // SMALLEST_SIDE**2, 1))
    packed = []
    for method in methods:
        # One after the other, because those of photographs take hundreds of megabytes.
        maps = results.maps(method, model, seed).maps[:count]
        maps = np.broadcast_to(maps, samples.x[:count].shape)[:, ::-1] if samples.kind == "bands" else maps
        values, positive = _small(maps, samples.kind, room // count)
        shape = values.shape[1:] if values.ndim == 3 else (1, *values.shape[1:])
        packed.append({"name": method, "shape": list(shape), "values": _bytes(values), "positive": positive})
    labels = samples.labels or ("",) * len(samples.ids)
    told = zip(samples.ids, samples.explained, labels, samples.x, strict=True)
    shown = [
        {"id": each, "explained": explained, "label": label, **_picture(x, samples.kind)}
        for each, explained, label, x in islice(told, count)
    ]
    return {"subject": name, "all": len(samples.ids), "samples": shown, "methods": packed}


def _small(maps: np.ndarray, kind: str, room: int) -> tuple[np.ndarray, list[float | None]]:
    """Maps [n, rows, columns] or [n, places] from -127 to 127 by their own limit, and their share above zero.

    What is not a number is shown as zero, and such a map has no share.
    """
    values = torch.from_numpy(np.ascontiguousarray(maps)).double()
    # Of a spectrogram the channels are places of their own.
    keeps_channels = kind in ("signal", "bands") and values.ndim == 3 and values.shape[1] > 1
    values = values if keeps_channels else reduce_channels(values, "sum")
    whole = values.isfinite().flatten(1).all(1).tolist()
    values = values.nan_to_num(0, 0, 0)
    above, total = values.clamp(min=0).flatten(1).sum(1), values.abs().flatten(1).sum(1)
    pooled = _pooled(values, room).numpy()
    limits = np.array([limit_of(each) or 1.0 for each in pooled]).reshape(-1, *(1,) * (pooled.ndim - 1))
    scaled = np.clip(pooled / limits, -1, 1) * TOP
    shares = (above / total.clamp(min=1e-30)).tolist()
    known = [round(share, 3) if each else None for share, each in zip(shares, whole, strict=True)]
    return scaled.round().astype(np.int8), known


def _pooled(values: Float[Tensor, "n ..."], room: int) -> Float[Tensor, "n ..."]:
    """Averages over neighbours, where there are more numbers than there is room for."""
    if values.ndim == 2:
        return adaptive_avg_pool1d(values[:, None], min(values.shape[1], LONGEST, room))[:, 0]
    height, width = values.shape[1:]
    side = min(LARGEST_SIDE, int(sqrt(room * max(height, width) / min(height, width))))
    factor = min(1.0, side / max(height, width))
    size = (max(round(height * factor), 1), max(round(width * factor), 1))
    return adaptive_avg_pool2d(values[:, None], size)[:, 0]


def _picture(x: np.ndarray, kind: str) -> dict[str, Any]:
    """A sample as the page shows it: a picture, or a line of numbers."""
    if kind == "image":
        return {"picture": _image(np.moveaxis(x, 0, -1))}
    values = np.asarray(x, dtype=np.float64)
    low, span = values.min(), float(np.ptp(values)) or 1.0
    values = values[::-1] if kind == "bands" else values  # the lowest frequency at the bottom
    if values.ndim == 2 and len(values) > 1:
        return {"picture": _image(((values - low) / span * 255).astype(np.uint8)[..., None])}
    line = _pooled(torch.from_numpy(values.reshape(1, -1)), LONGEST)[0].numpy()
    return {"line": [round(float(value), 3) for value in (line - low) / span]}


def _image(pixels: np.ndarray) -> str:
    """An array [h, w, channels] of bytes as the address of a picture: exact where it is small."""
    channels = pixels.shape[-1]
    pixels = pixels if channels in (1, 3) else pixels.mean(-1, keepdims=True).astype(np.uint8)
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    small = max(picture.size) <= 64
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return address_of(picture, "png" if small else "webp")


def address_of(picture: Image.Image, form: str) -> str:
    """A picture as the address that an HTML file may hold in the place of a file's."""
    buffer = io.BytesIO()
    picture.save(buffer, format=form, quality=80)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _bytes(values: np.ndarray | Sequence[int]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
