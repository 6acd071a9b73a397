"""Methods that hide parts of the input and watch the output."""

from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.layers import features, upsampled
from harness.methods.perturbed import mixed, target_logits
from harness.random import Draws
from harness.registry import method
from harness.types import Count, InputError, NonNegative

WINDOWS_A_SIDE = 7
BLOCK = 64
"""Masks that are drawn at once."""


@method(family="perturbation", cite="zeiler2014visualizing")
def occlusion(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    chunk: int = 64,
    window: NonNegative = 0,
    stride: NonNegative = 0,
) -> Float[Tensor, "n ..."]:
    r"""Occlusion: $f_t(x) - f_t(x_{W \leftarrow b})$, averaged over the windows $W$ that cover a position.

    All channels are occluded together, so the map has one channel; a table is occluded feature by feature.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, what stands in the window.
        chunk: how many inputs go through the model at once.
        window: side of the window; 0 takes a seventh of the longest side, and 1 for a table.
        stride: distance between windows; 0 takes half a window. The last window is flush with the border.

    Raises:
        InputError: the stride is larger than the window, so that positions between windows have no value.
    """
    axes = x.shape[2:] or x.shape[1:]
    window = window or (-(-max(axes) // WINDOWS_A_SIDE) if x.ndim > 2 else 1)
    stride = stride or -(-window // 2)
    if stride > window:
        raise InputError(f"occlusion: stride {stride} is larger than the window {window}: use at most {window}")
    corners = product(*(_corners(side, window, stride) for side in axes))
    # The first version hides nothing.
    windows: list[Any] = [None, *((..., *(slice(at, at + window) for at in corner)) for corner in corners)]

    def occluded(part: range) -> Tensor:
        inputs = x[:, None].repeat(1, len(part), *(1,) * (x.ndim - 1))
        for place, index in enumerate(part):
            if windows[index]:
                inputs[:, place][windows[index]] = baseline[windows[index]]
        return inputs

    total = torch.zeros_like(x[:, :1] if x.ndim > 2 else x)
    coverage = torch.zeros_like(total[:1])
    full = None
    for part, logits in target_logits(model, target, len(windows), chunk, occluded):
        full = logits[:, :1] if full is None else full
        drops = (full - logits).view(*logits.shape, *(1,) * (x.ndim - 1))
        for place, index in enumerate(part):
            if windows[index]:
                total[windows[index]] += drops[:, place]
                coverage[windows[index]] += 1
    return total / coverage


def _corners(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return [*range(0, last, stride), last]


@method(family="perturbation", cite="petsiuk2018rise", stochastic=True)
def rise(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    draws: Draws,
    chunk: int = 64,
    samples: Count = 1000,
    cells: Count = 7,
    keep: float = 0.5,
    probability: bool = False,
) -> Float[Tensor, "n ..."]:
    r"""RISE: $\frac{1}{N p} \sum_i f_t(b + M_i \odot (x - b)) \, M_i$ over N random masks that keep p of the input.

    A mask is a grid of `cells` a side, each kept with probability p, upsampled linearly to one cell more than the
    input and cut out at a random shift. A feature of a table is kept or not by itself. The mean of all $f_t$ is taken
    out of the sum and added afterwards: what the map estimates stays the same, and it no longer shows how often a
    position happened to be kept. The paper sets b to zero and takes 4,000 masks for VGG-16, 8,000 for ResNet-50.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, what stands where the mask is zero.
        draws: the masks.
        chunk: how many inputs go through the model at once.
        samples: N, the number of masks.
        cells: of the grid, along each axis.
        keep: p, in (0, 1).
        probability: whether $f_t$ is the probability of the class, as in the paper, and not its logit.

    Raises:
        InputError: p is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise InputError(f"rise: keep is a probability between 0 and 1, got {keep}")
    axes = x.shape[2:]
    masks = x

    def hidden(part: range) -> Tensor:
        nonlocal masks
        drawn = _masks(draws, axes or x.shape[1:], part, cells, keep, smooth=bool(axes)).to(x.dtype)
        masks = drawn[:, :, None] if axes else drawn
        return mixed(x, baseline, masks)

    total = torch.zeros_like(x[:, :1] if axes else x)
    coverage, scores = torch.zeros_like(total), x.new_zeros(len(x))
    for _, logits in target_logits(model, target, samples, chunk, hidden, probability=probability):
        total += torch.einsum("nk,nk...->n...", logits, masks)
        coverage += masks.sum(1)
        scores += logits.sum(1)
    mean = (scores / samples).view(-1, *(1,) * (x.ndim - 1))
    return mean + (total - mean * coverage) / (samples * keep)


def _masks(
    draws: Draws, axes: tuple[int, ...], part: range, cells: int, keep: float, *, smooth: bool
) -> Float[Tensor, "n k ..."]:
    """These of each sample's masks. Their numbers are drawn in blocks, which do not depend on the chunk."""
    size = cells ** len(axes) if smooth else axes[0]
    shifts = len(axes) if smooth else 0
    blocks = range(part.start // BLOCK, (part.stop - 1) // BLOCK + 1)
    numbers = torch.cat([draws.uniform(BLOCK, size + shifts, draw=block) for block in blocks], 1)
    numbers = numbers[:, part.start - blocks.start * BLOCK :][:, : len(part)]
    masks = (numbers[:, :, :size] < keep).double()
    if not smooth:
        return masks
    masks = masks.unflatten(2, (cells,) * len(axes))
    for axis, side in enumerate(axes):
        table = _interpolations(side, cells).to(masks)
        shift = (numbers[:, :, size + axis] * len(table)).long()
        # The axis of the grid in front becomes the last one; after all axes their order is the old one.
        masks = torch.einsum("nkc...,nksc->nk...s", masks, table[shift])
    return masks


def _interpolations(side: int, cells: int) -> Float[Tensor, "shifts side cells"]:
    """For each shift of less than a cell, how `cells` values make `side`, linearly between the middles of cells."""
    cell = -(-side // cells)
    whole = nn.functional.interpolate(
        torch.eye(cells, dtype=torch.float64)[None], size=(cells + 1) * cell, mode="linear", align_corners=False
    )[0].T
    return whole.unfold(0, side, 1)[:cell].transpose(1, 2)


@method(family="cam", cite="wang2020score", needs=("spatial",))
def score_cam(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n c *axes"],
    chunk: int = 64,
    layer: str = "",
    softmax: bool = True,
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""Score-CAM: $\sum_k w_k A^k$ with $w_k$ from the logit of the input seen through the channel $A^k$.

    $w = \mathrm{softmax}_k \, s_k$ of the increases $s_k = f_t(b + H^k \odot (x - b)) - f_t(b)$, with $H^k$ the
    channel upsampled and scaled to [0, 1]. Logits are far apart in many networks, and the softmax then picks one
    channel; without it the weights are the increases themselves. A channel that is constant hides nothing and
    shows nothing: its $H^k$ is zero.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, what stands where the channel is lowest; zero in the paper.
        chunk: how many inputs go through the model at once.
        layer: as for `grad_cam`.
        softmax: whether the increases of all channels go through a softmax, as in the paper.
        relu: whether negative values of the sum become zero, as in the paper.

    Raises:
        NotApplicableError: as for `grad_cam`.
    """
    seen = features(model, x, target, layer, "score_cam")
    activation = seen.activation
    # One constant channel more: what it shows is the baseline itself.
    shown = torch.cat([activation, torch.zeros_like(activation[:, :1])], 1)

    def through_channels(part: range) -> Tensor:
        coarse = shown[:, part.start : part.stop]
        fine, ones = upsampled(coarse, x), (1,) * (x.ndim - 2)
        low, high = (end.view(*end.shape, *ones) for end in (fine.flatten(2).amin(2), fine.flatten(2).amax(2)))
        # Asked of the channel itself: upsampling a constant rounds.
        varies = (coarse != coarse.flatten(2)[:, :, :1].view(*coarse.shape[:2], *ones)).flatten(2).any(2)
        scaled = torch.where(varies.view(*varies.shape, *ones), (fine - low) / (high - low), 0.0)
        return mixed(x, baseline, scaled[:, :, None])

    logits = target_logits(model, target, shown.shape[1], chunk, through_channels)
    scores = torch.cat([each for _, each in logits], 1)
    weights = scores[:, :-1] - scores[:, -1:]
    return seen.map(weights.softmax(1) if softmax else weights, x, relu)
