"""Methods that change the input and watch the output."""

from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.registry import method
from harness.types import InputError

WINDOWS_A_SIDE = 7


@method(family="perturbation", cite="zeiler2014visualizing")
def occlusion(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    window: int = 0,
    stride: int = 0,
) -> Float[Tensor, "n ..."]:
    r"""Occlusion: $f_t(x) - f_t(x_{W \leftarrow b})$, averaged over the windows $W$ that cover a position.

    All channels are occluded together, so the map has one channel; a table is occluded feature by feature.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, what stands in the window.
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
    total = torch.zeros_like(x[:, :1] if x.ndim > 2 else x)
    coverage = torch.zeros_like(total[:1])
    with torch.no_grad():
        full = _target_logit(model, x.clone(), target)
        for corner in product(*(_corners(side, window, stride) for side in axes)):
            inside: Any = (..., *(slice(start, start + window) for start in corner))
            occluded = x.clone()
            occluded[inside] = baseline[inside]
            drop = full - _target_logit(model, occluded, target)
            total[inside] += drop.view(-1, *(1,) * (x.ndim - 1))
            coverage[inside] += 1
    return total / coverage


def _target_logit(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return model(x).gather(1, target[:, None])[:, 0]


def _corners(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return [*range(0, last, stride), last]
