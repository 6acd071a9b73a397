"""Occlusion faithfulness: do the patches that the map calls relevant cost the most when they are occluded?"""

from collections.abc import Iterator
from math import ceil, prod

import torch

from harness.case import Case
from harness.metrics.perturbation import grid, removed, unit_sums
from harness.metrics.preprocessing import degenerate, first_reason, reduce_channels, undefined_as_nan
from harness.metrics.similarity import pearson, spearman
from harness.registry import metric
from harness.types import InputError, Score

PATCHES = 49


@metric(family="faithfulness", direction="higher", headline="pearson")
def occlusion_faithfulness(case: Case, *, fill: str, patch: int = 0) -> Iterator[Score]:
    r"""Correlation over patches $P$ of $\sum_{i \in P} a_i$ and $f_t(x) - f_t(x_{P \leftarrow fill})$, a sample each.

    All channels of a patch are occluded together. Yields `pearson` and `spearman`, both 1 for exact
    attributions of a linear model. Occlusion with the same window and fill shares the operator with this metric and
    scores high by construction. Undefined where the map does not differ between patches, or no drop does.

    Args:
        case: what to test.
        fill: what stands in the place of a patch, named in pixel space.
        patch: side of the square patches; 0 makes about 49 of them, whatever the size of the input.

    Raises:
        InputError: the side is negative.
    """
    if patch < 0:
        raise InputError(f"occlusion_faithfulness: patch is a side in positions, or 0, got {patch}")
    relevance = reduce_channels(case.maps, "sum")
    axes = relevance.shape[1:]
    patch = patch or ceil((prod(axes) / PATCHES) ** (1 / len(axes)))
    units = grid(tuple(relevance.shape[1:]), patch, relevance.device)
    fills = case.fill(fill)
    full = case.logits(case.x).gather(1, case.target[:, None])[:, 0].double()
    drops = []
    for unit in range(int(units.max()) + 1):
        where = (units == unit).expand_as(relevance)
        logits = case.logits(removed(case.x, fills, where))
        drops.append(full - logits.gather(1, case.target[:, None])[:, 0].double())
    drop = torch.stack(drops, 1)
    sums = unit_sums(relevance.nan_to_num(0, 0, 0), units)
    undefined = first_reason(
        degenerate(relevance),
        {"the same sum in every patch": sums.amax(1) == sums.amin(1)},
        {"the same drop for every patch": drop.amax(1) == drop.amin(1)},
    )
    for measure, correlation in (("pearson", pearson), ("spearman", spearman)):
        values = undefined_as_nan(correlation(sums, drop), undefined)
        yield Score(measure, values, undefined, channels="sum", sign="signed")
