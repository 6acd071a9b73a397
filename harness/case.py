"""What a metric sees: one model, one block of samples, one method."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.entries import Method
from harness.heap import HEAP
from harness.inference import EAGER, Inference
from harness.random import Draws
from harness.remarks import Remarks, listening
from harness.space import InputSpace
from harness.types import NotApplicableError


@dataclass
class Passes:
    """Sample-passes: a batch of 64 through the model counts as 64.

    Attributes:
        forward: through a network, with or without a graph.
        backward: through its graph.
        statistics: those of the forward ones that estimated statistics of batch norms, on samples of their own.
        explained: how many maps were made by them, those of the method on trained and on randomized networks alike.
    """

    forward: int = 0
    backward: int = 0
    statistics: int = 0
    explained: int = 0

    def went_forward(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        """Count what a network returned, and its backward pass when it comes: a forward hook."""
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self.went_back)

    def went_back(self, gradient: Tensor) -> None:
        """Count a backward pass: the hook of an output."""
        self.backward += len(gradient)


@dataclass(frozen=True)
class Block:
    """A part of a network that is randomized as one: its name and the names of its parameters and buffers."""

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


@dataclass(frozen=True)
class Partner:
    """The same network trained on permuted labels. `invalid` says why it cannot serve, or is empty."""

    model: nn.Module
    train_accuracy: float
    test_accuracy: float
    invalid: str


@dataclass(frozen=True)
class Labelled:
    """Samples with their labels and ids, such as those that a model was trained on."""

    x: Float[Tensor, "m ..."]
    y: Int[Tensor, " m"]
    samples: Sequence[str]


class Source(ABC):
    """Where a model comes from: what a metric may ask for beyond the model itself.

    Attributes:
        calibration: inputs to re-estimate batch-norm statistics with.
        background: samples that stand for the data, for methods with `needs=("background",)`.
        shared: what depends on the model, its twins and the samples and not on the method: computed once.
    """

    calibration: Float[Tensor, "m ..."]
    background: Float[Tensor, "m ..."]
    shared: dict[object, Any]

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """The blocks of the network in execution order; together they hold every parameter."""

    @abstractmethod
    def twin(self, *draw: int) -> nn.Module:
        """A randomly initialized network of the same architecture."""

    @abstractmethod
    def partner(self, other: bool = False) -> Partner:
        """The same network trained on permuted labels; `other` is a second one, trained independently."""

    @abstractmethod
    def retrained(self) -> nn.Module | None:
        """The same network trained on true labels from another seed; None where there is no recipe."""

    @property
    @abstractmethod
    def retrained_test_accuracy(self) -> float | None:
        """The re-trained network's accuracy on held-out samples; None where there is none."""

    @property
    @abstractmethod
    def training(self) -> Labelled:
        """What the recipe trains on, where the model is; `needs=("recipe",)` keeps a metric from asking in vain."""

    @abstractmethod
    def labels_of(self, samples: Sequence[str]) -> Int[Tensor, " n"]:
        """The labels of held-out samples with these ids."""

    @abstractmethod
    def train(self, x: Float[Tensor, "m ..."], y: Int[Tensor, " m"], seed: int, purpose: str = "") -> nn.Module:
        """A new network, trained by the recipe on these samples and labels; kept on disk, so that none is twice.

        `purpose` is shown while it goes on.
        """

    @abstractmethod
    def history(self) -> Sequence[tuple[float, nn.Module]]:
        """The training of the model over again: how much of it is done, from 0 to 1, and the network at that moment."""


