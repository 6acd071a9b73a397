"""Training by recipe, deterministic by seed, cached by everything that it depends on."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.random import Draws, torch_seeded

Progress = Callable[[str, float, str], None]
"""What is being done, the fraction done, and what exactly."""

BATCH_FOR_ACCURACY = 500


@dataclass(frozen=True)
class Lesson:
    """What a recipe is told besides the samples: whom it trains, the seed, if labels are permuted, and what for."""

    name: str
    seed: int
    permuted: bool = False
    purpose: str = ""

    @property
    def title(self) -> str:
        """What is shown while it goes on."""
        labels = " on permuted labels" if self.permuted else ""
        purpose = f" {self.purpose}" if self.purpose else ""
        return f"training {self.name}{purpose}{labels}{f', seed {self.seed}' if self.seed else ''}"

    def seeded(self) -> AbstractContextManager[None]:
        """Torch's generator as the network's initial parameters and its training want it."""
        return torch_seeded(self.seed, "initial parameters", self.name, self.permuted)


@runtime_checkable
class Trainer(Protocol):
    """How networks are trained: the `Recipe` of a built-in one, or a function of the user (`harness.recipes`)."""

    @property
    def title(self) -> str:
        """What it is called; empty for that of a built-in network."""

    def identity(self, initial: nn.Module) -> object:
        """What the trained network depends on besides its code, the data and the seed."""

    def fit(self, model: nn.Module, x: Tensor, y: Tensor, lesson: Lesson, progress: Progress) -> nn.Module:
        """Train a new network on samples [n, ...] and labels [n] as they are; returns it."""


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

    @property
    def title(self) -> str:
        """What it is called: nothing."""
        return ""

    def identity(self, _initial: nn.Module) -> object:
        """What the trained network depends on besides its code, the data and the seed."""
        return asdict(self)

    def fit(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], lesson: Lesson, progress: Progress
    ) -> nn.Module:
        """Train a network in place on the CPU, where these small ones are quick, and return it.

        Args:
            model: a new network.
            x: the samples.
            y: their labels, permuted already if they are to be.
            lesson: the seed of the order of the samples, and which number of epochs.
            progress: told after each step.
        """
        x, y = x.cpu(), y.cpu()
        epochs = self.permuted_epochs if lesson.permuted else self.epochs
        steps = max(len(x) // self.batch, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=epochs * steps)
        order = Draws.of([lesson.name], lesson.seed, "order of samples", lesson.permuted)
        moves = Draws.of([lesson.name], lesson.seed, "shifts")
        furthest = 0 if lesson.permuted else round(self.shift * x.shape[-1])
        model.train()
        for epoch in range(epochs):
            rows = order.permutation(len(x), draw=epoch)[0]
            by = moves.integers(2 * furthest + 1, len(x), draw=epoch)[0] - furthest
            for step in range(steps):
                batch = rows[step * self.batch : (step + 1) * self.batch]
                optimizer.zero_grad()
                inputs = shifted(x[batch], by[batch]) if furthest else x[batch]
                cross_entropy(model(inputs), y[batch]).backward()
                optimizer.step()
                schedule.step()
                progress(lesson.title, (epoch * steps + step + 1) / (epochs * steps), f"epoch {epoch + 1} of {epochs}")
        return model


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


def kept(path: Path, train: Callable[[], Trained]) -> Trained:
    """The network in this file, which is trained and written if it is not there; of two writers, one wins whole."""
    if path.exists():
        return _read(path)
    result = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    measured = {"train_accuracy": repr(result.train_accuracy), "test_accuracy": repr(result.test_accuracy)}
    save_file(result.state, scratch, metadata=measured)
    scratch.replace(path)
    return result


def accuracy(model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> float:
    """The fraction of samples whose largest logit is their label's, in evaluation mode, wherever the model is."""
    model.eval()
    place = next(model.parameters(), x)
    hits = 0
    with torch.no_grad():
        for inputs, labels in zip(x.split(BATCH_FOR_ACCURACY), y.split(BATCH_FOR_ACCURACY), strict=True):
            hits += int((model(inputs.to(place.device, place.dtype)).argmax(1).cpu() == labels.cpu()).sum())
    return hits / len(y)


def shifted(x: Float[Tensor, "n *shape"], by: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """Each sample moved around the last axis by its own number of places."""
    length = x.shape[-1]
    source = (torch.arange(length) - by[:, None]) % length
    return x.gather(-1, source.view(len(x), *(1,) * (x.ndim - 2), length).expand_as(x))


def _read(path: Path) -> Trained:
    with safe_open(path, framework="pt") as file:
        measured = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return Trained(state, float(measured["train_accuracy"]), float(measured["test_accuracy"]))
