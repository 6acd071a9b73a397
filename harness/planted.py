"""Does a network use what was planted? Asked before anything is graded by where the truth lies."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data import Planted

ASKED = 256
"""Of how many samples."""

TIMES, SHARE = 2.0, 0.9
"""How much more the output must change with the truth than with the rest, and in what share of the samples."""


def doubt(
    model: nn.Module,
    planted: Planted,
    rows: Sequence[int],
    target: Int[Tensor, " n"],
    placed: Callable[[Tensor], Float[Tensor, "m ..."]],
    read: Callable[[int], Tensor],
) -> str:
    r"""Why the masks are no truth for this network; empty if they are.

    With $x^t$ the sample with another truth and $x^r$ the one with another rest, a sample counts for the truth where
    $|f_t(x^t) - f_t(x)| > 2 |f_t(x^r) - f_t(x)|$: the explained logit depends on the truth, and hardly on the rest.
    Nine in ten samples must.

    Args:
        model: the network.
        planted: how truth and rest are exchanged.
        rows: the samples.
        target: the explained class of each.
        placed: puts samples where the model is.
        read: row -> the sample as it is.
    """
    rows, target = rows[:ASKED], target[:ASKED]
    with torch.no_grad():
        untouched, other_truth, other_rest = (
            model(placed(torch.stack([each(row) for row in rows]))).double().gather(1, target[:, None])[:, 0]
            for each in (read, planted.other_truth, planted.other_rest)
        )
    by_truth, by_rest = (other_truth - untouched).abs(), (other_rest - untouched).abs()
    share = float((by_truth > TIMES * by_rest).double().mean())
    if share >= SHARE:
        return ""
    return (
        f"the model does not use what was planted: exchanging the truth changes the explained logit more than "
        f"{TIMES:g} times as much as exchanging the rest in {share:.0%} of {len(rows)} samples, needs {SHARE:.0%}"
    )