@dataclass(frozen=True)
class Explainer:
    """A method with its options, as a study names it. Named fills are still names."""

    method: Method
    options: Mapping[str, Any]

    @property
    def conserves(self) -> Literal["output", "difference"] | None:
        """What the map sums to, as the method claims it with these options."""
        defaults = {name: parameter.default for name, parameter in self.method.options.items()}
        return self.method.conserves if self.method.conserves_if({**defaults, **self.options}) else None

    def maps(
        self,
        model: nn.Module,
        x: Float[Tensor, "n *shape"],
        target: Int[Tensor, " n"],
        space: InputSpace,
        samples: Sequence[str],
        seed: int,
        *,
        call: object = 0,
        background: Float[Tensor, "m ..."] | None = None,
        masks: Float[Tensor, "n ..."] | None = None,
        chunk: int = 64,
    ) -> Float[Tensor, "n ..."]:
        """The raw maps of one batch; everything the harness fills in is resolved here.

        Raises:
            ValueError: the method returned something else than one map for each sample.
        """
        filled: dict[str, Any] = dict(self.options)
        if "baseline" in filled:
            filled["baseline"] = self.baseline(x, space, samples, seed)
        known = {
            "draws": Draws.of(samples, seed, "method", self.method.name, call, device=x.device),
            "space": space,
            "background": background,
            "masks": masks,
            "chunk": chunk,
            "ids": samples,
        }
        filled |= {name: value for name, value in known.items() if name in self.method.parameters}
        # A clone, because an in-place operation of the model would change the samples of everybody else.
        maps = self.method.function(model, x.clone(), target, **filled)
        one_channel = (len(x), 1, *x.shape[2:]) if x.ndim > 2 else x.shape
        if maps.shape not in (x.shape, one_channel):
            raise ValueError(
                f"{self.method.name} returned maps of shape {list(maps.shape)}, "
                f"expected {list(x.shape)} or one channel, {list(one_channel)}"
            )
        return maps.detach()

    def baseline(
        self, x: Float[Tensor, "n *shape"], space: InputSpace, samples: Sequence[str], seed: int
    ) -> Float[Tensor, "n *shape"]:
        """The baseline that the method's option names, keyed by the sample and never by the method."""
        draws = Draws.of(samples, seed, "baseline", device=x.device)
        return space.fill(self.options["baseline"], x, draws)


