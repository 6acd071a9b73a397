"""One network against others that have learnt nothing: how far apart, and how likely by chance."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 10
"""Fewer networks that have learnt nothing leave it open whether the trained one differs."""

APART, NEAR = 2.0, 1.0
"""Standard deviations beyond which a network stands apart from others, and below which it does not."""

BY_CHANCE = 0.2
"""A permutation p above which nothing speaks for a difference."""

ROUNDING = 1e-6
"""Relative to the largest of the values, what differs by less is equal: a sum in float32 in another order."""


@dataclass(frozen=True)
class Against:
    """A statistic of a trained network against that of networks which have learnt nothing.

    Attributes:
        mean: of theirs.
        deviation: of theirs, with n - 1; 0 where they differ by rounding only.
        effect: the standardized effect, positive on the side on which the trained network is to stand; without spread
            0 where the trained network has their value too, and NaN where it has another.
        p: the permutation p.
        draws: how many they are.
    """

    mean: float
    deviation: float
    effect: float
    p: float
    draws: int

    @property
    def apart(self) -> bool:
        """Whether the trained network stands apart: beyond every one of them, and by more than their spread."""
        beyond = self.p <= 1 / (self.draws + 1)
        return bool(beyond and (self.effect > APART or (self.deviation == 0 and np.isnan(self.effect))))

    @property
    def opposite(self) -> bool:
        """Whether it stands apart on the other side."""
        below = self.p == 1
        return bool(below and (self.effect < -APART or (self.deviation == 0 and np.isnan(self.effect))))

    @property
    def alike(self) -> bool:
        """Whether nothing speaks for a difference to the side on which the trained network is to stand."""
        return bool(self.p > BY_CHANCE or self.effect < NEAR)


def against(value: float, null: Float[np.ndarray, " draws"], *, lower: bool = False) -> Against:
    r"""Standardized effect $\pm(T - \bar T_r) / s_r$ and permutation $p = (1 + \#\{T_r \ge T\}) / (K + 1)$.

    Under the hypothesis that the trained network is one more of the others, p is uniform on its K + 1 values, so that
    it is at most $\alpha$ in at most that share of cases; values that differ by rounding only are equal, which makes p
    larger. Draws without a value do not count.

    Args:
        value: of the trained network.
        null: of the others.
        lower: whether the trained network is to stand below them, so that signs and inequalities turn.
    """
    known = null[~np.isnan(null)]
    sign = -1.0 if lower else 1.0
    mean = float(known.mean()) if len(known) else np.nan
    deviation = float(known.std(ddof=1)) if len(known) > 1 else np.nan
    if np.isnan(value) or not len(known):
        return Against(mean, deviation, np.nan, np.nan, len(known))
    same = ROUNDING * max(abs(value), float(np.abs(known).max()))
    p = (1 + int((sign * known >= sign * value - same).sum())) / (len(known) + 1)
    if np.isnan(deviation) or deviation > same:
        return Against(mean, deviation, sign * (value - mean) / deviation, p, len(known))
    return Against(mean, 0.0, 0.0 if abs(value - mean) <= same else np.nan, p, len(known))
