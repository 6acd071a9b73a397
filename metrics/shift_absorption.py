"""A network that undoes a shift of its input."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.metrics.rewriting import LINEAR, Original, set_tensor, sharing_copy
from harness.types import NotApplicableError

ROUNDING = 1e-10
"""What is smaller than this part of the largest response of a layer is rounding, in double precision."""


def shift_absorbed(original: Original, shift: float | Float[Tensor, "..."]) -> nn.Module:
    r"""A copy $f'$ with $f'(x + m) = f(x)$: the layers that take the input have $b' = b - W m$.

    `kindermans2019reliability`. $W m$ is read off each layer itself, as its response to $m$ without its bias. Where a
    convolution pads with zeros, which do not move along, the response is another at the border. The response in the
    middle goes into the bias, and the difference to it is taken from the output of the layer at the border. That is
    the same as to pad $x + m$ with $m$, but the layer still takes the input itself, as rules for the input want it.

    Args:
        original: the network.
        shift: $m$, broadcastable to one sample [1, ...].

    Raises:
        NotApplicableError: no linear layer or convolution takes the input itself, or something else does too.
    """
    first = [call for call in original.calls if call.reads_input]
    readers = {call.name: call for call in first if isinstance(call.module, LINEAR)}
    if not readers:
        neither = [f"{call}, which is neither, does" for call in first]
        functional = "the model changes it first, or its first operator is functional"
        raise NotApplicableError(
            "no linear layer or convolution takes the input itself, so that nothing can absorb a shift: "
            f"{(*neither, functional)[0]}"
        )
    moved = torch.as_tensor(shift).to(original.x).expand_as(original.x[:1])

    def rewrite(network: nn.Module) -> nn.Module:
        rewritten = sharing_copy(network)
        for name, call in readers.items():
            _absorb(rewritten.get_submodule(name), moved.reshape(call.input.shape))
        return rewritten

    try:
        return original.rewritten(rewrite, moved)
    except NotApplicableError as lack:
        raise NotApplicableError(
            f"new biases in {', '.join(map(repr, readers))} do not absorb the shift, because something else sees "
            f"the input as well, or because of rounding: {lack}"
        ) from None


def _absorb(layer: Any, shift: Tensor) -> None:
    """Take what the layer answers to `shift`, of the shape of its input, out of its output again."""
    precise = copy.deepcopy(layer).double()
    with torch.no_grad():
        response = precise(shift.double()) - precise(torch.zeros_like(shift).double())
    channels = -1 if isinstance(layer, nn.Linear) else 1
    last = response.movedim(channels, -1)
    middle = last[tuple(side // 2 for side in last.shape[:-1])]
    set_tensor(layer, "bias", -middle if layer.bias is None else layer.bias.double() - middle)
    border = (last - middle).movedim(-1, channels)
    if border.abs().max() > ROUNDING * response.abs().max():
        layer.register_buffer("border", border.to(layer.weight.dtype))
        layer.register_forward_hook(lambda module, _, output: output - module.border)