@dataclass
class Case:
    """One model, one block of samples, one method; shared by all metrics.

    Attributes:
        model: the trained network in evaluation mode; never written to.
        source: where the model comes from: twins, partner, blocks.
        explainer: the method with its options.
        x: the samples.
        target: the explained class of each sample, frozen for the whole study.
        samples: a stable id for each sample.
        space: what the numbers in `x` mean.
        seed: the study's seed.
        chunk: how many samples go through a model at once.
        inference: the form of the model for passes without a gradient; None: the model itself.
        masks: where in each sample the truth lies, if the data say so: [n, 1, ...], or [n, f] for a table.
        of_another: where the masks are of another class than the explained one; None if nothing tells.
        no_truth: why the masks are no truth for this model, although they were planted to be; empty if they are.
        parts: where the parts of each sample are, and the samples without each part, if the data say so.
        labels: the true classes, if the data say them.
        classes: names of the classes by index, if they have any.
        remarks: what the method said of the maps.
        passes: counts every sample-pass that goes through `explain` and `logits`.
        kept: what metrics share of this method on these samples; a case that is made from this one begins anew.
    """

    model: nn.Module
    source: Source
    explainer: Explainer
    x: Float[Tensor, "n ..."]
    target: Int[Tensor, " n"]
    samples: Sequence[str]
    space: InputSpace
    seed: int
    chunk: int
    inference: Inference | None = None
    masks: Float[Tensor, "n ..."] | None = None
    of_another: Bool[Tensor, " n"] | None = None
    no_truth: str = ""
    parts: tuple[Float[Tensor, "n parts ..."], Float[Tensor, "n parts ..."]] | None = None
    labels: Int[Tensor, " n"] | None = None
    classes: tuple[str, ...] = ()
    remarks: Remarks = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)
    kept: dict[object, Any] = field(default_factory=dict, init=False)

    @cached_property
    def maps(self) -> Float[Tensor, "n ..."]:
        """The method's raw maps for the trained model."""
        with listening() as self.remarks:
            return self.explain()

    @cached_property
    def baseline(self) -> Float[Tensor, "n ..."] | None:
        """The baseline of the method, if it has one."""
        if "baseline" not in self.explainer.options:
            return None
        return self.explainer.baseline(self.x, self.space, self.samples, self.seed)

    def explain(
        self,
        model: nn.Module | None = None,
        x: Float[Tensor, "n ..."] | None = None,
        target: Int[Tensor, " n"] | None = None,
        call: object = 0,
        space: InputSpace | None = None,
        background: Float[Tensor, "m ..."] | None = None,
    ) -> Float[Tensor, "n ..."]:
        """Maps for another model, input or target; a new `call` gives a stochastic method new noise.

        Where the input has moved, `space` and `background` say what has moved along.

        Raises:
            ValueError: not one input for each sample, or the method returned something else than maps.
            NotApplicableError: the maps were made elsewhere, and there are none for another model, input or target.
        """
        if self.explainer.method.fixed and (model, x, target) != (None, None, None):
            name = self.explainer.method.name
            raise NotApplicableError(f"{name}: made elsewhere, for the trained model, these samples and targets only")
        model = self.model if model is None else model
        x = self.x if x is None else x
        if len(x) != len(self.samples):
            raise ValueError(f"explain: expected one input for each of the {len(self.samples)} samples, got {len(x)}")
        self.passes.explained += len(x)
        target = self.target if target is None else target
        space = self.space if space is None else space
        if background is None and "background" in self.explainer.method.needs:
            background = self.source.background
        HEAP.settle()
        maps = partial(self.explainer.maps, call=call, background=background, chunk=self.chunk)
        with counted(model, self.passes):
            chunks = [
                maps(
                    model,
                    x[part],
                    target[part],
                    space,
                    self.samples[part],
                    self.seed,
                    masks=None if self.masks is None else self.masks[part],
                )
                for part in self._chunks(len(x))
            ]
        return torch.cat(chunks)

    def logits(self, x: Float[Tensor, "m ..."], model: nn.Module | None = None) -> Float[Tensor, "m classes"]:
        """The model's outputs, in chunks and without a graph; `x` is safe from a model that writes in place."""
        model = self.model if model is None else model
        form = self.inference if self.inference and model is self.model else Inference(EAGER, model)
        with counted(form.network, self.passes):
            outputs = [form.logits(x[part]) for part in self._chunks(len(x))]
        # Joined here, they are ordinary tensors, also where the form is for inference only.
        return torch.cat(outputs)

    def shared_here(self, what: str) -> dict[Any, Any]:
        """What all methods share on these samples; of other samples it is forgotten, so that memory does not grow.

        So it is when the chunk changes, because values may then differ in their last bits.
        """
        here = (tuple(self.samples), self.chunk)
        where, known = self.source.shared.get(what, (None, {}))
        if where != here:
            known = {}
            self.source.shared[what] = (here, known)
        return known

    @property
    def axes(self) -> torch.Size:
        """The shape of the positions of a sample: what is left of it without channels."""
        return self.x.shape[2:] or self.x.shape[1:]

    @property
    def position_axes(self) -> int:
        """How many axes the positions of a sample have: 2 of an image, 1 of a signal or a table."""
        return len(self.axes)

    def twin(self, *draw: int) -> nn.Module:
        """A randomly initialized network of the same architecture: the same one for every method."""
        return self.source.twin(*draw)

    def retrained(self) -> nn.Module | None:
        """The same network trained on true labels from another seed; None where there is no recipe."""
        return self.source.retrained()

    def partner(self, other: bool = False) -> Partner:
        """The same network trained on permuted labels; `other` is a second one, trained independently."""
        return self.source.partner(other)

    def train(self, x: Float[Tensor, "m ..."], y: Int[Tensor, " m"], seed: int, purpose: str = "") -> nn.Module:
        """A new network, trained by the recipe on these samples and labels, in evaluation mode beside the model."""
        return self.source.train(x, y, seed, purpose)

    def on(self, samples: Labelled) -> "Case":
        """The same model and method on other samples, of which the predicted class is explained, without masks."""
        target = self.logits(samples.x).argmax(1)
        return replace(
            self,
            x=samples.x,
            target=target,
            samples=samples.samples,
            masks=None,
            of_another=None,
            parts=None,
            labels=samples.y,
            remarks={},
        )

    def part(self, part: slice) -> "Case":
        """The same of some of the samples."""
        return replace(
            self,
            x=self.x[part],
            target=self.target[part],
            samples=self.samples[part],
            masks=None if self.masks is None else self.masks[part],
            of_another=None if self.of_another is None else self.of_another[part],
            parts=None if self.parts is None else (self.parts[0][part], self.parts[1][part]),
            labels=None if self.labels is None else self.labels[part],
        )

    def draws(self, *purpose: object) -> Draws:
        """Random numbers keyed by (seed, purpose, sample) and never by the method, so that methods are paired."""
        return Draws.of(self.samples, self.seed, *purpose, device=self.x.device)

    def fill(self, name: str, draw: int = 0) -> Float[Tensor, "n ..."]:
        """What stands in the place of what is removed from `x`; see `InputSpace.fill`."""
        return self.space.fill(name, self.x, self.draws("fill", name), draw)

    def _chunks(self, size: int) -> list[slice]:
        return [slice(start, start + self.chunk) for start in range(0, size, self.chunk)]


@contextmanager
def counted(model: nn.Module, passes: Passes) -> Iterator[None]:
    """Count the sample-passes through `model` inside the block."""
    handle = model.register_forward_hook(passes.went_forward)
    try:
        yield
    finally:
        handle.remove()
