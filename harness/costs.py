"""What one batch of a model takes: seconds and memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

TRIES = 3
LARGEST_TRIED = 4096
SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class Cost:
    """What one batch takes: seconds, bytes that the graph holds for the backward pass, the largest batch that fits."""

    batch: int
    forward_seconds: float
    backward_seconds: float
    graph_bytes: int
    largest_batch: int
    how: str


def cost_of(model: nn.Module, x: Float[Tensor, "n ..."]) -> Cost:
    """Time and memory of one batch of these samples, and the largest batch that fits.

    On CUDA the batch is doubled until memory runs out. Elsewhere running out would end the process, so the largest
    batch is estimated: half of the memory that is free, divided by twice what the graph of one sample holds.
    """
    forward = min(seconds_of(lambda: _forward(model, x), x.device) for _ in range(TRIES))
    both = min(seconds_of(lambda: _backward(model, x), x.device) for _ in range(TRIES))
    held, backward = _graph_bytes(model, x), max(both - forward, 0.0)
    if x.is_cuda:
        return Cost(len(x), forward, backward, held, _largest_on_cuda(model, x), "tried")
    largest = int(SHARE_OF_MEMORY * _free_memory() / (2 * max(held // len(x), 1)))
    return Cost(len(x), forward, backward, held, max(largest, 1), "estimated")


def _forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x.clone())


def _backward(model: nn.Module, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    output = model(leaf.clone())
    if output.requires_grad:
        torch.autograd.grad(output.sum(), leaf, allow_unused=True)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long this takes, until the device has done it too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _graph_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that the graph keeps for the backward pass, each storage once, parameters aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(leaf.clone())  # a clone, because a model may write into its input
    del output
    return sum(held.values())


def _largest_on_cuda(model: nn.Module, x: Tensor) -> int:
    fits = batch = len(x)
    while batch < LARGEST_TRIED:
        batch *= 2
        try:
            _backward(model, x[torch.arange(batch, device=x.device) % len(x)])
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        fits = batch
    return fits


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30  # a modest machine, where nothing says better
