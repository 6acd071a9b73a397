"""A model with its weights on its device, and what a metric may ask of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.blocks import blocks_of
from harness.case import Block, Labelled, Partner, Source
from harness.digests import digest
from harness.inference import Inference, inference_form
from harness.models.school import School
from harness.twins import architecture_of, twin_note, twin_of

TWINS_BYTES = 2**29
"""Of randomized networks, kept for the methods that come next."""

RANDOM = "random"
TRAINED = "trained by "


@dataclass
class LoadedModel(Source):
    """A trained network on its device, with its twins, partner and blocks (`harness.case.Source`).

    Attributes:
        model: the network in evaluation mode.
        build: its constructor, if there is one.
        seed: the study's seed; twins are keyed by it.
        example: one input, to trace the blocks with.
        calibrate: reads the inputs to re-estimate batch-norm statistics with.
        school: trains networks like it, if there is a recipe.
        model_seed: the seed the network was trained with, or which of several checkpoints it is.
        code: a hash of the code and the settings that make the network, with its weights, the function that it is.
        origin: where the weights come from, in words.
        read_background: reads the samples that stand for the data, if there are any.
        compiled: whether its form for passes without a gradient is compiled.
    """

    model: nn.Module
    build: Callable[[], nn.Module] | None
    seed: int
    example: Float[Tensor, "1 ..."]
    calibrate: Callable[[], Float[Tensor, "m ..."]]
    school: School | None = None
    model_seed: int = 0
    code: str = ""
    origin: str = ""
    read_background: Callable[[], Float[Tensor, "m ..."]] | None = None
    compiled: bool = False
    shared: dict[object, Any] = field(default_factory=dict)
    _inference: Inference | None = field(default=None, repr=False)

    def inference(self, read: Callable[[], Float[Tensor, "n ..."]]) -> Inference:
        """The form of the network for passes without a gradient, made once and checked on samples that are read."""
        if self._inference is None:
            self._inference = inference_form(self.model, read(), self.compiled)
        return self._inference

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in execution order."""
        return blocks_of(self.model, self.example)

    @cached_property
    def calibration(self) -> Float[Tensor, "m ..."]:  # type: ignore[override]
        """Inputs to re-estimate batch-norm statistics with; none where there is nothing to estimate."""
        estimates = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        return self.calibrate() if estimates else self.example[:0]

    @cached_property
    def background(self) -> Float[Tensor, "m ..."]:  # type: ignore[override]
        """Samples that stand for the data.

        Raises:
            LookupError: there are none; `needs=("background",)` keeps a method from getting here.
        """
        if self.read_background is None:
            raise LookupError("no samples are known that stand for the data, so there is no background")
        return self.read_background()

    @cached_property
    def background_contents(self) -> str:
        """A hash of the background; empty if there is none."""
        return digest(self.background) if self.read_background else ""

    @cached_property
    def weights(self) -> str:
        """A hash of all parameters and buffers with their names."""
        return hash_of(self.model)

    @cached_property
    def partner_weights(self) -> str:
        """The same of the partner, which is trained for it; empty if there is no recipe."""
        return hash_of(self.partner().model) if self.school else ""

    @cached_property
    def second_partner_weights(self) -> str:
        """The same of the second partner."""
        return hash_of(self.partner(other=True).model) if self.school else ""

    @cached_property
    def retrained_weights(self) -> str:
        """The same of the re-trained network."""
        network = self.retrained()
        return hash_of(network) if network else ""

    @cached_property
    def identity(self) -> str:
        """A hash of the weights and of what its randomized versions depend on."""
        return digest(self.weights, self.note, self.calibration, self.code)

    @cached_property
    def note(self) -> str:
        """How the twins come about."""
        return twin_note(self.model, self.build)

    def twin(self, *draw: int) -> nn.Module:
        """A randomly initialized network of the same architecture, keyed by (seed, architecture, draw).

        The next method asks for the same one, so it is kept while there is room. It is never written to.
        """
        known = self.shared.setdefault("twins", {})
        if draw in known:
            return known[draw]
        twin = twin_of(self.model, self.build, self.seed, architecture_of(self.model), *draw)
        size = sum(tensor.numel() * tensor.element_size() for tensor in twin.state_dict().values())
        if size * (len(known) + 1) <= TWINS_BYTES:
            known[draw] = twin
        return twin

    def partner(self, other: bool = False) -> Partner:
        """The same network trained on permuted labels, with the reason why it is invalid, if it is.

        Args:
            other: a second one, of other initial weights and of another permutation.

        Raises:
            LookupError: the model has no recipe; `needs=("partner",)` keeps a metric from getting here.
        """
        partner = self._second_partner if other else self._partner
        if partner is None:
            raise LookupError("the model has no training recipe, so it has no partner trained on permuted labels")
        return partner

    def retrained(self) -> nn.Module | None:
        """The same network trained on true labels under another seed; None if no recipe made it as it is."""
        return self._retrained[0] if self._retrained else None

    @property
    def retrained_test_accuracy(self) -> float | None:
        """How well the re-trained network does on held-out samples."""
        return self._retrained[1] if self._retrained else None

    @property
    def training(self) -> Labelled:
        """What the recipe trains on, where the model is.

        Raises:
            LookupError: the model has no recipe; `needs=("recipe",)` keeps a metric from getting here.
        """
        return self._recipe.training

    def labels_of(self, samples: Sequence[str]) -> Int[Tensor, " n"]:
        """The labels of held-out samples with these ids.

        Raises:
            LookupError: the model has no recipe.
        """
        return self._recipe.labels_of(samples)

    def train(self, x: Float[Tensor, "m ..."], y: Int[Tensor, " m"], seed: int, purpose: str = "") -> nn.Module:
        """A new network, trained by the recipe on these samples and labels.

        Raises:
            LookupError: the model has no recipe.
        """
        return self._recipe.train(x, y, seed, purpose)

    def history(self) -> Sequence[tuple[float, nn.Module]]:
        """The training of the model over again, by its recipe and from its seed.

        It ends in the model itself where its weights come of that; published ones come of another training.

        Raises:
            LookupError: the model has no recipe.
        """
        return self._recipe.history(self.model_seed)

    @cached_property
    def recipe_identity(self) -> str:
        """A hash of what networks trained by the recipe depend on; empty if there is no recipe."""
        return self.school.identity(self.model_seed) if self.school else ""

    @property
    def _recipe(self) -> School:
        if self.school is None:
            raise LookupError("the model has no training recipe")
        return self.school

    @cached_property
    def _partner(self) -> Partner | None:
        return self.school.partner(self.model_seed) if self.school else None

    @cached_property
    def _second_partner(self) -> Partner | None:
        return self.school.partner(self.model_seed + 1) if self.school else None

    @cached_property
    def _retrained(self) -> tuple[nn.Module, float] | None:
        # Published weights come of another training than the recipe that we have for their architecture.
        by_recipe = self.school is not None and (self.origin.startswith(TRAINED) or self.school.recipe.title)
        if self.school is None or not by_recipe or self.origin.startswith(RANDOM):
            return None
        result = self.school.trained(self.model_seed + 1)
        return self.school.network(result.state), result.test_accuracy


def hash_of(model: nn.Module) -> str:
    """A hash of all parameters and buffers with their names."""
    return digest({**dict(model.named_parameters()), **dict(model.named_buffers())})
