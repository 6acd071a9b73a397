"""Inputs for a model that comes without data: a shape that it takes, and noise of that shape."""

from dataclasses import replace

import torch
from torch import nn

from harness.data import Data, of_tensors
from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError

IMAGE_SIDES = (224, 32, 28, 64, 96, 299, 384, 128, 256, 16, 8)
SIGNAL_LENGTHS = (8000, 1000, 128)
NOISE_SAMPLES = 8
NOISE_ENDS = (-6.0, 6.0)
"""Standard normal numbers do not leave this range."""


def guess_shape(model: nn.Module) -> tuple[int, ...]:
    """The shape of an input that the model takes, by trying those that fit its first layer.

    Raises:
        InputError: none of them does.
    """
    candidates: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            candidates += [(module.in_channels, side, side) for side in IMAGE_SIDES]
        elif isinstance(module, nn.Conv1d):
            candidates += [(module.in_channels, length) for length in SIGNAL_LENGTHS]
        elif isinstance(module, nn.Linear):
            side = round(module.in_features**0.5)
            candidates += [(module.in_features,)] + [(1, side, side)] * (side**2 == module.in_features)
        if candidates:
            break
    model.eval()
    parameter = next(model.parameters(), torch.zeros(0))
    for shape in candidates:
        try:
            with torch.no_grad():
                model(torch.zeros(2, *shape, dtype=parameter.dtype, device=parameter.device))
        except Exception:
            continue
        return shape
    raise InputError("nothing says the shape of an input: give data after the model")


def noise(shape: tuple[int, ...], ends: tuple[float, float] | None = None) -> Data:
    """Standard normal samples, for a model that comes without data; `ends` declares the range that they may have."""
    ids = [f"noise/{row}" for row in range(NOISE_SAMPLES)]
    x = Draws.of(ids, "noise").normal(*shape).float()
    space = InputSpace.undeclared(x)
    if ends:
        space = replace(space, mean=(0.0,), std=(1.0,), low=ends[0], high=ends[1])
    # Networks that take the shape of their data get ten outputs; others know their own number.
    return of_tensors("noise", x, None, space, ids=ids, classes=tuple("0123456789"))
