"""Tables: rows of a CSV file."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from harness.data import Data, of_tensors
from harness.data.files import class_indices, read_table
from harness.entries import nearest
from harness.registry import data_source
from harness.space import InputSpace
from harness.types import InputError

LABEL = "label"


@data_source(argument="PATH")
def csv(
    path: str,
    *,
    base: Path,
    label: str = LABEL,
    classes: list[str] | None = None,
    standardize: bool = True,
    held_out: str = "",
) -> Data:
    """Rows of a CSV file as tables: the column `label` is the class, all others are features.

    Features are standardized with the mean and the deviation of the training rows. The valid box of a feature is
    its range in the file.

    Args:
        path: of the file.
        base: what the path is relative to.
        label: the column with the class, an integer or a name; without a column `label` there are no labels.
        classes: names of all classes by index; by default those that occur, sorted.
        standardize: whether the model takes standardized features or the numbers as they are.
        held_out: a column of 0 and 1 that marks the rows to explain; the others are the training rows. Without
            it all rows are explained, and there is no training part.

    Raises:
        InputError: no such file or column, or features that are not finite numbers.
    """
    name = f"csv:{path}"
    frame = read_table(base / path, name, [label])
    for column in {label, held_out} - {LABEL, ""}:
        if column not in frame:
            raise InputError(f"{name}: no column {column!r}; {nearest(column, map(str, frame.columns))}")
    features = frame.drop(columns=[column for column in (label, held_out) if column in frame])
    wrong = [str(column) for column in features if not _finite(features[column])]
    if wrong or features.shape[1] == 0 or len(frame) == 0:
        where = ", ".join(wrong) or "the file"
        missing = "" if label in frame else f" (no column is called {label!r}: `label` says which one is the class)"
        raise InputError(f"{name}: expected rows of finite numbers beside {label!r}, but not so in: {where}{missing}")
    unnamed = [str(column) for column in features if str(column).startswith("Unnamed: ")]
    if unnamed:
        raise InputError(
            f"{name}: a column without a name, such as that of row numbers, is no feature: drop or name it"
        )
    values = features.to_numpy(np.float64)
    marked = np.ones(len(frame), bool)
    if held_out:
        marked = frame[held_out].to_numpy() == 1
        if label == held_out or set(frame[held_out]) != {0, 1}:
            raise InputError(f"{name}: expected 0 and 1 in the column {held_out!r}, and both of them")
    # In float64: a date in seconds has no room in float32 before its mean is taken off.
    known = values[~marked] if held_out else values
    low, high = values.min(0), values.max(0)
    high = np.where(high > low, high, low + 1)
    mean, std = np.zeros_like(low), np.ones_like(low)
    if standardize:
        constant = known.min(0) == known.max(0)
        mean, std = np.where(constant, known[0], known.mean(0)), np.where(constant, 1, known.std(0))
    space = InputSpace("table", *(tuple(v.tolist()) for v in (mean, std, low, high)))
    x, y = torch.from_numpy((values - mean) / std).float(), None
    names: tuple[str, ...] = ()
    if label in frame:
        y, names = class_indices(frame[label].tolist(), name, classes)
    ids = [f"{path}/{row}" for row in range(len(frame))]

    def part(mask: Bool[np.ndarray, " n"], train: Data | None) -> Data:
        rows = torch.from_numpy(np.flatnonzero(mask))
        labels = None if y is None else y[rows]
        return of_tensors(name, x[rows], labels, space, ids=[ids[r] for r in rows.tolist()], classes=names, train=train)

    return part(marked, part(~marked, None) if held_out else None)


def _finite(column: pd.Series) -> bool:
    """Whether these are numbers that the model can take, in float32."""
    largest = np.finfo(np.float32).max
    return pd.api.types.is_numeric_dtype(column) and bool((np.abs(column.to_numpy(np.float64)) <= largest).all())
