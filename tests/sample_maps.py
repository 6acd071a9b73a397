"""Maps on which similarities are hard to compute: ties, zeros, few and heavy-tailed values, extreme scales."""

import numpy as np
import pytest
import torch
from scipy import ndimage


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def tied(*shape, seed=0, values=5):
    return torch.randint(-2, values - 2, shape, generator=generator(seed)).double()


def sobel(n=3, side=28):
    """Edges of a sparse drawing: mostly zero, many equal values."""
    drawing = (normal(n, side, side) > 1.5).numpy().astype(np.float32)
    return torch.tensor(np.array([np.hypot(ndimage.sobel(d, 0), ndimage.sobel(d, 1)) for d in drawing]))


MAPS = {
    "normal": normal(5, 16, 16),
    "float32": normal(5, 16, 16, dtype=torch.float32),
    "not square": normal(5, 13, 31, dtype=torch.float32),
    "large": normal(2, 101, 64, dtype=torch.float32),
    "smooth": torch.tensor(ndimage.gaussian_filter(normal(5, 40, 40).numpy(), (0, 4, 4))),
    "heavy tails": (normal(5, 33, 30) / normal(5, 33, 30, seed=1)).float(),
    "tied": tied(5, 16, 16),
    "tied float32": (tied(5, 16, 16) / 3).float(),
    "mostly zero": normal(5, 28, 28, dtype=torch.float32).relu() * (tied(5, 28, 28) > 1),
    "negative zero": normal(5, 16, 16, dtype=torch.float32) * (tied(5, 16, 16) > 0),
    "tiny": normal(5, 16, 16, dtype=torch.float32) * 1e-38,
    "huge": normal(5, 16, 16, dtype=torch.float32) * 1e30,
    "far from zero": normal(5, 16, 16) + 1e6,
    "sobel": sobel(),
}
each_map = pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)


def partner(maps):
    """Maps that are half like these."""
    scaled = maps.double() - maps.double().flatten(1).mean(1).view(-1, 1, 1)
    return (scaled / scaled.abs().max() + 0.3 * normal(*maps.shape, seed=1)).to(maps.dtype)
