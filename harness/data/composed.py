"""Samples of any other data for networks of which is known what cannot matter (`harness.models.wrapped`)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from harness.data import BrokenSampleError, Data, Planted
from harness.data.images import Preprocessing
from harness.data.planting import CELLS, in_cells, left_half, next_of_another_class, picture_of
from harness.random import Draws
from harness.registry import DATA, data_source, split_source
from harness.types import InputError

FEWEST_CLASSES = CELLS + 1
"""One in each cell, and another one in the place of the truth."""


@data_source(argument="DATA", passes_on=True)
def grid(argument: str, *, base: Path = Path(), preprocessing: Preprocessing | None = None, **options: Any) -> Data:
    """Pictures of 2 x 2 samples of different classes (`boehle2021convolutional`), one of which is the truth.

    Each sample is the truth of one picture, in a cell at random, and its label is cell x classes + class, as in the
    model `grid:MODEL`. Nothing in a picture tells which of its cells is asked about, so explain the label and not the
    prediction. Masks are the cell.

    Args:
        argument: the data, such as mnist-5k or folder:photos.
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        options: those of the data.

    Raises:
        InputError: not five classes of labelled pictures.
    """
    data = _of(argument, options, base, preprocessing)
    return _pictures(data, data.class_count, _pictures(data.train, data.class_count, None) if data.train else None)


@data_source(argument="DATA", passes_on=True)
def masked(argument: str, *, base: Path = Path(), preprocessing: Preprocessing | None = None, **options: Any) -> Data:
    """The samples of other data as they are; the truth is their left half, all that the model `masked:MODEL` sees.

    Args:
        argument: the data, such as mnist-5k or folder:photos.
        base: what paths are relative to.
        preprocessing: that of the model's weights.
        options: those of the data.
    """
    data = _of(argument, options, base, preprocessing)
    name = f"masked:{data.name}"

    def mask(row: int) -> Tensor:
        return left_half(tuple(data.read(row).shape))

    if data.labels is None or len(data.labels.unique()) < 2:
        # Nothing tells classes apart, so the next sample is as good as any.
        another = torch.arange(1, len(data) + 1) % len(data)
    else:
        another = next_of_another_class(data.labels)

    def spliced(row: int, truth: bool) -> Tensor:
        other = int(another[row])
        if other == row:
            raise BrokenSampleError(f"{name} has one sample, and no other to exchange halves with")
        x, exchanged = data.batch([row, other])
        return torch.where((left_half(tuple(x.shape)) > 0) == truth, exchanged, x)

    planted = Planted(lambda row: spliced(row, True), lambda row: spliced(row, False))
    return replace(data, name=name, read_mask=mask, planted=planted, read_parts=None)


def _of(argument: str, options: Mapping[str, Any], base: Path, preprocessing: Preprocessing | None) -> Data:
    entry, rest = split_source(argument, DATA)
    data: Data = entry.load(rest, options, base=base, preprocessing=preprocessing)
    return data


def _pictures(data: Data, classes: int, train: Data | None) -> Data:
    """One picture for each sample.

    Raises:
        InputError: the samples are no pictures of enough classes.
    """
    name, labels = f"grid:{data.name}", data.labels
    if labels is None or len(labels.unique()) < FEWEST_CLASSES or data.space.kind != "image":
        known = "without labels" if labels is None else f"of {len(labels.unique())} classes"
        raise InputError(
            f"{name}: expected images of at least {FEWEST_CLASSES} classes, got {data.space.kind}s {known}"
        )
    ids = [f"grid/{each}" for each in data.ids]
    draws = Draws.of(ids, "grid")
    cells = draws.integers(CELLS)
    others, exchanged = (_others(labels, draws, draw) for draw in (1, 3))

    def picture(row: int, truth: int, around: Int[Tensor, " rows"]) -> Tensor:
        cell, rest = int(cells[row]), around[: CELLS - 1].tolist()
        return picture_of([data.read(each)[None] for each in (*rest[:cell], truth, *rest[cell:])])[0]

    def mask(row: int) -> Tensor:
        shape = (1, 1, *data.read(row).shape[1:])
        return picture_of([torch.full(shape, float(cell == cells[row])) for cell in range(CELLS)])[0]

    names = data.classes if len(data.classes) == classes else tuple(map(str, range(classes)))
    planted = Planted(
        lambda row: picture(row, int(others[row, -1]), others[row]),
        lambda row: picture(row, row, exchanged[row]),
    )
    return Data(
        name,
        data.space,
        ids,
        cells * classes + labels,
        lambda row: picture(row, row, others[row]),
        in_cells(names),
        train,
        data.skip_broken,
        mask,
        planted,
    )


def _others(labels: Int[Tensor, " n"], draws: Draws, draw: int) -> Int[Tensor, "n 4"]:
    """For each sample the rows of four others, of four other classes: those are drawn first, then one of each."""
    present, counts = labels.unique(return_counts=True)
    classes = draws.permutation(len(present), draw=draw)
    own = present[classes] == labels[:, None]
    classes = classes.gather(1, own.long().argsort(dim=1, stable=True)[:, :CELLS])
    within = (draws.uniform(CELLS, draw=draw + 1) * counts[classes]).long()
    return labels.argsort(stable=True)[(counts.cumsum(0) - counts)[classes] + within]
