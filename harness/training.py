"""Training by recipe, deterministic by seed, cached by everything that it depends on."""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.data import Data
from harness.digests import digest
from harness.random import Draws, torch_seeded
from harness.types import InputError

Progress = Callable[[str, float, str], None]
"""What is being done, the fraction done, and what exactly."""

BATCH_FOR_ACCURACY = 500


@dataclass(frozen=True)
class Recipe:
    """How a built-in network is trained: Adam with a one-cycle learning rate.

    Attributes:
        epochs: passes over the training samples with true labels.
        permuted_epochs: the same with permuted labels, which take longer to memorize.
        batch: samples a step.
        rate: the highest learning rate.
        shift: the largest circular shift along the last axis in training with true labels, as a fraction of its
            length: recordings begin at any time.
    """

    epochs: int
    permuted_epochs: int
    batch: int
    rate: float
    shift: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A state dict and how well it does."""

    state: dict[str, Tensor]
    train_accuracy: float
    test_accuracy: float


def cache_folder() -> Path:
    """Where trained networks are kept: `$ATTRIBUTION_HARNESS_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ATTRIBUTION_HARNESS_CACHE") or Path(base) / "attribution-harness")


def trained(
    build: Callable[[], nn.Module],
    data: Data,
    recipe: Recipe,
    *,
    name: str,
    seed: int,
    permuted: bool,
    progress: Progress,
) -> Trained:
    """The network trained by its recipe, from the cache where it has been trained before.

    Args:
        build: the constructor.
        data: whose training part to train on, and what to measure the accuracy with.
        recipe: how.
        name: shown while training.
        seed: of the initial parameters, of the order of the samples and of the permutation of the labels.
        permuted: train on labels that are permuted once among all training samples.
        progress: told what happens.

    Raises:
        InputError: the data have no labelled training part.
    """
    with torch_seeded("shape"):
        network = build()
    code = inspect.getsource(sys.modules[type(network).__module__])
    key = digest(name, code, str(network), asdict(recipe), data.fingerprint, seed, permuted)
    path = cache_folder() / "models" / f"{name}-{'permuted' if permuted else 'true'}-{key}.safetensors"
    if path.exists():
        return _read(path)
    part = data.train
    if part is None or part.labels is None or data.labels is None:
        raise InputError(f"{name}: {data.name} has no labelled training part to train on")
    x, labels = _readable(part, part.labels)
    if permuted:
        labels = labels[Draws.of([name], seed, "permuted labels").permutation(len(labels))[0]]
    with torch_seeded(seed, "initial parameters", name, permuted):
        model = build()
        _fit(model, x, labels, recipe, name, seed, permuted, progress)
    result = Trained(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        accuracy(model, x, labels),
        accuracy(model, *_readable(data, data.labels)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    measured = {"train_accuracy": repr(result.train_accuracy), "test_accuracy": repr(result.test_accuracy)}
    save_file(result.state, scratch, metadata=measured)
    scratch.replace(path)
    return result


def _readable(data: Data, labels: Int[Tensor, " all"]) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
    rows, x, _ = data.readable(range(len(data)))
    return x, labels[torch.tensor(rows)]


def accuracy(model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> float:
    """The fraction of samples whose largest logit is their label's, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        batches = zip(x.split(BATCH_FOR_ACCURACY), y.split(BATCH_FOR_ACCURACY), strict=True)
        return sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in batches) / len(y)


def shifted(x: Float[Tensor, "n *shape"], by: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """Each sample moved around the last axis by its own number of places."""
    length = x.shape[-1]
    source = (torch.arange(length) - by[:, None]) % length
    return x.gather(-1, source.view(len(x), *(1,) * (x.ndim - 2), length).expand_as(x))


def _fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    name: str,
    seed: int,
    permuted: bool,
    progress: Progress,
) -> None:
    epochs = recipe.permuted_epochs if permuted else recipe.epochs
    steps = len(x) // recipe.batch
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=epochs * steps)
    order = Draws.of([name], seed, "order of samples", permuted)
    label = f"training {name}" + (" on permuted labels" if permuted else "")
    moves = Draws.of([name], seed, "shifts")
    furthest = 0 if permuted else round(recipe.shift * x.shape[-1])
    model.train()
    for epoch in range(epochs):
        rows = order.permutation(len(x), draw=epoch)[0]
        by = moves.integers(2 * furthest + 1, len(x), draw=epoch)[0] - furthest
        for step in range(steps):
            batch = rows[step * recipe.batch : (step + 1) * recipe.batch]
            optimizer.zero_grad()
            inputs = shifted(x[batch], by[batch]) if furthest else x[batch]
            cross_entropy(model(inputs), y[batch]).backward()
            optimizer.step()
            schedule.step()
            progress(label, (epoch * steps + step + 1) / (epochs * steps), f"epoch {epoch + 1} of {epochs}")


def _read(path: Path) -> Trained:
    with safe_open(path, framework="pt") as file:
        measured = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return Trained(state, float(measured["train_accuracy"]), float(measured["test_accuracy"]))
