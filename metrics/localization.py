r"""Localization: does the relevance lie where the truth lies? Four readings of a map against a mask.

The mask $M$ covers $m$ of $d$ positions. Each score $s$ stands beside `chance`, its expectation $c$ for a map whose
values are exchangeable over positions, and beside its `lift` over that, $(s - c) / (1 - c)$: 0 by chance, 1 at best.

Agreement with a mask is agreement with the network only where the network uses what the mask marks. Where the truth was
planted, that is asked first (`harness.planted`), and all is invalid if it does not. A Gaussian in the middle is the
control for objects that were photographed there.

Undefined where the mask is of a label that is not the explained class, where it is empty or covers everything, and
where the map is constant or not finite.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from harness.case import Case
from harness.metrics.perturbation import relevance_of
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.metrics.similarity import ranks
from harness.registry import metric
from harness.types import NonNegative, NotApplicableError, Score

Sign = Literal["signed", "absolute"]
Reasons = dict[str, Bool[Tensor, " n"]]


@metric(
    family="localization",
    direction="higher",
    headline="lift",
    needs=("masks",),
    chance=0.0,
    cite="zhang2016top",
    question="Does the most relevant position lie in the truth?",
    misleads="One position speaks for the whole map; a centred object is hit by a map that is always centred.",
)
def pointing_game(case: Case, *, tolerance: NonNegative = 0, sign: Sign = "signed") -> Iterator[Score]:
    """Pointing game (`zhang2016top`): does the largest value of the map lie in the mask?

    Of several largest values the share that lies in the mask counts, so that `hit` is in [0, 1]; `chance` is the share
    of positions that would be hits. The paper takes a tolerance of 15 pixels and the mean over classes of the share
    of hits of each.

    Args:
        case: what to test.
        tolerance: how many positions beside the mask, by Euclidean distance, still are hits.
        sign: whether what speaks against the class counts as little or as much.

    Raises:
        NotApplicableError: a tolerance in a table, whose features have no neighbours.
    """
    relevance, mask, undefined = _read(case, sign)
    hits = _dilated(mask, tolerance, case.position_axes if case.x.ndim > 2 else 0).flatten(1).double()
    flat = relevance.flatten(1)
    largest = (flat == flat.amax(1, keepdim=True)).double()
    hit = (largest * hits).sum(1) / largest.sum(1)
    undefined = first_reason(undefined, {"every position is within the tolerance": hits.mean(1) == 1})
    yield from _beside_chance("hit", hit, hits.mean(1), undefined, sign)


@metric(
    family="localization",
    direction="higher",
    headline="lift",
    needs=("masks",),
    chance=0.0,
    cite="arras2022clevr",
    question="How much of the relevance lies in the truth?",
    misleads="Methods that blur lose by their resolution; variants for signed maps differ, so name the one you quote.",
)
def relevance_mass(case: Case) -> Iterator[Score]:
    r"""Relevance mass accuracy (`arras2022clevr`): the share of the relevance that lies in the mask, in [0, 1].

    `positive_mass` $= \sum_M a^+ / \sum a^+$ after channels were summed, which `lift` is of; `absolute_mass` has $|a|$
    in the place of $a^+$, `squared_mass` $a^2$. They are named because sources differ and signed maps tell them apart.
    `chance` is $m / d$ for all three.

    `positive_mass` is undefined where nothing is positive.
    """
    relevance, mask, undefined = _read(case, "signed")
    values, inside = relevance.flatten(1).double(), mask.flatten(1).double()
    chance = inside.mean(1)
    # By its largest value, because squares of what a method returns may be beyond what a number holds.
    values = values / values.abs().amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    for name, part in (("absolute_mass", values.abs()), ("squared_mass", values.square())):
        yield _score(name, _share(part, inside), undefined)
    positive = values.clamp(min=0)
    nothing = first_reason(undefined, {"nothing is positive": positive.sum(1) == 0})
    yield from _beside_chance("positive_mass", _share(positive, inside), chance, nothing, None)


@metric(
    family="localization",
    direction="higher",
    headline="lift",
    needs=("masks",),
    chance=0.0,
    cite="arras2022clevr",
    question="Are the most relevant positions those of the truth?",
    misleads="What speaks against the class ranks below what does not matter: `sign: absolute` counts it as relevant.",
)
def relevance_rank(case: Case, *, sign: Sign = "signed") -> Iterator[Score]:
    r"""Relevance rank accuracy (`arras2022clevr`): $|top_m \cap M| / m$, in [0, 1], with `chance` $m / d$.

    Of equal values at the edge of $top_m$ the expected number counts that a random choice among them would find.

    Args:
        case: what to test.
        sign: whether what speaks against the class counts as little or as much.
    """
    relevance, mask, undefined = _read(case, sign)
    values, inside = relevance.flatten(1).double(), mask.flatten(1).double()
    size = inside.sum(1).long()
    last = values.sort(1, descending=True).values.gather(1, (size - 1).clamp(min=0)[:, None])
    above, equal = (values > last).double(), (values == last).double()
    left = (size - above.sum(1)) / equal.sum(1)
    found = (above * inside).sum(1) + left * (equal * inside).sum(1)
    yield from _beside_chance("rank_accuracy", found / size.clamp(min=1), inside.mean(1), undefined, sign)


@metric(
    family="localization",
    direction="higher",
    headline="lift",
    needs=("masks",),
    chance=0.0,
    cite="fawcett2006introduction",
    question="Is a position in the truth more relevant than one outside?",
    misleads="As `relevance_rank`; and most pairs are easy where the truth is small.",
)
def roc_auc(case: Case, *, sign: Sign = "signed") -> Iterator[Score]:
    r"""Area under the ROC curve of the map as a detector of the mask (`fawcett2006introduction`), in [0, 1].

    $P(a_i > a_j) + \frac{1}{2} P(a_i = a_j)$ for $i$ in the mask and $j$ outside; `chance` is 1/2.

    Args:
        case: what to test.
        sign: whether what speaks against the class counts as little or as much.
    """
    relevance, mask, undefined = _read(case, sign)
    inside = mask.flatten(1).double()
    size, others = inside.sum(1), (1 - inside).sum(1)
    order = ranks(relevance.flatten(1)).double()
    area = ((order * inside).sum(1) - size * (size + 1) / 2) / (size * others).clamp(min=1)
    yield from _beside_chance("roc_auc", area, torch.full_like(area, 0.5), undefined, sign)


def _read(case: Case, sign: Sign) -> tuple[Float[Tensor, "n *axes"], Bool[Tensor, "n *axes"], Reasons]:
    """The map with its channels summed, the mask, and why there is nothing to tell, where there is not."""
    assert case.masks is not None  # for the metric says that it needs them
    mask = case.masks.view(len(case.x), *case.axes) > 0
    flat = mask.flatten(1)
    relevance, broken = relevance_of(case, sign)
    nowhere = torch.zeros(len(case.x), dtype=torch.bool, device=case.x.device)
    of_another = nowhere if case.of_another is None else case.of_another
    return (
        relevance,
        mask,
        first_reason(
            {f"invalid: {case.no_truth}": nowhere | bool(case.no_truth)},
            {"the mask is of another class": of_another},
            {"empty mask": ~flat.any(1), "full mask": flat.all(1)},
            broken,
        ),
    )


def _dilated(mask: Bool[Tensor, "n *axes"], tolerance: int, axes: int) -> Bool[Tensor, "n *axes"]:
    """The mask and what is no further from it than the tolerance.

    Raises:
        NotApplicableError: a tolerance where positions have no neighbours.
    """
    if not tolerance:
        return mask
    if not axes:
        raise NotApplicableError("features of a table have no neighbours, so that there is no tolerance")
    steps = torch.arange(-tolerance, tolerance + 1, device=mask.device).double().square()
    squares = steps if axes == 1 else steps[:, None] + steps
    disc = (squares <= tolerance**2).float()[None, None]
    convolve = F.conv1d if axes == 1 else F.conv2d
    return convolve(mask.float().unsqueeze(1), disc, padding=tolerance)[:, 0] > 0.5


def _share(values: Float[Tensor, "n d"], inside: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return (values * inside).sum(1) / values.sum(1)


def _beside_chance(
    name: str, score: Float[Tensor, " n"], chance: Float[Tensor, " n"], undefined: Reasons, sign: Sign | None
) -> Iterator[Score]:
    yield _score(name, score, undefined, sign)
    yield _score("chance", chance, undefined, sign)
    yield _score("lift", (score - chance) / (1 - chance), undefined, sign)


def _score(name: str, values: Float[Tensor, " n"], undefined: Reasons, sign: Sign | None = None) -> Score:
    return Score(name, undefined_as_nan(values, undefined), undefined, channels="sum", sign=sign)
