"""The model parameter randomization test: does the map change when the network forgets?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from harness.case import Case
from harness.metrics.cascade import BatchNormPolicy, full, top_down
from harness.metrics.comparison import compare, shifted
from harness.metrics.similarity import pearson
from harness.registry import metric
from harness.types import Count, NotApplicableError, Score


@metric(family="randomization", direction="lower", headline="spearman")
def parameter_randomization(
    case: Case, *, full_draws: Count = 10, cascade_draws: int = 3, batch_norm: BatchNormPolicy = "recalibrate"
) -> Iterator[Score]:
    r"""Model parameter randomization test: similarity of $A(f_\theta, x)$ and $A(f_{\theta_k}, x)$.

    Top-down cascade (mode `top_down`): the last k blocks take the parameters of a twin, drawn by their own
    initializers. Full randomization (mode `full`, stage `all`): all blocks do. Source: `adebayo2018sanity`;
    unlike there, the target is frozen, every draw has its own twin, and chance is reported beside it.

    Roles. `floor_shift`: the map against the randomized network's map moved around the torus. `floor_random`:
    two randomized networks against each other; what it has above `floor_shift` comes from architecture and
    input, not from parameters. `ceiling_rerun`: a second call on the trained network.

    Also yields, in the same stages, how far the network's output itself changed: `output_pearson` (of the logits
    over classes) and `prediction_kept`. Where the output did not change, no change of the map can be expected.

    Undefined where a map is constant or not finite.

    Args:
        case: what to test.
        full_draws: twins for the full randomization.
        cascade_draws: of these, how many go through the whole cascade.
        batch_norm: running statistics are kept, reset to those of a new network, or estimated again.

    Raises:
        NotApplicableError: the model has no parameters.
    """
    if not case.source.blocks:
        raise NotApplicableError("the model has no parameters that could be randomized")
    trained_logits = case.logits(case.x)
    again = case.explain(call="rerun")
    yield from compare(case.maps, again, role="ceiling_rerun", stage="trained", stage_index=0)

    last = len(case.source.blocks)
    previous = None
    for draw in range(full_draws):
        if draw < cascade_draws:
            for index, name, model in top_down(case, draw, batch_norm):
                where: dict[str, Any] = {"mode": "top_down", "stage": name, "stage_index": index, "draw": draw}
                maps = case.explain(model, call=("top_down", draw, index))
                yield from compare(case.maps, maps, **where)
                yield from _output_change(case, model, trained_logits, **where)
        else:
            model = full(case, draw, batch_norm)
            maps = case.explain(model, call=("full", draw))
        where = {"mode": "full", "stage": "all", "stage_index": last, "draw": draw}
        yield from compare(case.maps, maps, **where)
        yield from _output_change(case, model, trained_logits, **where)
        words = case.draws("parameter_randomization", "shift").uniform(len(_position_axes(case)), draw=draw)
        yield from compare(case.maps, shifted(maps, words.to(maps.dtype)), role="floor_shift", **where)
        if previous is not None:
            yield from compare(previous, maps, role="floor_random", **where)
        previous = maps


def _position_axes(case: Case) -> tuple[int, ...]:
    return tuple(case.x.shape[2:]) or tuple(case.x.shape[1:])


def _output_change(case: Case, model: nn.Module, trained: torch.Tensor, **where: Any) -> Iterator[Score]:
    logits = case.logits(case.x, model)
    values = pearson(trained, logits)
    flat = values.isnan()
    yield Score("output_pearson", values, {"constant logits": flat} if flat.any() else {}, **where)
    yield Score("prediction_kept", (logits.argmax(1) == trained.argmax(1)).double(), **where)
