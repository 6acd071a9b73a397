"""A school: trains new networks like a model's, on permuted labels, under another seed, or on other samples."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from harness.case import Labelled, Partner
from harness.data import Data
from harness.digests import digest
from harness.heads import shape_of, without_head
from harness.models.course import Course, state_of, unpacked
from harness.random import Draws, torch_seeded
from harness.training import Lesson, Progress, Trained, Trainer, accuracy, cache_folder, kept
from harness.types import InputError

MEMORIZED = 0.95
CHANCE_SIGNIFICANCE = 1e-4


@dataclass(frozen=True)
class School:
    """What it takes to train a network like a model's. What it trains on its own data is kept on disk.

    Attributes:
        name: of the network.
        build: makes a new network without its head, with weights drawn by torch's generator.
        head: puts the head on.
        code: what the network is made by.
        recipe: how it is trained.
        data: whose training part it is trained on, and whose held-out part it is measured with.
        device: where networks go once they are trained.
        dtype: the type of their parameters.
        progress: told what happens.
    """

    name: str
    build: Callable[[], nn.Module]
    head: Callable[[nn.Module], nn.Module]
    code: str
    recipe: Trainer
    data: Data
    device: torch.device
    dtype: torch.dtype
    progress: Progress

    def trained(self, seed: int, permuted: bool = False) -> Trained:
        """The state of a new network, from the disk if it has been trained before.

        Args:
            seed: of the initial parameters, of the order of the samples and of the permutation of the labels.
            permuted: train on labels that are permuted once among all training samples.

        Raises:
            InputError: the data have no labelled training part, or the recipe fails.
        """
        part, held_out, lesson = self.data.train, self.data.labels, Lesson(self.name, seed, permuted)
        labels = None if part is None else part.labels
        if part is None or labels is None or held_out is None:
            raise InputError(f"{self.name}: {self.data.name} has no labelled training part to train on")
        key = digest(*self._makes(lesson), self.data.fingerprint, seed, permuted)
        path = self._path("permuted" if permuted else "true", key)
        return kept(path, lambda: self._trained(part, labels, held_out, lesson))

    def history(self, seed: int) -> list[tuple[float, nn.Module]]:
        """How far the training that `trained` does has come, and the network at that moment; kept on disk.

        Raises:
            LookupError: the data have no labelled training part.
        """
        (part, labels), lesson = self._taught, Lesson(self.name, seed, purpose="over again to look on the way")

        def watched() -> Trained:
            course = Course()
            end = self._fitted(*_readable(part, labels), lesson, course.watching)
            return Trained(course.packed(end), math.nan, math.nan)

        path = self._path("history", digest(*self._makes(lesson), self.data.fingerprint, seed))
        return [(done, self.network(state)) for done, state in unpacked(kept(path, watched).state)]

    def identity(self, seed: int) -> str:
        """A hash of what its networks depend on besides the seed that they are trained with."""
        return digest(*self._makes(Lesson(self.name, seed)), self.data.fingerprint)

    @property
    def teachable(self) -> bool:
        """Whether its data have labels, and a training part that has."""
        return self.data.labels is not None and self.data.train is not None and self.data.train.labels is not None

    @property
    def training(self) -> Labelled:
        """What it trains on, where its networks are.

        Raises:
            LookupError: the data have no labelled training part.
        """
        part, labels = self._taught
        rows, x, _ = part.readable(range(len(part)))
        y = labels[torch.tensor(rows)].to(self.device)
        return Labelled(x.to(self.device, self.dtype), y, [part.ids[row] for row in rows])

    def labels_of(self, samples: Sequence[str]) -> Int[Tensor, " n"]:
        """The labels of held-out samples with these ids.

        Raises:
            LookupError: nothing says them.
        """
        if self.data.labels is None:
            raise LookupError(f"{self.name}: the samples of {self.data.name} have no labels")
        row_of = {each: row for row, each in enumerate(self.data.ids)}
        return self.data.labels[torch.tensor([row_of[each] for each in samples])].to(self.device)

    def network(self, state: dict[str, Tensor]) -> nn.Module:
        """A network with this state and its head, on its device, in evaluation mode."""
        network = self._another()
        without_head(network).load_state_dict(state)
        return network

    def partner(self, seed: int) -> Partner:
        """A network trained on permuted labels, with the reason why it is invalid, if it is."""
        result = self.trained(seed, permuted=True)
        network = self.network(result.state)
        return Partner(network, result.train_accuracy, result.test_accuracy, invalid(result, self.data))

    def train(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], seed: int, purpose: str = "") -> nn.Module:
        """A new network, trained on these samples and labels, from the disk if it has been trained before."""
        lesson = Lesson(self.name, seed, purpose=purpose)

        def trained() -> Trained:
            state = state_of(self._fitted(x, y, lesson))
            return Trained(state, accuracy(self._answering(self.network(state), x[:1]), x, y), math.nan)

        path = self._path("given", digest(*self._makes(lesson), x, y, seed))
        return self.network(kept(path, trained).state)

    @property
    def _taught(self) -> tuple[Data, Int[Tensor, " all"]]:
        part = self.data.train
        if part is None or part.labels is None:
            raise LookupError(f"{self.name}: {self.data.name} has no labelled training part")
        return part, part.labels

    def _makes(self, lesson: Lesson) -> tuple[object, ...]:
        """What a network depends on besides samples, labels and the seed."""
        with torch_seeded("shape"):
            form = str(self.build())
        with lesson.seeded():
            return self.name, self.code, form, self.recipe.identity(self.build())

    def _path(self, kind: str, key: str) -> Path:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)
        return cache_folder() / "models" / f"{stem}-{kind}-{key}.safetensors"

    def _another(self) -> nn.Module:
        with torch_seeded("another"):
            return self.head(self.build()).to(self.device, self.dtype).eval()

    def _trained(
        self, part: Data, labels: Int[Tensor, " all"], held_out: Int[Tensor, " held_out"], lesson: Lesson
    ) -> Trained:
        x, y = _readable(part, labels)
        self._answering(self._another(), x[:1])  # or else one learns only after the training that it cannot be told
        if lesson.permuted:
            y = y[Draws.of([self.name], lesson.seed, "permuted labels").permutation(len(y))[0]]
        state = state_of(self._fitted(x, y, lesson))
        answering = self._answering(self.network(state), x[:1])
        return Trained(state, accuracy(answering, x, y), accuracy(answering, *_readable(self.data, held_out)))

    def _fitted(
        self,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        lesson: Lesson,
        watching: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
    ) -> nn.Module:
        with lesson.seeded(), torch.enable_grad():
            network = self.build()
            with watching(network):
                return self.recipe.fit(network, x, y, lesson, self.progress)

    def _answering(self, network: nn.Module, x: Float[Tensor, "1 ..."]) -> nn.Module:
        """The network whose largest output is the predicted class: without its head if that returns logits.

        Raises:
            InputError: neither with nor without a head, so that nothing tells how well it is trained, or it raises.
        """
        for each in (without_head(network), network):
            try:
                with torch.no_grad():
                    output = each(x.to(self.device, self.dtype, copy=True))
            except Exception as error:
                raise InputError(
                    f"{self.name} cannot be trained on {self.data.name}: it raises on samples of shape "
                    f"{list(x.shape[1:])}: {type(error).__name__}: {error}"
                ) from error
            if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
                return each
        raise InputError(
            f"{self.name}: whether training has worked is told by logits [n, classes], and the network returns "
            f"{shape_of(output)}: give it a `head`"
        )


def _readable(data: Data, labels: Int[Tensor, " all"]) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
    rows, x, _ = data.readable(range(len(data)))
    return x, labels[torch.tensor(rows)]


def invalid(result: Trained, data: Data) -> str:
    """Why a partner cannot serve: it did not memorize its labels, or knows more than chance; else empty.

    Chance is the share of the commonest class. Fewer hits are luck: similar digits share a prediction, so that
    accuracies spread more widely than a binomial would, and the level of significance is strict (a partner with 12.7 %
    of 1,000 digits knows nothing).
    """
    assert data.labels is not None
    if result.train_accuracy < MEMORIZED:
        return f"the partner memorized {result.train_accuracy:.1%} of its permuted labels, needs {MEMORIZED:.0%}"
    chance = int(data.labels.bincount().max()) / len(data)
    hits = round(result.test_accuracy * len(data))
    if binomtest(hits, len(data), chance, alternative="greater").pvalue < CHANCE_SIGNIFICANCE:
        return f"the partner's test accuracy {result.test_accuracy:.1%} is above chance, {chance:.1%}"
    return ""
