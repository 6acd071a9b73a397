"""Methods that hide units of the input at random and fit a linear model to the output: LIME and KernelSHAP.

A unit is a superpixel of an image (SLIC), a piece of a signal, or a feature of a table. The coefficient of a unit is
spread evenly over its positions, so that the sum of the map over a region is what the region contributes.
"""

from itertools import product
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.perturbed import mixed, target_logits
from harness.random import Draws
from harness.registry import method
from harness.remarks import remark
from harness.space import InputSpace
from harness.types import Count
from harness.units import superpixels, unit_sizes


@method(family="perturbation", cite="ribeiro2016should", stochastic=True)
def lime(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    space: InputSpace,
    draws: Draws,
    chunk: int = 64,
    samples: Count = 1000,
    units: Count = 50,
    width: float = 0.25,
    penalty: float = 1.0,
) -> Float[Tensor, "n ..."]:
    r"""LIME: $\arg\min_\phi \sum_i \pi_i (f_t(z_i) - \phi_0 - \phi^\top z_i)^2 + \lambda |\phi|^2$ over units.

    Each unit is kept with probability 1/2 in all $z_i$ but the first, which keeps all; where a unit is not kept stands
    the baseline. $\pi = e^{-d^2 / w^2}$ with $d$ the cosine distance of $z_i$ to keeping all. The share of the weighted
    variance that the fit explains, $R^2$, is remarked as `r_squared`: where it is low the map says little.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: what stands where a unit is hidden.
        space: where in their range the pixels lie, for superpixels.
        draws: which units are kept.
        chunk: how many inputs go through the model at once.
        samples: the number of $z_i$.
        units: about how many superpixels or pieces; features of a table are units by themselves.
        width: w.
        penalty: $\lambda$; the constant $\phi_0$ is not penalised.
    """
    labels = superpixels(x, space, units)
    exists = (unit_sizes(labels.flatten(1)) > 0).double()
    # By unit first, so that a sample's numbers do not depend on how many units others have.
    kept = (draws.bits(exists.shape[1], samples) & 1).transpose(1, 2).double() * exists[:, None]
    kept[:, 0] = exists
    values = _values(model, x, target, baseline, labels, kept, chunk)
    cosine = (kept.sum(2) / exists.sum(1, keepdim=True)).sqrt()
    weights = torch.exp(-((1 - cosine) ** 2) / width**2)
    coefficients, explained = _ridge(kept, values, weights, penalty, exists)
    remark("r_squared", explained)
    return _spread(coefficients, labels, x)


@method(family="perturbation", cite="lundberg2017unified", conserves="difference", stochastic=True)
def kernel_shap(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    space: InputSpace,
    draws: Draws,
    chunk: int = 64,
    samples: Count = 1024,
    units: Count = 50,
) -> Float[Tensor, "n ..."]:
    r"""KernelSHAP: $\arg\min_\phi \sum_S \pi_S (f_t(x_S) - f_t(b) - \sum_{u \in S} \phi_u)^2$ over subsets.

    The constraint is $\sum_u \phi_u = f_t(x) - f_t(b)$;
    $\pi_S = \frac{d - 1}{\binom{d}{|S|} |S| (d - |S|)}$ for subsets $S$ of the $d$ units; $x_S$ has the baseline
    outside of $S$. With all subsets, which are taken if there are no more than `samples`, that are the Shapley values.
    Otherwise subsets are drawn from $\pi$ in pairs with their complements, which halves the noise of the even part.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: b, what stands where a unit is hidden.
        space: where in their range the pixels lie, for superpixels.
        draws: the subsets.
        chunk: how many inputs go through the model at once.
        samples: the largest number of subsets, the empty and the full one not counted; at least a pair is drawn.
        units: about how many superpixels or pieces; features of a table are units by themselves.
    """
    labels = superpixels(x, space, units)
    exists = (unit_sizes(labels.flatten(1)) > 0).double()
    subsets, weights = _subsets(exists, draws, samples)
    ends = torch.stack([torch.zeros_like(exists), exists], 1)
    values = _values(model, x, target, baseline, labels, torch.cat([ends, subsets], 1), chunk)
    empty, full = values[:, :1], values[:, 1]
    coefficients = _constrained(subsets, values[:, 2:] - empty, weights, exists, full - empty[:, 0])
    return _spread(coefficients, labels, x)


def _values(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    baseline: Float[Tensor, "n *shape"],
    labels: Int[Tensor, "n ..."],
    kept: Float[Tensor, "n k units"],
    chunk: int,
) -> Float[Tensor, "n k"]:
    """The target logits of each sample with only these units of it."""
    flat = labels.flatten(1)

    def hidden(part: range) -> Tensor:
        of_units = kept[:, part.start : part.stop].to(x.dtype)
        mask = of_units.gather(2, flat[:, None].expand(-1, len(part), -1)).unflatten(2, labels.shape[1:])
        return mixed(x, baseline, mask[:, :, None] if x.ndim > 2 else mask)

    found = [logits for _, logits in target_logits(model, target, kept.shape[1], chunk, hidden)]
    return torch.cat(found, 1).double()


