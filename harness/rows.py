"""Scores to rows: the one place where they are checked and take their columns."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from harness.types import Score

LABELS = ("study", "run", "cell", "model", "model_seed", "dataset")
CELL_LABELS = ("method", "metric")
TEXT = ("measure", "channels", "sign", "normalization", "role", "mode", "stage")
NUMBERS = {"stage_index": pa.int64(), "step": pa.float64(), "draw": pa.int64()}

RECORDS = (
    *LABELS,
    "sample",
    "target",
    *CELL_LABELS,
    *TEXT,
    *NUMBERS,
    "value",
    "reason",
)
"""The columns of `Results.records`, in order."""


def rows_of(scores: Iterable[Score], samples: Sequence[str], target: Int[Tensor, " n"]) -> pa.Table:
    """One row for each sample and score; a score about the model (0-d) gives one row without a sample.

    Holds every column of `RECORDS` that is not a label of the cell: labels belong to the study that reads the
    rows, not to the rows.

    Raises:
        ValueError: a score of the wrong shape, an infinite value, a NaN without a reason, a reason without a NaN,
            a sample with two reasons, or two scores with the same fields. The message names the measure and the sample.
    """
    listed = list(scores)
    values = [score.values.detach().double() for score in listed]
    for score, column in zip(listed, values, strict=True):
        if column.shape not in ((), (len(samples),)):
            raise ValueError(
                f"{_name(score)}: expected values of shape [{len(samples)}] or [], got {list(column.shape)}"
            )
    flat = torch.cat([column.reshape(-1) for column in values]) if values else torch.zeros(0, dtype=torch.float64)
    counts = np.array([column.numel() for column in values], dtype=np.int64)
    # One transfer for all values: a round trip for each score would cost more than computing it.
    value = flat.cpu().numpy()
    reasons, reason_codes = _reasons(listed, counts, value, samples)
    fields = [(s.measure, s.channels, s.sign, s.normalization, s.role, s.mode, s.stage, s.step, s.draw) for s in listed]
    if len(set(fields)) < len(fields):
        twice = next(score for score, each in zip(listed, fields, strict=True) if fields.count(each) > 1)
        raise ValueError(f"{_name(twice)} was yielded twice: a score needs something that tells it apart")

    def text(field: str) -> pa.Array:
        return _dictionary([getattr(score, field) for score in listed], counts)

    def number(field: str) -> pa.Array:
        column = np.array([getattr(score, field) for score in listed], dtype=np.float64)
        return pa.array(np.repeat(column, counts), NUMBERS[field], from_pandas=True)

    about_samples = [column.ndim == 1 for column in values]
    positions = [np.arange(len(samples)) if each else np.array([-1]) for each in about_samples]
    position = np.concatenate([np.zeros(0, dtype=np.int64), *positions])
    missing = position < 0
    return pa.table(
        {
            "sample": _coded(position, samples),
            "target": pa.array(target.cpu().numpy()[np.maximum(position, 0)], mask=missing),
            **{field: text(field) for field in TEXT},
            **{field: number(field) for field in NUMBERS},
            "value": pa.array(value),
            "reason": _coded(reason_codes, reasons),
        }
    )


def _coded(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Text by its codes; a negative code is missing."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(list(names), pa.string()))


def _dictionary(values: Sequence[str | None], counts: np.ndarray) -> pa.Array:
    names = sorted({value for value in values if value is not None})
    codes = np.array([-1 if value is None else names.index(value) for value in values], dtype=np.int64)
    return _coded(np.repeat(codes, counts), names)


def _reasons(
    scores: Sequence[Score], counts: np.ndarray, value: np.ndarray, samples: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """The reasons met, and the code of each row's reason (-1 for none), checked against the values.

    Raises:
        ValueError: values and reasons do not fit each other.
    """
    names: list[str] = []
    codes = np.full(len(value), -1, dtype=np.int64)
    ends = np.cumsum(counts)
    for score, start, end in zip(scores, ends - counts, ends, strict=True):
        part = codes[start:end]
        for reason, where in score.undefined.items():
            marked = where.detach().cpu().numpy().reshape(-1)
            if marked.shape != part.shape:
                raise ValueError(f"{_name(score)}: the reason {reason!r} has another shape than the values")
            if (marked & (part >= 0)).any():
                whose = _whose(score, samples, marked & (part >= 0))
                raise ValueError(f"{_name(score)}: the value of {whose} has two reasons, one is {reason!r}")
            if reason not in names:
                names.append(reason)
            part[marked] = names.index(reason)
        column = value[start:end]
        for problem, where in (
            ("is infinite", np.isinf(column)),
            ("is NaN without a reason", np.isnan(column) & (part < 0)),
            ("has a reason but a value", ~np.isnan(column) & (part >= 0)),
        ):
            if where.any():
                raise ValueError(f"{_name(score)}: the value of {_whose(score, samples, where)} {problem}")
    return names, codes


def _name(score: Score) -> str:
    place = [str(part) for part in (score.role, score.mode, score.stage, score.step, score.draw) if part is not None]
    return f"score {score.measure!r} ({', '.join(place)})"


def _whose(score: Score, samples: Sequence[str], where: np.ndarray) -> str:
    return f"sample {samples[int(np.argmax(where))]!r}" if score.values.ndim else "the model"
