"""Introspections under test: what they say of the trained network, and of networks that have learnt nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from harness.case import Case
from harness.entries import GLOBAL, Introspection
from harness.introspecting import introspect
from harness.metrics.cascade import Randomization, cascade, check_parameters, full
from harness.metrics.cascade import shuffled as with_shuffled_weights
from harness.registry import metric
from harness.types import Artifact, Count, NonNegative, Score

Draws = Annotated[int, Field(ge=2)]
"""How many networks: of one there is no spread."""


@metric(
    family=GLOBAL,
    direction=None,
    headline="",
    question="What does the introspection say of this network?",
    misleads="What it shows may be the same for a network that has learnt nothing: see `network_randomization`.",
)
def introspection(case: Case) -> Iterator[Score | Artifact]:
    """The scores and artifacts of an introspection on the trained network; no test."""
    yield from introspect(case)


@metric(
    family=GLOBAL,
    direction=None,
    headline="",
    cite="adebayo2018sanity",
    question="Would the introspection say the same of a network that has learnt nothing?",
    misleads="A PASS says that something learnt is seen, not that the network uses what is seen; of a measure of "
    "likeness, only that what is seen depends on the weights, learnt or not.",
)
def network_randomization(
    case: Case, *, reinitialized: Draws = 10, shuffled: Draws = 10, stages: NonNegative = 4, draws: Count = 1
) -> Iterator[Score | Artifact]:
    """The trained network against re-initialized ones, ones with shuffled weights, and partly randomized ones.

    All are asked with the same random numbers and samples. Re-initialized networks (mode `full`) have weights from
    their constructor. In shuffled ones each tensor of weights keeps its values and loses their order, so that what
    they share with the trained network is the distribution of its weights and no structure. Batch norms estimate
    their statistics anew in both. Effects and permutation p are read from the rows: the table `global`.

    Args:
        case: the trained network, and the introspection in the place of a method.
        reinitialized: how many re-initialized networks.
        shuffled: how many networks with shuffled weights.
        stages: of the randomization from the output down, of which only the scores of the whole network are kept;
            0: a stage for each block.
        draws: how many such cascades.

    Yields:
        The scores of each network: role `test` of the trained one and of the stages, `ceiling_rerun` of the trained one
        with other random numbers, `floor_random` of networks that have learnt nothing. The artifacts of the trained
        network and of the first of each kind of the others.

    Raises:
        NotApplicableError: the model has no parameters, or the introspection does not apply.
    """
    check_parameters(case)
    found = introspect(case)
    yield from found
    entry = case.explainer.method
    assert isinstance(entry, Introspection)
    if "seed" in entry.parameters:
        yield from (replace(each, role="ceiling_rerun", draw=0) for each in _whole(introspect(case, call="again")))
    how = Randomization()
    for draw in range(reinitialized):
        yield from _of_random(case, full(case, draw, how).model, "full", draw)
    for draw in range(shuffled):
        yield from _of_random(case, with_shuffled_weights(case, draw, how).model, "shuffled", draw)
    for draw in range(draws):
        for stage in cascade(case, "top_down", draw, replace(how, stages=stages)):
            for each in _whole(introspect(case, stage.model)):
                yield replace(each, mode="top_down", stage=stage.name, stage_index=stage.index, draw=draw)


def _of_random(
    case: Case, model: nn.Module, mode: Literal["full", "shuffled"], draw: int
) -> Iterator[Score | Artifact]:
    """What is said of a network that has learnt nothing; pictures of the first one."""
    for each in introspect(case, model):
        if isinstance(each, Score):
            yield replace(each, role="floor_random", mode=mode, draw=draw)
        elif draw == 0:
            yield replace(each, network="random" if mode == "full" else "shuffled")


def _whole(found: Sequence[Score | Artifact]) -> list[Score]:
    """The scores of the whole network."""
    return [each for each in found if isinstance(each, Score) and each.stage is None]
