"""Input invariance: a network that undoes a shift of its input must be explained as before."""

from collections.abc import Iterator
from functools import partial

import torch

from harness.case import Case
from harness.metrics.rewriting import relative_difference, rewritten_networks
from harness.metrics.shift_absorption import shift_absorbed
from harness.registry import metric
from harness.types import InputError, NotApplicableError, Score


@metric(
    family="invariance",
    direction="lower",
    headline="relative_difference",
    summary_statistic="median",
    cite="kindermans2019reliability",
    question="Is the map the same when the input and the first layer have moved together?",
    misleads="Methods with a baseline pass or fail by what moves along.",
)
def input_invariance(case: Case, *, shift: float | list[float] = 1.0) -> Iterator[Score]:
    r"""Input invariance: $\|A(f, x) - A(f', x + m)\|_2 / \|A(f, x)\|_2$ where $f'(x + m) = f(x)$.

    `kindermans2019reliability`. $f'$ is $f$ with the shift $m$ absorbed into the biases of the layers that take the
    input, zero padding accounted for. Over whole raw maps; 0 is invariance. Yields

    - `relative_difference`: all that is named by its meaning moves along with the input, baselines and fills (`zero`
      becomes $m$, `blur` moves by itself), the range that zB rules go by, and the background. It needs no declared
      space, because a shift is the same in every one. What is left is a dependence on where the origin lies;
    - `relative_difference_fixed_space`: none of that moves, as where a baseline is a fixed number. Integrated
      gradients with a black baseline have none of the first and much of the second.

    In single precision, rounding may turn over what lies at the kink of a rectifier or ties in a pooling, so that
    single samples of an invariant method may differ by some per cent. In double precision they do not.

    Both maps are made with the same noise. Where its size is a fraction of the sample's own range, as in SmoothGrad, a
    shift that differs between channels changes that as well, and counts as a dependence on the origin. Undefined
    where the map of the trained network is zero or one of the two is not finite.

    Args:
        case: what to test.
        shift: $m$, in the units of the model's input: one number, or one for each channel (feature, of a table).

    Raises:
        InputError: not one number, nor one for each channel.
        NotApplicableError: the shift cannot be absorbed, because no linear layer or convolution takes the input
            itself or something else sees it too; the reason says by how much the logits would differ.
    """
    numbers = shift if isinstance(shift, list) else [shift]
    if len(numbers) not in (1, case.x.shape[1]):
        raise InputError(
            f"input_invariance: expected a shift of 1 number or of {case.x.shape[1]}, one for each channel; "
            f"got {len(numbers)}"
        )
    moved = torch.tensor(numbers).to(case.x).view(1, -1, *(1,) * (case.x.ndim - 2))
    rewriting = partial(shift_absorbed, shift=moved)
    (model,) = rewritten_networks(case, {("shift absorbed", *numbers): rewriting}).values()
    if isinstance(model, str):
        raise NotApplicableError(model)
    needs_background = "background" in case.explainer.method.needs
    background = case.source.background + moved if needs_background else None
    space = case.space.shifted(tuple(numbers))
    along = case.explain(model, case.x + moved, space=space, background=background)
    yield relative_difference("relative_difference", case.maps, along)
    yield relative_difference("relative_difference_fixed_space", case.maps, case.explain(model, case.x + moved))
