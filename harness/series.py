"""Series: the rows of a run, read block by block into matrices. Tables and figures are views of these.

A row of `Results.records` takes about a hundred bytes, a number in a matrix eight; and only the numbers of one model,
method and metric are ever held together. So a run of many samples is read in little more memory than one of few.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from harness.plan import Cell
from harness.statistics import Values
from harness.store import Store

FIELDS = ("measure", "channels", "sign", "normalization", "role", "mode", "stage_index", "stage", "step")
"""What the numbers of one series have in common."""

UNFINISHED = ("failed", "missing")

ONE_NUMBER = (None, "full", "random")
"""The modes of rows that are no part of a cascade or curve."""

Block = tuple[Float[np.ndarray, " draws"], Values, pa.Array]


@dataclass(frozen=True)
class Series:
    """Numbers that differ by sample and draw only.

    Attributes:
        labels: what they have in common, by the names in `FIELDS`.
        about_model: they are about the model, not about samples: the same in every block.
        blocks: of each block the draws, NaN for a number without draws, the values [samples, draws], and the samples.
        reasons: why values are undefined, and how often.
    """

    labels: Mapping[str, Any]
    about_model: bool
    blocks: list[Block] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def draws(self) -> Float[np.ndarray, " draws"]:
        """The draws of all blocks in order; NaN alone where numbers have none."""
        return np.unique(np.concatenate([drawn for drawn, _, _ in self.blocks]))

    @property
    def samples(self) -> list[str]:
        """The ids of the samples, in the order of `values`; none where numbers are about the model."""
        return [] if self.about_model else [name for _, _, names in self.blocks for name in names.to_pylist()]

    @property
    def values(self) -> Values:
        """All blocks in one matrix [samples, draws], draws in order, so that matrices of one study match."""
        draws = self.draws
        samples = 1 if self.about_model else sum(len(values) for _, values, _ in self.blocks)
        whole = np.full((samples, len(draws)), np.nan)
        start = 0
        for drawn, values, _ in self.blocks:
            whole[start : start + len(values), np.searchsorted(draws, drawn)] = values
            start += 0 if self.about_model else len(values)
        return whole


@dataclass(frozen=True)
class Stack:
    """The cells of one model, model seed, method and metric, one a block: what a row of a table is about."""

    cells: tuple[Cell, ...]
    store: Store

    @property
    def labels(self) -> dict[str, Any]:
        """What its cells have in common."""
        cell = self.cells[0]
        return {name: getattr(cell, name) for name in ("model", "model_seed", "method", "metric")}

    @cached_property
    def states(self) -> list[Mapping[str, Any]]:
        """How each cell came about; of one that is not finished, its status only."""
        return [state_of(cell, self.store) for cell in self.cells]

    @property
    def status(self) -> str:
        """What its cells came to: the worst of them counts."""
        found = {state["status"] for state in self.states}
        return next((status for status in (*UNFINISHED, "not_applicable") if status in found), "done")

    @property
    def info(self) -> Mapping[str, Any]:
        """How its cells came about, if all that apply are done; else nothing."""
        done = [state for state in self.states if state["status"] == "done"]
        return done[-1] if done and self.status not in UNFINISHED else {}

    @cached_property
    def scalars(self) -> list[Series]:
        """The series that are not points of a curve, in the order in which the metric yields them."""
        return self.series(pc.field("step").is_null())

    @cached_property
    def headline(self) -> Series | None:
        """The numbers of the measure that stands for the metric, of signed maps if there are several; None without."""
        scalars = where(self.scalars, role="test", measure=self.info["headline"]) if self.info else []
        found = [each for each in scalars if each.labels["mode"] in ONE_NUMBER]
        # Of a whole network, before those of its layers.
        found = where(found, stage=None) or found
        return next(reversed(where(found, sign="signed") or found), None)

    @cached_property
    def targets(self) -> dict[str, int]:
        """The class that was explained of each sample."""
        about = (pc.field("measure") == self.info["headline"]) & (pc.field("role") == "test") if self.info else None
        parts = [self.store.rows(cell, ["sample", "target"], about) for cell in self.cells] if self.info else []
        found = pa.concat_tables(part for part in parts if part is not None).to_pydict() if parts else {}
        return {name: target for name, target in zip(*found.values(), strict=True) if name} if found else {}

    def series(self, where: pc.Expression) -> list[Series]:
        """The series of the rows for which this holds."""
        columns = ["sample", *FIELDS, "draw", "value", "reason"]
        return series_of(rows for cell in self.cells if (rows := self.store.rows(cell, columns, where)) is not None)


def stacks_of(cells: Iterable[Cell], store: Store) -> Iterator[Stack]:
    """The stacks of these cells, in the order of their first cells."""
    found: dict[tuple[str, int, str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.model, cell.model_seed, cell.method, cell.metric), []).append(cell)
    return (Stack(tuple(each), store) for each in found.values())


def state_of(cell: Cell, store: Store) -> Mapping[str, Any]:
    """How a cell came about; if it is not finished, whether it failed or is missing."""
    return store.info(cell) or {"status": "failed" if store.failure(cell) else "missing"}


def series_of(blocks: Iterable[pa.Table]) -> list[Series]:
    """The rows of several blocks of samples as series, in the order in which they are first met."""
    found: dict[tuple[Any, ...], Series] = {}
    for rows in blocks:
        for labels, about_model, block, reasons in _split(rows):
            series = found.setdefault((*labels.values(), about_model), Series(labels, about_model))
            series.blocks.append(block)
            series.reasons.update(reasons)
    return list(found.values())


def where(series: Iterable[Series], **labels: str | None) -> list[Series]:
    """Those of the series that have these labels."""
    return [each for each in series if all(each.labels[name] == label for name, label in labels.items())]


def commonest(reasons: Counter[str]) -> str:
    """The reason that is given most often; empty if there is none."""
    return min(reasons, key=lambda reason: (-reasons[reason], reason), default="")


def _split(rows: pa.Table) -> Iterator[tuple[dict[str, Any], bool, Block, list[str]]]:
    """The rows of one block by series: labels, whether it is about the model, its values, the reasons met."""
    if rows.num_rows == 0:
        return
    rows = rows.unify_dictionaries().combine_chunks()
    value, draw = (rows[name].to_numpy().astype(np.float64) for name in ("value", "draw"))
    sample, reason = _codes(rows["sample"]), _codes(rows["reason"])
    ids = rows["sample"].chunk(0).dictionary
    reasons = np.array(rows["reason"].chunk(0).dictionary.to_pylist(), dtype=object)
    kind = (sample < 0).astype(np.int64)
    for name in FIELDS:
        codes = _codes(rows[name])
        kind = kind * (codes.max() + 2) + codes + 1
    kind, _ = pd.factorize(kind)
    order, ends = np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))
    groups = np.split(order, ends[:-1])
    labels = rows.select(FIELDS).take(pa.array([group[0] for group in groups])).to_pylist()
    draw, drawn = pd.factorize(draw, sort=True, use_na_sentinel=False)
    for fields, group in zip(labels, groups, strict=True):
        # What is about the model has no sample, so that its code is -1.
        position, names = _ranks(sample[group] + 1)
        column, draws = _ranks(draw[group])
        values = np.full((len(names), len(draws)), np.nan)
        values[position, column] = value[group]
        undefined = reason[group]
        block = drawn[draws], values, ids.take(pa.array(names[names > 0] - 1))
        yield fields, bool(names[0] == 0), block, reasons[undefined[undefined >= 0]].tolist()


def _ranks(codes: Int[np.ndarray, " rows"]) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " codes"]]:
    """The rank of each code among those that are there, and these in order. They are small numbers from 0 on."""
    there = np.zeros(codes.max() + 1, dtype=bool)
    there[codes] = True
    ranks: np.ndarray = np.cumsum(there) - 1
    return ranks[codes], np.flatnonzero(there)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each row, the same for the same content; -1 where there is none."""
    codes: np.ndarray = column.chunk(0).dictionary_encode().indices.fill_null(-1).to_numpy()
    return codes
