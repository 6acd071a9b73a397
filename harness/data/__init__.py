"""Data: samples with stable ids that are read when they are needed, so that memory does not grow with their number."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.digests import digest
from harness.space import InputSpace
from harness.types import InputError

_POOL = ThreadPoolExecutor(thread_name_prefix="reads")


class BrokenSampleError(InputError):
    """A sample that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Planted:
    """How to find out whether a network uses what was planted in the samples: exchange it, and exchange the rest.

    Attributes:
        other_truth: row -> that sample with the truth of another class in the place of its own, the rest as it is.
        other_rest: row -> that sample with its own truth, and the rest of another sample.
    """

    other_truth: Callable[[int], Tensor]
    other_rest: Callable[[int], Tensor]


@dataclass(frozen=True)
class Data:
    """Samples with ids and labels, and the training part that they are disjoint from.

    Attributes:
        name: as it is written in a study.
        space: what the numbers mean.
        ids: a stable id for each sample.
        labels: the class of each sample; None if nothing says it.
        read: row -> that sample; raises `BrokenSampleError` if it cannot be read.
        classes: the names of the classes by index; empty where they have none.
        train: the samples to train on; None if there are none.
        read_mask: row -> where in that sample the truth lies, [1, ...] or [f] for a table; None if nothing says it.
        skip_broken: whether a sample that cannot be read is left out, or ends everything.
        planted: how to find out whether a network uses what the masks mark; None where nobody planted it.
        read_parts: row -> where each part of that sample is, [parts, *positions], and the sample without each part,
            [parts, ...]; None if it has no parts.
    """

    name: str
    space: InputSpace
    ids: Sequence[str]
    labels: Int[Tensor, " n"] | None
    read: Callable[[int], Tensor]
    classes: tuple[str, ...] = ()
    train: "Data | None" = None
    skip_broken: bool = False
    read_mask: Callable[[int], Tensor] | None = None
    planted: Planted | None = None
    read_parts: Callable[[int], tuple[Tensor, Tensor]] | None = None
    _first: dict[str, tuple[int, torch.Size]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Iterable[int]) -> Float[Tensor, "m ..."]:
        """These samples as one tensor.

        Raises:
            BrokenSampleError: one cannot be read.
            InputError: they differ in shape.
        """
        rows = list(rows)
        return self._stacked(rows, list(_POOL.map(self.read, rows)))

    def readable(self, rows: Iterable[int]) -> tuple[list[int], Float[Tensor, "m ..."], list[str]]:
        """Those of these samples that can be read: their rows, themselves, and the errors of the others.

        Raises:
            BrokenSampleError: one cannot be read, and `skip_broken` is off.
            InputError: they differ in shape.
        """
        rows = list(rows)
        results = list(_POOL.map(self._attempt, rows))
        errors = [str(result) for result in results if isinstance(result, BrokenSampleError)]
        if errors and not self.skip_broken:
            raise BrokenSampleError(f"{errors[0]}; `broken: skip` in the data entry leaves such samples out")
        whole = [(row, x) for row, x in zip(rows, results, strict=True) if isinstance(x, Tensor)]
        return [row for row, _ in whole], self._stacked([row for row, _ in whole], [x for _, x in whole]), errors

    def _attempt(self, row: int) -> Tensor | BrokenSampleError:
        try:
            return self.read(row)
        except BrokenSampleError as error:
            return error

    def _stacked(self, rows: list[int], samples: list[Tensor]) -> Tensor:
        for row, sample in zip(rows, samples, strict=True):
            first, shape = self._first.setdefault("sample", (row, sample.shape))
            if sample.shape != shape:
                raise InputError(
                    f"{self.name}: samples differ in shape: {self.ids[first]!r} is {list(shape)}, "
                    f"{self.ids[row]!r} is {list(sample.shape)}; declare one size for all (images: resize and crop)"
                )
        return torch.stack(samples) if samples else torch.zeros(0)

    def masks(self, rows: Iterable[int]) -> Float[Tensor, "m ..."] | None:
        """Where in these samples the truth lies; None if nothing says it."""
        return torch.stack([self.read_mask(row) for row in rows]) if self.read_mask else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all contents, of the training part too. Reads everything once.

        Raises:
            BrokenSampleError: a sample cannot be read, and `skip_broken` is off.
        """
        contents = [self._content(row) for row in range(len(self))]
        return digest(self.ids, contents, self.labels, self.train.fingerprint if self.train else "")

    def _content(self, row: int) -> str:
        try:
            return digest(self.read(row))
        except BrokenSampleError:
            if not self.skip_broken:
                raise
            return "broken"

    @cached_property
    def class_count(self) -> int:
        """The number of classes; 0 if nothing says it."""
        largest = int(self.labels.max()) + 1 if self.labels is not None and len(self.labels) else 0
        return max(len(self.classes), largest, self.train.class_count if self.train else 0)


def of_tensors(
    name: str,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"] | None,
    space: InputSpace,
    *,
    ids: Sequence[str] | None = None,
    classes: tuple[str, ...] = (),
    train: Data | None = None,
    masks: Float[Tensor, "n ..."] | None = None,
) -> Data:
    """Data that are in memory already; ids are positions if none are given."""
    ids = [f"{name}/{row}" for row in range(len(x))] if ids is None else ids
    read_mask = None if masks is None else masks.__getitem__
    return Data(name, space, ids, y, x.__getitem__, classes, train, read_mask=read_mask)
