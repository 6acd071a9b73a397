"""What a method says of its maps beside them: the layer it took, how well its surrogate fits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

Remarks = dict[str, list[str | Float[Tensor, " _"]]]
"""Name -> what was said under it, batch by batch: words, or one number for each sample."""

_HEARD: ContextVar[Remarks | None] = ContextVar("remarks", default=None)


def remark(name: str, value: str | Float[Tensor, " _"]) -> None:
    """Say something about the maps of this batch; the harness stores it with the cell if it listens."""
    heard = _HEARD.get()
    if heard is not None:
        heard.setdefault(name, []).append(value if isinstance(value, str) else value.detach().cpu())


@contextmanager
def listening() -> Iterator[Remarks]:
    """What is remarked inside the block."""
    remarks: Remarks = {}
    token = _HEARD.set(remarks)
    try:
        yield remarks
    finally:
        _HEARD.reset(token)


def in_words(remarks: Mapping[str, list[str | Float[Tensor, " _"]]]) -> dict[str, str]:
    """One line for each name: the different words, or mean and extremes of the numbers."""
    lines = {}
    for name, said in remarks.items():
        words = [each for each in said if isinstance(each, str)]
        numbers = [each.double() for each in said if isinstance(each, Tensor)]
        parts = list(dict.fromkeys(words))
        values = torch.cat(numbers) if numbers else torch.zeros(0)
        known = values[~values.isnan()]
        if len(known):
            parts.append(f"mean {known.mean():.3g}, {known.min():.3g} to {known.max():.3g}")
        if len(known) < len(values):
            parts.append(f"undefined for {len(values) - len(known)} of {len(values)}")
        lines[name] = ", ".join(parts)
    return lines
