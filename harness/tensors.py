"""The tensors in what operators take and return."""

from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a value, in tuples and lists too."""
    found, left = [], [value]
    while left:
        each = left.pop()
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (tuple, list)):
            left.extend(reversed(each))
    return found
