"""Methods whose outcome is known beforehand: they test the tests.

`expected` is the verdict that a randomization test must reach on them; a study in which it does not says so.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.digests import digest
from harness.edges import edge_strength
from harness.random import Draws
from harness.registry import method

NOTHING_TO_JUDGE = {"parameter_randomization": "INVALID", "random_logit": "INVALID"}
IGNORES_EVERYTHING = {"parameter_randomization": "FAIL", "random_logit": "FAIL"}


@method(family="control", stochastic=True, expected=NOTHING_TO_JUDGE)
def random(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, draws: Draws
) -> Float[Tensor, "n *shape"]:
    """Standard normal noise, new at every call: no test may find anything in it."""
    return draws.normal(*x.shape[1:]).to(x.dtype)


@method(family="control", needs=("image",), expected=IGNORES_EVERYTHING)
def sobel(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n 1 h w"]:
    r"""Edge strength of the mean over channels, $\sqrt{(S_h^2 + S_v^2) / 2}$: ignores the model altogether."""
    return edge_strength(x)


@method(family="control", expected=IGNORES_EVERYTHING)
def input_magnitude(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    """The absolute value of the input itself: what a method that only copies the input would show."""
    return x.abs()


@method(family="control", expected=NOTHING_TO_JUDGE)
def constant(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """One everywhere: has no order, so that every ranking metric must say that it is undefined."""
    return torch.ones_like(x)


@method(family="control", needs=("spatial",), expected=IGNORES_EVERYTHING)
def center_gaussian(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n 1 *axes"]:
    r"""A Gaussian in the middle, $\prod_a e^{-u_a^2 / 2}$, $u_a$ from the centre in quarters of side a.

    Where photographers put their objects: what a method that knows neither the model nor the input would show.
    """
    bell = torch.ones_like(x[:, :1])
    for axis, side in enumerate(x.shape[2:], 2):
        centred = (torch.arange(side).to(x) - (side - 1) / 2) / (side / 4)
        bell = bell * torch.exp(-centred.square() / 2).view(-1, *(1,) * (x.ndim - 1 - axis))
    return bell


@method(family="control", expected={"parameter_randomization": "PASS", "random_logit": "FAIL"})
def parameter_noise(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    """Standard normal noise that a hash of the weights and of the sample seeds: changes with every parameter.

    Passes each randomization test and explains nothing: why PASS is necessary and not sufficient.
    """
    # In single precision, so that the same network in double precision has the same noise.
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = digest({name: tensor.float() for name, tensor in state.items()})
    ids = [digest(sample.float()) for sample in x]
    return Draws.of(ids, "parameter_noise", weights, device=x.device).normal(*x.shape[1:]).to(x.dtype)


@method(family="control", needs=("masks",))
def oracle(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, masks: Float[Tensor, "n ..."]
) -> Float[Tensor, "n ..."]:
    """The mask that the data bring: what a method that knows the truth would show."""
    return masks.to(x)
