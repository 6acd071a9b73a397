"""Tables: rows of a CSV file."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from harness.data import Data, of_tensors
from harness.data.files import class_indices, existing
from harness.registry import data_source, nearest
from harness.space import InputSpace
from harness.types import InputError


@data_source(argument="PATH")
def csv(path: str, *, base: Path, label: str = "label", standardize: bool = True, held_out: str = "") -> Data:
    """Rows of a CSV file as tables: the column `label` is the class, all others are features.

    Features are standardized with the mean and the deviation of the training rows. The valid box of a feature is
    its range in the file.

    Args:
        path: of the file.
        base: what the path is relative to.
        label: the column with the class, an integer or a name; without such a column there are no labels.
        standardize: whether the model takes standardized features or the numbers as they are.
        held_out: a column of 0 and 1 that marks the rows to explain; the others are the training rows. Without
            it all rows are explained, and there is no training part.

    Raises:
        InputError: no such file or column, or features that are not finite numbers.
    """
    name = f"csv:{path}"
    try:
        frame = pd.read_csv(existing(base / path))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not a CSV file: {error}") from None
    if held_out and held_out not in frame:
        raise InputError(f"{name}: no column {held_out!r}; {nearest(held_out, map(str, frame.columns))}")
    features = frame.drop(columns=[column for column in (label, held_out) if column in frame])
    wrong = [str(c) for c in features if not pd.api.types.is_numeric_dtype(features[c]) or features[c].isna().any()]
    if wrong or features.shape[1] == 0 or len(frame) == 0:
        raise InputError(
            f"{name}: expected rows of finite numbers beside {label!r}, but not so in: {', '.join(wrong) or 'the file'}"
        )
    values = torch.from_numpy(features.to_numpy(np.float64, copy=True)).float()
    marked = torch.from_numpy(frame[held_out].to_numpy(bool)) if held_out else torch.ones(len(frame), dtype=torch.bool)
    known = values[~marked] if held_out else values
    low, high = values.amin(0), values.amax(0)
    high = torch.where(high > low, high, low + 1)
    mean, std = torch.zeros(values.shape[1]), torch.ones(values.shape[1])
    if standardize:
        mean, std = known.mean(0), known.std(0, correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
    space = InputSpace("table", *(tuple(v.tolist()) for v in (mean, std, low, high)))
    x, y = (values - mean) / std, None
    classes: tuple[str, ...] = ()
    if label in frame:
        y, classes = class_indices(frame[label].tolist(), name)
    ids = [f"{path}/{row}" for row in range(len(frame))]

    def part(mask: Tensor, train: Data | None) -> Data:
        rows = torch.nonzero(mask)[:, 0]
        labels = None if y is None else y[rows]
        return of_tensors(
            name, x[rows], labels, space, ids=[ids[r] for r in rows.tolist()], classes=classes, train=train
        )

    return part(marked, part(~marked, None) if held_out else None)
