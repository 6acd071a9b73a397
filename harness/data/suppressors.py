"""A table in which a feature that says nothing of the class is needed to read another one."""

from dataclasses import replace
from functools import cache

import torch

from harness.data import Data, Planted, of_tensors
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

SAMPLES, FEATURES = 1024, 8
NOISE = 0.5
"""Standard deviation of what is left when the suppressors have done their work."""

SUPPRESSED = {0: 1, 2: 3}
"""Informative feature -> the feature that holds what disturbs it."""

DISTURBANCE = 2.0


@data_source()
@cache
def suppressors() -> Data:
    r"""1,024 rows of a table with suppressor variables (`haufe2014interpretation`), labels as good as they come.

    Twice, $x_a = z + d + e$ and $x_b = d$: the class is the sign of what the $z$ have in common, $d$ is a strong
    disturbance, $e$ a little noise. $x_b$ is independent of the class, and the best network subtracts it: it has a
    weight on $x_b$. Four more features are noise.

    Masks are what that network uses, suppressors included: here an attribution is judged by what the network does, not
    by what is associated with the class (`wilming2022scrutinizing` takes the other side).
    """
    ids = [f"suppressors/{row}" for row in range(SAMPLES)]
    draws = Draws.of(ids, "suppressors")
    x = draws.normal(FEATURES, draw=0)
    y = draws.integers(2, 1, draw=1)[:, 0]
    cause = 2.0 * (1 - y).double() - 1
    noise = NOISE * draws.normal(len(SUPPRESSED), draw=2)
    for place, (informative, suppressor) in enumerate(SUPPRESSED.items()):
        x[:, suppressor] *= DISTURBANCE
        x[:, informative] = cause + x[:, suppressor] + noise[:, place]
    x = x.float()
    used = torch.zeros(FEATURES)
    used[[*SUPPRESSED.keys(), *SUPPRESSED.values()]] = 1.0
    other = {label: (y == 1 - label).nonzero()[:, 0] for label in (0, 1)}

    def other_truth(row: int) -> torch.Tensor:
        rows = other[int(y[row])]
        return torch.where(used > 0, x[rows[row % len(rows)]], x[row])

    def other_rest(row: int) -> torch.Tensor:
        return torch.where(used > 0, x[row], x[row - 1])

    space = InputSpace("table", (0.0,) * FEATURES, (1.0,) * FEATURES, -10.0, 10.0)
    data = of_tensors("suppressors", x, y, space, ids=ids, masks=used.expand(SAMPLES, -1))
    return replace(data, planted=Planted(other_truth, other_rest))
