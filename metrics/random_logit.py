"""The random logit test: does the map of one class differ from that of another?"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from harness.case import Case
from harness.metrics.comparison import MEASURES, Measures, Ready, compare, ready
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="randomization",
    direction="lower",
    headline="spearman",
    cite="sixt2020explanations",
    question="Does the map depend on the class that is explained?",
    misleads="Classes that share their evidence rightly share a map.",
)
def random_logit(case: Case, *, class_draws: Count = 10, measures: Measures = MEASURES) -> Iterator[Score]:
    r"""Random logit test: similarity of $A(f, x, c)$ and $A(f, x, c')$, $c' \ne c$.

    Mode `random`: $c'$ is uniform among the other classes, drawn for each sample and draw. Modes `runner_up` and
    `least_likely`: the largest and the smallest of the other logits. A map that stays the same whatever class is
    explained says nothing about the class. Source: `sixt2020explanations`.

    Roles: `floor_shift`, against the other class's map moved around the torus; `ceiling_rerun`, a second call for the
    same class. Of two classes that share a feature the maps are opposite, and only signed ones tell them apart.

    Undefined where a map is constant or not finite.

    Args:
        case: what to test.
        class_draws: random classes for each sample; a verdict needs 10.
        measures: of similarity; see `harness.metrics.comparison`.

    Raises:
        NotApplicableError: none of the measures applies to these maps.
    """

    def made_ready(maps: Float[Tensor, "n ..."], whose: str) -> Ready:
        return ready(maps, whose, measures, kind=case.space.kind)

    ours = made_ready(case.maps, "explained class")
    yield from compare(ours, made_ready(case.explain(call="rerun"), "explained class"), role="ceiling_rerun")
    logits = case.logits(case.x)
    for draw in range(class_draws):
        words = case.draws("random_logit", "class").uniform(1, draw=draw)[:, 0]
        target = another_class(case.target, words, logits.shape[1])
        maps = made_ready(case.explain(target=target, call=("random", draw)), "another class")
        where: dict[str, Any] = {"mode": "random", "draw": draw}
        yield from compare(ours, maps, **where)
        yield from compare(
            ours,
            maps.shifted(case.draws("random_logit", "shift").uniform(case.position_axes, draw=draw)),
            role="floor_shift",
            **where,
        )
    own = one_hot(case.target, logits.shape[1]).bool()
    for mode, target in (
        ("runner_up", logits.masked_fill(own, -torch.inf).argmax(1)),
        ("least_likely", logits.masked_fill(own, torch.inf).argmin(1)),
    ):
        maps = made_ready(case.explain(target=target, call=mode), "another class")
        yield from compare(ours, maps, mode=mode)


def another_class(explained: Int[Tensor, " n"], words: Float[Tensor, " n"], classes: int) -> Int[Tensor, " n"]:
    """A class for each sample, uniform among all but the explained one.

    Args:
        explained: the class that it is not.
        words: uniform numbers in (0, 1).
        classes: how many there are.
    """
    drawn = (words * (classes - 1)).long()
    return drawn + (drawn >= explained)
