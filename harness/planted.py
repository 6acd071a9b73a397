"""Does a network use what was planted? Asked before anything is graded by where the truth lies."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data import BrokenSampleError, Data
from harness.random import Draws

ASKED, AT_ONCE = 256, 64
"""Of how many samples, and of how many at a time."""

TIMES, SHARE = 2.0, 0.9
"""How much more the output must change with the truth than with the rest, and in what share of the samples."""


def doubt(
    model: nn.Module,
    data: Data,
    explained: Callable[[Float[Tensor, "m classes"], Sequence[int]], Int[Tensor, " m"]],
    placed: Callable[[Tensor], Float[Tensor, "m ..."]],
) -> str:
    r"""Why the masks are no truth for this network; empty if they are.

    With $x^t$ the sample with another truth and $x^r$ the one with another rest, a sample counts for the truth where
    $|f_t(x^t) - f_t(x)| > 2 |f_t(x^r) - f_t(x)|$: the explained logit depends on the truth, and hardly on the rest.
    Nine in ten samples must.

    Whichever of the samples a study takes, the same 256 of all are asked, so that the answer is about the network.
    What cannot be exchanged, such as with a file that cannot be read, is left out.

    Args:
        model: the network.
        data: where something was planted.
        explained: the class that is explained of samples, from their logits and rows.
        placed: puts samples where the model is.
    """
    assert data.planted is not None
    ways = (lambda row: data.batch([row])[0], data.planted.other_truth, data.planted.other_rest)
    asked: list[int] = Draws.of([data.name], "planted").permutation(len(data))[0, :ASKED].tolist()
    counts, errors = [], dict[str, None]()
    for start in range(0, len(asked), AT_ONCE):
        rows, exchanged = [], []
        for row in asked[start : start + AT_ONCE]:
            try:
                exchanged.append([way(row) for way in ways])
                rows.append(row)
            except BrokenSampleError as error:
                errors[str(error)] = None
        if rows:
            with torch.no_grad():
                outputs = [model(placed(torch.stack(each))).double() for each in zip(*exchanged, strict=True)]
            target = explained(outputs[0], rows)[:, None]
            untouched, other_truth, other_rest = (output.gather(1, target)[:, 0] for output in outputs)
            counts.append((other_truth - untouched).abs() > TIMES * (other_rest - untouched).abs())
    if not counts:
        return f"whether the model uses what was planted cannot be asked: {next(iter(errors))}"
    found = torch.cat(counts).double()
    share = float(found.mean())
    if share >= SHARE:
        return ""
    return (
        f"the model does not use what was planted: exchanging the truth changes the explained logit more than "
        f"{TIMES:g} times as much as exchanging the rest in {share:.0%} of {len(found)} samples, needs {SHARE:.0%}"
    )
