"""Methods whose outcome is known beforehand: they test the tests.

`expected` is the verdict that a randomization test must reach on them; a study in which it does not says so.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from harness.random import Draws
from harness.registry import method


@method(family="control", stochastic=True, expected={"parameter_randomization": "INVALID"})
def random(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, draws: Draws
) -> Float[Tensor, "n *shape"]:
    """Standard normal noise, new at every call: no test may find anything in it."""
    return draws.normal(*x.shape[1:]).to(x.dtype)


@method(family="control", needs=("image",), expected={"parameter_randomization": "FAIL"})
def sobel(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n 1 h w"]:
    r"""Edge strength of the mean over channels, $\sqrt{(S_h^2 + S_v^2) / 2}$: ignores the model altogether.

    Borders are replicated; scaled as in scikit-image.
    """
    smooth, difference = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([1.0, 0.0, -1.0])
    horizontal = torch.outer(difference, smooth).to(x)
    kernels = torch.stack([horizontal, horizontal.T])[:, None]
    edges = conv2d(pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernels)
    return (edges.square().sum(1, keepdim=True) / 2).sqrt()


@method(family="control", expected={"parameter_randomization": "FAIL"})
def input_magnitude(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    """The absolute value of the input itself: what a method that only copies the input would show."""
    return x.abs()


@method(family="control", expected={"parameter_randomization": "INVALID"})
def constant(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """One everywhere: has no order, so that every ranking metric must say that it is undefined."""
    return torch.ones_like(x)
