"""What stands between a model and code that is not ours: the model and all global randomness are left as found."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from harness.random import Draws, seed_of
from harness.snapshot import Snapshot


@contextmanager
def isolated(model: nn.Module, device: torch.device, name: str, draws: Draws | None = None) -> Iterator[None]:
    """A library's method may do here what it likes: afterwards model and generators are as they were.

    Args:
        model: what it explains.
        device: where it draws.
        name: of the method, which seeds one that is not said to be stochastic and yet draws, say to start an
            iteration.
        draws: what seeds a stochastic one: seed, method, call and samples.
    """
    key = (name,) if draws is None else (draws.key, draws.samples.tolist())
    with untouched(model), seeded(device, *key), torch.enable_grad():
        # Libraries use an input again after it went through the model, which may have written into it.
        model.register_forward_pre_hook(lambda _, inputs: tuple(map(_copied, inputs)))
        yield


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model after the block is as it was: hooks, submodules, attributes, weights, flags and gradients.

    Holds a copy of the weights, as some libraries change them in place and an error may keep them from going back.
    """
    before = Snapshot(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.grad = None  # or a backward pass would add to what belongs to others
    try:
        yield
    finally:
        before.restore()


@contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """The global generators of NumPy and torch, seeded by the key inside the block and as they were after it."""
    seed = seed_of(*key)
    numpy = np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            for each in cuda:
                torch.cuda.default_generators[each.index or 0].manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(numpy)
