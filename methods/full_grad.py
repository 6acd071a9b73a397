"""FullGrad: what input x gradient leaves out, the share of the biases, brought back to the positions they act at."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.methods.composites import PLAIN, must_add_up, plain, plain_batch_norm, plain_linear, ruled_score
from harness.methods.operators import Call
from harness.methods.propagation import Propagation, Rule
from harness.registry import method
from harness.types import NotApplicableError

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@method(family="gradient", cite="srinivas2019full", conserves="output")
def full_grad(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n 1 *axes"] | Float[Tensor, "n c"]:
    r"""FullGrad: $\sum_c x_c \odot \nabla_{x_c} f_t + \sum_b b \odot \nabla_b f_t$, which sums to $f_t(x)$ exactly.

    The second sum goes over every bias of the network at every position: of linear layers, convolutions and batch
    norms, added constants, and $\sigma(z) - \sigma'(z) z$ of activations that are not piecewise linear through zero.
    Each is resized to the input linearly, by the ratio of areas, and what the borders lose is spread evenly, as is a
    bias without positions. The source takes absolute values, stretches each map to [0, 1] and leaves linear layers out;
    here the map keeps its signs and its sum. Tables have no positions: there biases are spread over all features.

    Raises:
        NotApplicableError: an operator has a bias of its own that is not known, such as a norm or a product.
    """
    ledger = Ledger()
    score, leaf = ruled_score(model, x, target, ledger.rules(), "full_grad")
    gradient, *others = torch.autograd.grad(score.sum(), [leaf, *ledger.outputs], allow_unused=True)
    total = x * gradient if x.ndim == 2 else (x * gradient).sum(1, keepdim=True)
    for bias, at_output, positions in zip(ledger.biases, others, ledger.positions, strict=True):
        if at_output is not None:
            total = total + _at_positions(bias * at_output, total, positions)
    must_add_up("full_grad", total, score.detach(), score.detach().abs())
    return total


class Ledger:
    """Rules that leave the gradient as it is and write down what each operator adds by itself.

    Attributes:
        biases: what an operator adds, in a shape that broadcasts to its output.
        outputs: those outputs.
        positions: whether the output has channels and then positions; a linear layer has its channels last.
    """

    def __init__(self) -> None:
        self.biases: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.positions: list[bool] = []

    def rules(self) -> dict[str, Rule]:
        """Family -> rule."""
        affine = {"convolution": plain_linear, "batch_norm": plain_batch_norm}
        allowed = ("matmul", "product", "quotient", "maximum")
        return {
            **{family: self._noting(rule, _value_at_zero) for family, rule in affine.items()},
            "dense": self._noting(plain_linear, _value_at_zero, positions=False),
            **{family: _of_one_factor(PLAIN[family]) for family in allowed},
            "activation": _of_one_factor(self._noting(plain, _beyond_tangent)),
            "index": _of_one_factor(self._noting(plain, _value_at_zero)),
            **dict.fromkeys(("sum", "join"), self._noting(plain, _value_at_zero)),
        }

    def _noting(self, rule: Rule, bias_of: Any, positions: bool = True) -> Rule:
        def noting(propagation: Propagation, call: Call) -> Any:
            bias = bias_of(propagation, call)
            output = rule(propagation, call.aside())
            if output is None or not bool((bias != 0).any()):
                return output
            self.biases.append(bias)
            self.outputs.append(output)
            self.positions.append(positions)
            # A copy, because the model may overwrite what it gets in place.
            return output.clone()

        return noting


def _of_one_factor(rule: Rule) -> Rule:
    """A product is affine only while one of its factors depends on the input."""

    def only(propagation: Propagation, call: Call) -> Any:
        return rule(propagation, call) if sum(map(propagation.depends, call.tensors)) == 1 else None

    return only


def _value_at_zero(propagation: Propagation, call: Call) -> Tensor:
    """What an affine operator adds."""
    at_zero = call.mapped(lambda tensor: torch.zeros_like(tensor) if propagation.depends(tensor) else tensor)
    return at_zero.aside().run().detach()


def _beyond_tangent(propagation: Propagation, call: Call) -> Tensor:
    r"""$\sigma(z) - \sigma'(z) z$."""
    at = call.args[0].detach().requires_grad_()
    value = call.on(at)
    (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach() - slope * at.detach()


def _at_positions(share: Tensor, like: Tensor, positions: bool) -> Tensor:
    """The share of one bias, one number for each position of `like`, with the same sum for each sample.

    Raises:
        NotApplicableError: the operator with the bias does not have the samples in front.
    """
    if len(share) != len(like):
        raise NotApplicableError("full_grad: an operator's first axis does not hold the samples")
    whole = share.flatten(1).sum(1).view(-1, *(1,) * (like.ndim - 1))
    if not positions or share.ndim != like.ndim or like.ndim == 2:
        return whole.expand_as(like) / like[0].numel()
    share = share.sum(1, keepdim=True)
    resized = interpolate(share, like.shape[2:], mode=MODES[like.ndim - 2], align_corners=False)
    resized = resized * (share[0].numel() / like[0].numel())
    # At the borders resizing weighs some positions more than others; the difference is spread evenly.
    return resized + (whole - resized.flatten(1).sum(1).view_as(whole)) / like[0].numel()
