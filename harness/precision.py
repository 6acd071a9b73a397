"""Which arithmetic stands for single precision on a GPU: its own, or the faster TF32 with a mantissa of ten bits."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, get_args

import torch

from harness.types import InputError

Precision = Literal["float32", "tf32"]
"""torch takes TF32 for convolutions by default; here single precision is single precision unless somebody asks."""


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Convolutions and matrix products of single precision are computed like this inside the block.

    Raises:
        InputError: there is no such precision.
    """
    check_precision(precision)
    cudnn: Any = torch.backends.cudnn  # whose stubs lack what it has
    matmul = torch.get_float32_matmul_precision()
    apart, together = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision), None
    with suppress(RuntimeError):  # somebody has set convolutions and recurrent layers apart
        together = cudnn.allow_tf32
    set_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        # By the setting that they have in common, if they had: after others, torch refuses to tell it.
        if together is None:
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = apart
        else:
            cudnn.allow_tf32 = together


def set_precision(precision: Precision) -> None:
    """The same from here on, in a process that does nothing else."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def check_precision(precision: str) -> None:
    """Check that there is such a precision.

    Raises:
        InputError: there is not.
    """
    if precision not in get_args(Precision):
        raise InputError(f"--precision is float32 or tf32, got {precision!r}")
