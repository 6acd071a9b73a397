"""What all metrics share that change the input and watch the output: units, orders, fills, packed batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, Field
from torch import Tensor

from harness.case import Case
from harness.metrics.imputation import biharmonic, linear
from harness.metrics.preprocessing import degenerate, first_reason, reduce_channels
from harness.random import Draws
from harness.space import IMPUTATIONS
from harness.types import InputError, NotApplicableError
from harness.units import patches, superpixels, unit_sizes, unit_sums

Order = Literal["most_first", "least_first", "random"]
ORDERS: tuple[Order, ...] = ("most_first", "least_first", "random")

PATCHES, LARGEST = 49, 1024
"""How many patches there are, about, and at most, where a metric is not told their side."""

ROUNDING = 16
"""By how many units in the last place outputs may differ and still be the same."""

NOISE = 0.01
"""Standard deviation of what is added to linear imputation, as a fraction of the valid range."""

Outputs = dict[str, Float[Tensor, "n ..."]]
"""`logit`, `probability`, `log_odds` and `correct` of each version of each sample; NaN where it is not finite."""


def _instead_of_patches(count: int, given: Any) -> int:
    # `given` is pydantic's ValidationInfo, a protocol that nothing can be checked against: the options before this one.
    if count and given.data.get("patch", 1) > 1:
        raise ValueError(f"patches or superpixels, not both: patch={given.data['patch']}, superpixels={count}")
    return count


Superpixels = Annotated[int, Field(ge=0), AfterValidator(_instead_of_patches)]
"""An option that stands behind `patch`: how many superpixels take the place of patches, 0 for patches."""


def removal_ranks(
    relevance: Float[Tensor, "n units"], draws: Draws, exists: Bool[Tensor, "n units"] | None = None
) -> Int[Tensor, "n units"]:
    """The position of each unit when the most relevant goes first; ties in a random order with its own key.

    The ranks of `-relevance` are those of least relevant first, with the same tie order, so that reversing a
    map swaps the two orders exactly. Units that do not exist come last.
    """
    shuffle = draws.permutation(relevance.shape[1])
    priority = relevance if exists is None else relevance.masked_fill(~exists, -torch.inf)
    order = priority.gather(1, shuffle).argsort(stable=True, dim=1, descending=True)
    return shuffle.gather(1, order).argsort(1)


def outputs(logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> dict[str, Float[Tensor, " n"]]:
    """What is recorded of an output: `logit`, `probability`, `log_odds` and `correct` (is it still the target?).

    All of them are NaN where a logit is not finite, so that what is made of them is, too: see `unknown`.
    """
    chosen, broken = target[:, None], ~logits.isfinite().all(1)
    logits = logits.double()
    logit = logits.gather(1, chosen)[:, 0]
    others = logits.scatter(1, chosen, -torch.inf).logsumexp(1)
    found = {
        "logit": logit,
        "probability": logits.softmax(1).gather(1, chosen)[:, 0],
        "log_odds": logit - others,
        "correct": (logits.argmax(1) == target).double(),
    }
    return {name: values.masked_fill(broken, torch.nan) for name, values in found.items()}


def unknown(values: Float[Tensor, "n *versions"]) -> dict[str, Bool[Tensor, " n"]]:
    """Where what was made of outputs has no value, because a model gave what is not finite; see `outputs`."""
    return {"the output is not finite": values.isnan().reshape(len(values), -1).any(1)}


def outputs_of(
    case: Case, versions: int, inputs: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], Float[Tensor, "m ..."]]
) -> Outputs:
    """The outputs for `versions` versions of each sample, in full batches across versions and samples.

    Args:
        case: the model and the samples.
        versions: how many of each sample.
        inputs: which samples, which version of each -> what goes through the model.
    """
    found = [
        outputs(case.logits(inputs(rows, version)), case.target[rows]) for rows, version in batches(case, versions)
    ]
    return {name: torch.cat([each[name] for each in found]).view(versions, -1).T for name in found[0]}


def batches(case: Case, versions: int) -> Iterator[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]]:
    """Which samples go through the model at once, and which version of each: one version of all, then the next."""
    size = len(case.x)
    for start in range(0, versions * size, case.chunk):
        index = torch.arange(start, min(start + case.chunk, versions * size), device=case.x.device)
        yield index % size, index // size


@dataclass(frozen=True)
class Removal:
    """How units are removed: which positions go together, and what stands in their place.

    Attributes:
        fill: what stands in the place of what is removed, named in pixel space (`InputSpace.fill`), or guessed from
            what is left: `noisy_linear` (`rong2022consistent`), `inpaint` (`damelin2018surface`).
        patch: side of the square patches that are removed together; 1: single positions, all channels together.
        superpixels: about how many superpixels there are instead of patches, or pieces of a signal; 0: patches.
        imputations: over how many draws of a random fill outputs are averaged.
    """

    fill: str
    patch: int = 1
    superpixels: int = 0
    imputations: int = 1

    def on(self, case: Case) -> "Removing":
        """The same for the samples of a case.

        Raises:
            InputError: both patches and superpixels.
            NotApplicableError: patches of a table, whose features have no neighbours.
        """
        if self.patch > 1 and self.superpixels:
            raise InputError(f"patches or superpixels, not both: patch={self.patch}, superpixels={self.superpixels}")
        if case.x.ndim == 2 and (self.patch > 1 or self.superpixels):
            raise NotApplicableError("features of a table have no neighbours to make patches of")
        return Removing(self, case)


@dataclass(frozen=True)
class Removing:
    """A removal from the samples of a case. What no method has a part in is computed once for all of them."""

    removal: Removal
    case: Case

    @cached_property
    def units(self) -> Int[Tensor, "n d"]:
        """The unit of each position."""
        case = self.case
        if not self.removal.superpixels:
            return patches(tuple(case.axes), self.removal.patch, case.x.device).flatten().expand(len(case.x), -1)
        known = case.shared_here("superpixels")
        if self.removal.superpixels not in known:
            known[self.removal.superpixels] = superpixels(case.x, case.space, self.removal.superpixels).flatten(1)
        found: Tensor = known[self.removal.superpixels]
        return found

    @property
    def single(self) -> bool:
        """Whether each position is a unit by itself."""
        return self.removal.patch == 1 and not self.removal.superpixels

    @cached_property
    def sizes(self) -> Int[Tensor, "n units"]:
        """How many positions each unit has; 0 for superpixels that a sample does not have."""
        return unit_sizes(self.units)

    @cached_property
    def counts(self) -> Int[Tensor, " n"]:
        """How many units each sample has."""
        return (self.sizes > 0).sum(1)

    @property
    def nominal(self) -> int:
        """How many units a sample is meant to have, whatever SLIC made of it: the same for all blocks of samples."""
        return self.removal.superpixels or self.sizes.shape[1]

    def sums(self, values: Float[Tensor, "n *axes"]) -> Float[Tensor, "n units"]:
        """The sum of the values over each unit."""
        flat = values.flatten(1)
        # Sums of one value each would only be slower.
        return flat.double() if self.single else unit_sums(flat, self.units)

    def means(self, values: Float[Tensor, "n *axes"]) -> Float[Tensor, "n units"]:
        """The mean of the values over each unit."""
        return self.sums(values) / self.sizes.clamp(min=1)

    def ranks(self, order: Order, relevance: Float[Tensor, "n *axes"] | None = None) -> Int[Tensor, "n units"]:
        """When each unit goes, by the mean relevance over it; the random order is the same for all methods."""
        exists = self.sizes > 0
        if relevance is None or order == "random":
            nothing = self.sizes.new_zeros(self.sizes.shape, dtype=torch.float64)
            return removal_ranks(nothing, self.case.draws("perturbation", "random order"), exists)
        means = self.means(relevance)
        means = means if order == "most_first" else -means
        return removal_ranks(means, self.case.draws("perturbation", "ties"), exists)

    def without(self, rows: Int[Tensor, " m"], gone: Bool[Tensor, "m units"], draw: int = 0) -> Float[Tensor, "m ..."]:
        """These samples with the marked units of each removed.

        Args:
            rows: which samples.
            gone: which units of each.
            draw: of a random fill.
        """
        x, where = self.case.x[rows], self.positions(rows, gone)
        name = self.removal.fill
        if name in IMPUTATIONS:
            return self._imputed(x, rows, where, draw)
        return torch.where(where if x.ndim == 2 else where.unsqueeze(1), self._fills(draw)[rows], x)

    def positions(self, rows: Int[Tensor, " m"], units: Bool[Tensor, "m units"]) -> Bool[Tensor, "m *axes"]:
        """The positions of the marked units of these samples."""
        return (units if self.single else units.gather(1, self.units[rows])).view(-1, *self.case.axes)

    @property
    def draws(self) -> int:
        """How many draws of the fill there are: one where all are alike."""
        return self.removal.imputations if self.removal.fill in ("noise", "noisy_linear") else 1

    def each_draw(
        self, versions: int, gone: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], Bool[Tensor, "m units"]]
    ) -> Iterator[Outputs]:
        """The outputs without the units that `gone` marks for (samples, version of each), by each draw of the fill."""
        for draw in range(self.draws):

            def inputs(rows: Tensor, version: Tensor, draw: int = draw) -> Tensor:
                return self.without(rows, gone(rows, version), draw)

            yield outputs_of(self.case, versions, inputs)

    def outputs(
        self, versions: int, gone: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], Bool[Tensor, "m units"]]
    ) -> Outputs:
        """The same, averaged over draws."""
        found = list(self.each_draw(versions, gone))
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}

    def once(self, key: object, make: Callable[[], Outputs]) -> Outputs:
        """What `make` makes, once for all methods; `key` says what it depends on besides the removal."""
        known: dict[object, Outputs] = self.case.shared_here("perturbation").setdefault(self.removal, {})
        if key not in known:
            known[key] = make()
        return known[key]

    def untouched(self) -> dict[str, Float[Tensor, " n"]]:
        """The outputs for the samples as they are."""
        known = self.case.shared_here("untouched")
        if "outputs" not in known:
            known["outputs"] = outputs(self.case.logits(self.case.x), self.case.target)
        found: dict[str, Tensor] = known["outputs"]
        return found

    def _fills(self, draw: int) -> Float[Tensor, "n ..."]:
        known = self._kept
        if ("fill", draw) not in known:
            known.clear()  # of the draw before: there is never room needed for two
            known["fill", draw] = self.case.fill(self.removal.fill, draw)
        return known["fill", draw]

    @cached_property
    def _kept(self) -> dict[tuple[str, int], Tensor]:
        return {}

    def _imputed(
        self, x: Float[Tensor, "m ..."], rows: Int[Tensor, " m"], where: Bool[Tensor, "m ..."], draw: int
    ) -> Float[Tensor, "m ..."]:
        """Guessed from what is left; where nothing is, the mean colour (zero in the model's units if undeclared)."""
        case = self.case
        filled = linear(x, where) if self.removal.fill == "noisy_linear" else biharmonic(x, where)
        if self.removal.fill == "noisy_linear":
            if ("noise", draw) not in self._kept:
                self._kept.clear()
                normal = case.draws("fill", "noisy_linear").normal(*x.shape[1:], draw=draw).to(x.dtype)
                self._kept["noise", draw] = NOISE * case.space.scale(case.x) * normal
            filled = torch.where(where.unsqueeze(1), filled + self._kept["noise", draw][rows], filled)
        return filled


def rounding(case: Case, size: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """By how much outputs of this size may differ and still be the same."""
    return ROUNDING * torch.finfo(case.x.dtype).eps * size


def about(case: Case, count: int) -> int:
    """The side of patches of which there are about `count`, whatever the size of the input; 1 for a table."""
    return ceil((prod(case.axes) / count) ** (1 / len(case.axes))) if case.x.ndim > 2 else 1


def relevance_of(
    case: Case, sign: Literal["signed", "absolute"] = "signed"
) -> tuple[Float[Tensor, "n *axes"], dict[str, Bool[Tensor, " n"]]]:
    """The map summed over channels, finite everywhere, and why it orders nothing, where it does not."""
    relevance = reduce_channels(case.maps, "sum")
    relevance = relevance if sign == "signed" else relevance.abs()
    return relevance.nan_to_num(0, 0, 0), first_reason(degenerate(relevance))


def order_of(
    removing: Removing, sign: Literal["signed", "absolute"] = "signed"
) -> tuple[Float[Tensor, "n *axes"], dict[str, Bool[Tensor, " n"]]]:
    """The same, and where units differ by nothing but rounding, so that none of them is first."""
    relevance, undefined = relevance_of(removing.case, sign)
    if removing.single:
        return relevance, undefined
    means, exists = removing.means(relevance), removing.sizes > 0
    span = means.masked_fill(~exists, -torch.inf).amax(1) - means.masked_fill(~exists, torch.inf).amin(1)
    # In the type that maps have at least, of what was summed and not of the sum, which may be next to nothing.
    level = torch.finfo(torch.float32).eps * removing.means(relevance.abs()).amax(1)
    return relevance, first_reason(undefined, {"the same mean in every unit": span <= level})