def _ridge(
    kept: Float[Tensor, "n k units"],
    values: Float[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    penalty: float,
    exists: Float[Tensor, "n units"],
) -> tuple[Float[Tensor, "n units"], Float[Tensor, " n"]]:
    """Weighted ridge regression with a free constant: coefficients and the weighted R2, NaN where nothing varies."""
    share = weights / weights.sum(1, keepdim=True)
    middle, mean = torch.einsum("nk,nku->nu", share, kept), (share * values).sum(1, keepdim=True)
    centred, change = kept - middle[:, None], values - mean
    gram = torch.einsum("nk,nku,nkv->nuv", weights, centred, centred)
    moment = torch.einsum("nk,nku->nu", weights * change, centred)
    # Units that a sample does not have get an equation of their own: zero.
    gram = gram + torch.diag_embed(penalty * exists + (1 - exists))
    coefficients = torch.einsum("nuv,nv->nu", torch.linalg.pinv(gram, hermitian=True), moment)
    left = change - torch.einsum("nku,nu->nk", centred, coefficients)
    varies = values.amax(1) > values.amin(1)
    explained = 1 - (weights * left**2).sum(1) / (weights * change**2).sum(1)
    return coefficients, torch.where(varies, explained, torch.nan)


def _constrained(
    kept: Float[Tensor, "n k units"],
    values: Float[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
    exists: Float[Tensor, "n units"],
    total: Float[Tensor, " n"],
) -> Float[Tensor, "n units"]:
    """Weighted least squares without a constant, with coefficients that sum to `total`, by a Lagrange multiplier."""
    gram = torch.einsum("nk,nku,nkv->nuv", weights, kept, kept)
    moment = torch.einsum("nk,nku->nu", weights * values, kept)
    # The full set as one more equation, which the constraint fulfils anyhow, and zero for units that a sample does not
    # have: both keep the system from being singular.
    gram = gram + exists[:, :, None] * exists[:, None] + torch.diag_embed(1 - exists)
    moment = moment + exists * total[:, None]
    inverse = torch.linalg.pinv(gram, hermitian=True)
    free, ones = (torch.einsum("nuv,nv->nu", inverse, side) for side in (moment, exists))
    return (free - ones * ((free.sum(1) - total) / ones.sum(1))[:, None]) * exists


def _subsets(
    exists: Float[Tensor, "n units"], draws: Draws, samples: int
) -> tuple[Float[Tensor, "n k units"], Float[Tensor, "n k"]]:
    """Subsets of each sample's units with their weights: all proper ones where they are few, else drawn from pi."""
    counts = [int(count) for count in exists.sum(1)]
    drawn = _drawn(exists, draws, max(samples // 2, 1))
    found: list[tuple[Tensor, Tensor]] = []
    for row, count in enumerate(counts):
        if 2**count - 2 <= samples:
            found.append(_all_subsets(count, exists[row]))
        else:
            found.append((drawn[row], torch.ones(len(drawn[row])).to(exists)))
    longest = max(len(weights) for _, weights in found)
    subsets = torch.stack([nn.functional.pad(s, (0, 0, 0, longest - len(s))) for s, _ in found])
    # What fills up a sample that has fewer has no weight.
    return subsets, torch.stack([nn.functional.pad(weights, (0, longest - len(weights))) for _, weights in found])


def _all_subsets(count: int, exists: Float[Tensor, " units"]) -> tuple[Float[Tensor, "k units"], Float[Tensor, " k"]]:
    proper = [row for row in product((0.0, 1.0), repeat=count) if 0 < sum(row) < count]
    subsets = torch.zeros(len(proper), len(exists)).to(exists)
    if proper:
        subsets[:, exists > 0] = torch.tensor(proper).to(exists)
    sizes = [int(sum(row)) for row in proper]
    weights = [(count - 1) / (comb(count, size) * size * (count - size)) for size in sizes]
    return subsets, torch.tensor(weights, dtype=exists.dtype, device=exists.device)


def _drawn(exists: Float[Tensor, "n units"], draws: Draws, pairs: int) -> Float[Tensor, "n k units"]:
    """Subsets drawn from pi, each followed by its complement."""
    n, units = exists.shape
    # By unit first, so that a sample's numbers do not depend on how many units others have.
    numbers = draws.uniform(units + 1, pairs).transpose(1, 2)
    count = exists.sum(1).view(n, 1, 1)
    sizes = torch.arange(1, max(units, 2)).to(exists).view(1, 1, -1)
    # All subsets of one size together have the weight (d - 1) / (s (d - s)).
    law = torch.where(sizes < count, 1 / (sizes * (count - sizes)), 0.0).cumsum(2)
    size = 1 + (law < numbers[:, :, :1] * law[:, :, -1:]).sum(2, keepdim=True)
    # The units with the smallest numbers; those that are not there come last.
    rank = (numbers[:, :, 1:] + 2 * (1 - exists[:, None])).argsort(2).argsort(2)
    chosen = (rank < size).double() * exists[:, None]
    return torch.stack([chosen, exists[:, None] - chosen], 2).flatten(1, 2)


def _spread(
    coefficients: Float[Tensor, "n units"], labels: Int[Tensor, "n ..."], x: Float[Tensor, "n *shape"]
) -> Float[Tensor, "n ..."]:
    flat = labels.flatten(1)
    values = (coefficients / unit_sizes(flat).clamp(min=1)).gather(1, flat).unflatten(1, labels.shape[1:]).to(x.dtype)
    return values[:, None] if x.ndim > 2 else values
