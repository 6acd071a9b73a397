"""Maps made of attention weights: what the position that the logits are read from attends to.

The weights are caught where the softmax makes them, whichever module or function that is. Which tokens the logits are
read from shows where positions end: the class token, or all patches where they are pooled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.composites import plain
from harness.methods.layers import Layout, layers_of, upsampled
from harness.methods.operators import Call
from harness.methods.propagation import Propagation
from harness.methods.trace import Traced, traced
from harness.registry import method
from harness.types import NotApplicableError


@dataclass(frozen=True)
class Attended:
    """The attention of one run of a transformer.

    Attributes:
        layers: the weights of each layer; rows attend to columns and sum to 1.
        run: of the network, in which `weights` made them.
        weights: the same as the softmax returned them, with their graph.
        read: how much of each token the logits are read from; sums to 1.
        layout: where the tokens are in the input.
    """

    layers: list[Float[Tensor, "n _ tokens tokens"]]
    run: Traced
    weights: list[Tensor]
    read: Float[Tensor, " tokens"]
    layout: Layout

    def gradients(self) -> list[Float[Tensor, "n _ tokens tokens"]]:
        """Of the target logit, by the weights of each layer."""
        found = torch.autograd.grad(self.run.score, self.weights)
        return [gradient.view_as(layer) for gradient, layer in zip(found, self.layers, strict=True)]

    def map(self, mixed: Float[Tensor, "n tokens tokens"], x: Float[Tensor, "n c *axes"]) -> Float[Tensor, "n 1 *axes"]:
        """The row that is read, on the grid of the patches, at the size of the input."""
        row = torch.einsum("r,nrt->nt", self.read, mixed)
        return upsampled(self.layout.arranged(row[:, :, None]), x)


@method(family="attention", cite="abnar2020quantifying", needs=("spatial",))
def raw_attention(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n 1 *axes"]:
    r"""Raw attention: the weights $\bar A_L$ of the last layer, averaged over heads, of the token that is read.

    Says nothing about the class: it is the same for every target.

    Raises:
        NotApplicableError: the model has no attention over the whole input.
    """
    seen = _attended("raw_attention", model, x, target)
    return seen.map(seen.layers[-1].mean(1), x)


@method(family="attention", cite="abnar2020quantifying", needs=("spatial",))
def attention_rollout(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"], *, residual: float = 0.5
) -> Float[Tensor, "n 1 *axes"]:
    r"""Attention rollout: $\prod_l ((1 - r) \bar A_l + r I)$, the row of the token that is read.

    $\bar A_l$ are the weights of layer l averaged over heads, r stands for the residual connection. Rows sum to 1. Says
    nothing about the class: it is the same for every target.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each; does not matter.
        residual: r.

    Raises:
        NotApplicableError: the model has no attention over the whole input.
    """
    seen = _attended("attention_rollout", model, x, target)
    rolled = torch.eye(len(seen.read)).to(x)
    for layer in seen.layers:
        rolled = ((1 - residual) * layer.mean(1) + residual * torch.eye(len(seen.read)).to(x)) @ rolled
    return seen.map(rolled, x)


@method(family="attention", cite="chefer2021generic", needs=("spatial",))
def gradient_weighted_attention(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n 1 *axes"]:
    r"""Gradient-weighted attention: $R \leftarrow R + \bar E_l R$, $\bar E_l$ the mean of $(\nabla A_l \odot A_l)^+$.

    The mean is over heads. From $R = I$ through the layers of self-attention; the map is the row of the token that is
    read, without the identity.

    Raises:
        NotApplicableError: the model has no attention over the whole input.
    """
    seen = _attended("gradient_weighted_attention", model, x, target)
    identity = torch.eye(len(seen.read)).to(x)
    relevance = identity.expand(len(x), -1, -1)
    for layer, gradient in zip(seen.layers, seen.gradients(), strict=True):
        relevance = relevance + (gradient * layer).clamp(min=0).mean(1) @ relevance
    return seen.map(relevance - identity, x)


def _attended(name: str, model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"]) -> Attended:
    """The attention of the model on these samples.

    Raises:
        NotApplicableError: it has none, or its layers do not all attend from all positions to all.
    """
    weights: list[Tensor] = []

    def softmax(propagation: Propagation, call: Call) -> Any:
        output = plain(propagation, call)
        if output is not None and output.ndim > 2:
            weights.append(output)
        return output

    @contextmanager
    def caught(entered: Tensor) -> Iterator[None]:
        with Propagation({"softmax": softmax}, entered):
            yield

    run = traced(model, x, target, inside=caught)
    # Attention beside the way to the logits explains nothing of them.
    weights = [each for each in weights if each.grad_fn in run.between]
    if not weights:
        raise NotApplicableError(f"{name}: the model has no attention between positions")
    size = weights[-1].shape[-1]
    tokens = next(
        (each for each in layers_of(run) if each[1].tokens is not None and each[0].tensor.shape[1] == size), None
    )
    whole = all(each.shape[-2:] == (size, size) and (each.ndim == 3 or len(each) == len(x)) for each in weights)
    if tokens is None or not whole:
        raise NotApplicableError(
            f"{name}: the layers of the model do not attend from all positions to all, but in parts"
        )
    read = run.read(tokens[0]).to(x.dtype)
    layers = [each.detach().unflatten(0, (len(x), -1)) if each.ndim == 3 else each.detach() for each in weights]
    return Attended(layers, run, weights, read / read.sum(), tokens[1])
