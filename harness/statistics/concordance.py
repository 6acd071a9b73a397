"""How far rankings agree: Kendall and Krippendorff."""

import numpy as np
from jaxtyping import Float


def kendall(
    first: Float[np.ndarray, "pairs methods"], second: Float[np.ndarray, "pairs methods"]
) -> Float[np.ndarray, " pairs"]:
    r"""Kendall's $\tau_a$ of each pair of rows: the mean over pairs of their entries of the product of signs."""
    return (signs(first) * signs(second)).mean(1)


def kendall_b(
    first: Float[np.ndarray, "pairs methods"], second: Float[np.ndarray, "pairs methods"]
) -> Float[np.ndarray, " pairs"]:
    r"""Kendall's $\tau_b$ of each pair of rows, which does not count ties; NaN where a row has one value only."""
    one, other = signs(first), signs(second)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt(np.square(one).sum(1) * np.square(other).sum(1))


def signs(rows: Float[np.ndarray, "*rows methods"]) -> Float[np.ndarray, "*rows couples"]:
    """In each row the order of every two entries: -1, 0 or 1."""
    one, other = np.triu_indices(rows.shape[-1], 1)
    orders: np.ndarray = np.sign(rows[..., one] - rows[..., other])
    return orders


def krippendorff(ranks: Float[np.ndarray, "raters units"]) -> float:
    r"""Krippendorff's $\alpha = 1 - D_o / D_e$ of ranks that raters gave the same units, with squared differences.

    1 where all agree, 0 where they agree as by chance. $D_o$ is the mean squared difference between two raters of one
    unit, $D_e$ that between any two ranks (`krippendorff2004content`).
    """
    raters, size = len(ranks), ranks.size
    observed = 2 * ranks.var(0, ddof=1).mean() if raters > 1 else np.nan
    expected = 2 * ranks.var() * size / (size - 1) if size > 1 else np.nan
    return float(1 - observed / expected) if expected else np.nan
