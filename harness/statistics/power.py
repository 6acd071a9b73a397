"""How many samples show a difference."""

import numpy as np
from jaxtyping import Float
from scipy import stats

MANY = 1000.0
"""Samples, of which t and normal distributions are the same."""


def samples_needed(differences: Float[np.ndarray, " samples"], power: float = 0.8, level: float = 0.05) -> float:
    r"""How many paired samples show a difference that is as large as here, by a two-sided t-test.

    The smallest $n$, two at least, for which $P(T > t_{n-1, 1-\alpha/2})$ reaches the power where $T$ is noncentral
    $t$ with $\sqrt n\, m / s$. Infinite where the mean difference $m$ is not above zero, NaN where one sample is known.
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return np.nan
    mean, spread = float(known.mean()), float(known.std(ddof=1))
    if mean <= 0:
        return np.inf
    # A normal test needs a few less, and where it needs many, the same.
    wanted = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    count = max(float(np.ceil((wanted * spread / mean) ** 2)), 2.0)
    while count < MANY and spread and _power(mean / spread, count, level) < power:
        count += 1
    return count


def _power(effect: float, count: float, level: float) -> float:
    """How often a paired t-test of so many samples finds an effect that is so many standard deviations, on its side."""
    least = stats.t.ppf(1 - level / 2, count - 1)
    return float(stats.nct.sf(least, count - 1, effect * count**0.5))
