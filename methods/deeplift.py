"""DeepLIFT: every operator passes on the secant between the sample and its baseline instead of the tangent.

The baseline goes through the model first, and every operator that is not linear leaves its arguments behind; then the
sample goes through, and each operator meets its own arguments again. An operator of several arguments is linearised so
that its contributions add up to its difference exactly: products symmetrically, softmax and norms through their
closed forms. The map then sums to the difference of the outputs on every network without refused operators.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.composites import (
    BATCH_NORM,
    PLAIN,
    must_add_up,
    of_one_number,
    plain_batch_norm,
    plain_linear,
    ruled_score,
)
from harness.methods.operators import Call
from harness.methods.propagation import Notes, Propagation, Rule
from harness.methods.rules import SampleNorm, Scaled
from harness.registry import method
from harness.types import NotApplicableError

NEAR = 10_000
"""Below so many units of rounding, the tangent in the middle replaces a secant that it agrees with up to rounding."""


@method(family="backward rule", cite="shrikumar2017learning", conserves="difference")
def deeplift(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    rule: Literal["rescale", "reveal_cancel"] = "rescale",
) -> Float[Tensor, "n *shape"]:
    r"""DeepLIFT: $(x - b) \odot m$, activations multiplying by $\Delta \sigma / \Delta z$.

    A product $ab$ passes $\bar b$ to $a$ and $\bar a$ to $b$, the means of sample and baseline; a maximum goes to the
    winner of the sample where it grew and to that of the baseline where it fell; softmax, layer norm and division
    likewise add up. Sums to $f_t(x) - f_t(b)$.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, in the units of `x`.
        rule: of activations; "reveal_cancel" tells positive and negative contributions apart where an activation
            follows a linear operator.

    Raises:
        NotApplicableError: an operator has no rule, or sample and baseline take different ways through the model.
    """
    rules = RevealCancel() if rule == "reveal_cancel" else Rescale()
    with torch.enable_grad():
        entered = baseline.detach().requires_grad_().clone()
        with Propagation(rules.recording(), entered):
            start = model(entered).gather(1, target[:, None])[:, 0].detach()
    score, leaf = ruled_score(model, x, target, rules.rules(), "deeplift")
    (multipliers,) = torch.autograd.grad(score.sum(), leaf)
    maps = (x.detach() - baseline) * multipliers
    must_add_up("deeplift", maps, score.detach() - start, score.detach().abs() + start.abs())
    return maps


class Rescale:
    """The rules of the baseline's pass, which records, and those of the sample's, which compare."""

    def __init__(self) -> None:
        self._memory: list[tuple[str, list[Tensor]]] = []
        self._read: Iterator[tuple[str, list[Tensor]]] = iter(())

    @property
    def recorded(self) -> tuple[str, ...]:
        """The families whose arguments the baseline's pass leaves behind."""
        return tuple(SECANTS)

    def recording(self) -> dict[str, Rule]:
        """For the baseline, which comes first."""

        def record(propagation: Propagation, call: Call) -> Any:
            # Copies, because the model may write into them later.
            self._memory.append((call.name, [t.detach().clone() for t in call.tensors if propagation.depends(t)]))
            return propagation.run(call, covered=True)

        return {**PLAIN, **dict.fromkeys(self.recorded, record)}

    def rules(self) -> dict[str, Rule]:
        """For the sample."""
        self._read = iter(self._memory)
        return {**PLAIN, **{family: partial(self._compared, secant) for family, secant in SECANTS.items()}}

    def reference(self, propagation: Propagation, call: Call) -> list[Tensor]:
        """What the baseline had where the sample now has its tensors.

        Raises:
            NotApplicableError: the baseline went another way through the model.
        """
        name, reference = next(self._read, ("nothing", []))
        shapes = [tensor.shape for tensor in call.tensors if propagation.depends(tensor)]
        if name != call.name or [tensor.shape for tensor in reference] != shapes:
            raise NotApplicableError(
                f"deeplift: the model calls {call.name} for the sample where it calls {name} for the baseline"
            )
        return reference

    def substituted(self, propagation: Propagation, call: Call, surrogate: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The value of the call with the backward pass of `surrogate`."""
        propagation.cover(surrogate, [tensor.grad_fn for tensor in inputs], call.name)
        return Scaled.apply(surrogate, lambda _: (call.run(), 1.0))

    def _compared(self, secant: Any, propagation: Propagation, call: Call) -> Any:
        reference = self.reference(propagation, call)
        tensors = [t for t in call.tensors if propagation.depends(t)]
        if not all(t.requires_grad for t in tensors):
            return None
        call = call.aside()
        surrogate = secant(propagation, call, reference)
        return None if surrogate is None else self.substituted(propagation, call, surrogate, tensors)


class RevealCancel(Rescale):
    r"""Rescale, but where an activation follows a linear operator, perhaps with a batch norm between them.

    There $\Delta z = \Delta z^+ + \Delta z^-$, the sums of positive and of negative contributions $w_j \Delta a_j$, and
    $\Delta y^+$ is the mean of what $\Delta z^+$ changes before and after $\Delta z^-$ is added, $\Delta y^-$ likewise:
    the Shapley values of the two (`shrikumar2017learning`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts = Notes()

    @property
    def recorded(self) -> tuple[str, ...]:
        """The families whose arguments the baseline's pass leaves behind."""
        return (*super().recorded, "dense", "convolution")

    def rules(self) -> dict[str, Rule]:
        """For the sample."""
        rescale = super().rules()

        def activation(propagation: Propagation, call: Call) -> Any:
            parts = self._parts.get(call.args[0])
            return (
                rescale["activation"](propagation, call) if parts is None else self._revealed(propagation, call, parts)
            )

        linear = dict.fromkeys(("dense", "convolution"), self._linear)
        return {**rescale, **linear, "batch_norm": self._batch_norm, "activation": activation}

    def _linear(self, propagation: Propagation, call: Call) -> Any:
        reference = self.reference(propagation, call)
        output = plain_linear(propagation, call)
        if output is not None:
            (a, weight, _), rest, kwargs = call.split("input", "weight", "bias")
            change = a - reference[0]
            ups, downs = change * (change > 0), change * (change < 0)
            rising, falling = weight.clamp(min=0), weight.clamp(max=0)
            parts = [
                call.function(ups, one, None, *rest, **kwargs) + call.function(downs, other, None, *rest, **kwargs)
                for one, other in ((rising, falling), (falling, rising))
            ]
            self._parts[output] = propagation.cover(parts, [a.grad_fn], call.name)
        return output

    def _batch_norm(self, propagation: Propagation, call: Call) -> Any:
        x, weight, _, _, variance, _, _, eps = call.split(*BATCH_NORM)[0]
        output = plain_batch_norm(propagation, call)
        if output is not None and (parts := self._parts.get(x)) is not None:
            scale = ((variance + eps).rsqrt() * (1 if weight is None else weight)).view(-1, *(1,) * (x.ndim - 2))
            scaled = [scale * torch.where(scale > 0, one, other) for one, other in (parts, parts[::-1])]
            self._parts[output] = propagation.cover(scaled, [part.grad_fn for part in parts], call.name)
        return output

    def _revealed(self, propagation: Propagation, call: Call, parts: list[Tensor]) -> Any:
        (z0,) = self.reference(propagation, call)
        if not of_one_number(propagation, call):
            return None
        with torch.no_grad():
            rise, fall = parts
            start, risen, fallen, end = (call.on(z) for z in (z0, z0 + rise, z0 + fall, z0 + rise + fall))
            changes = (risen - start + end - fallen) / 2, (fallen - start + end - risen) / 2
            slopes = [torch.where(part == 0, 0.0, change / part) for change, part in zip(changes, parts, strict=True)]
        surrogate = slopes[0] * parts[0] + slopes[1] * parts[1]
        return self.substituted(propagation, call.aside(), surrogate, parts)


def _element_wise(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    r"""$m = \Delta \sigma / \Delta z$."""
    if not of_one_number(propagation, call):
        return None
    x, (x0,) = call.args[0], reference
    with torch.no_grad():
        difference = x - x0
        value, value0 = call.on(x), call.on(x0)
        slope = (value - value0) / difference
        precision = torch.finfo(x.dtype).eps
        near = difference.abs() <= NEAR * precision * (x.abs() + x0.abs())
        if bool(near.any()):
            tangent = _derivative(call, (x + x0) / 2)
            # Of the argument too: a small value may be the difference of two large ones, as x - tanh(x) is.
            size = value.abs() + value0.abs() + x.abs() + x0.abs()
            rounding = 4 * precision * size / difference.abs()
            slope = torch.where(near & ~((slope - tangent).abs() > rounding), tangent, slope)
        # Where nothing changes nothing is passed on, also where the tangent is vertical.
        slope = torch.where((value == value0) & ~slope.isfinite(), 0.0, slope)
    return slope * x


def _derivative(call: Call, at: Tensor) -> Tensor:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(call.on(at).sum(), at)[0]


def _bilinear(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    r"""$\Delta(ab) = \Delta a \, \bar b + \bar a \, \Delta b$, for every product that is linear in both."""
    tensors = call.tensors
    if len(reference) == 1:
        return None if call.name == "einsum" else call.run()
    means = [(t.detach() + t0) / 2 for t, t0 in zip(tensors, reference, strict=True)]
    terms = (iter([tensors[0], means[1]]), iter([means[0], tensors[1]]))
    left, right = (call.mapped(lambda _, term=term: next(term)).run() for term in terms)  # type: ignore[misc]
    return left + right


def _quotient(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    """A product with the reciprocal, whose secant is $-1 / (b b_0)$."""
    (over, under), _, options = call.split("input", "other")
    if options.get("rounding_mode"):
        return None
    if not isinstance(under, Tensor) or not propagation.depends(under):
        return call.run()
    under0 = reference[-1]
    reciprocal = -under / (under.detach() * under0)
    if len(reference) == 1:
        return over * reciprocal
    mean = (1 / under.detach() + 1 / under0) / 2
    return over * mean + (over.detach() + reference[0]) / 2 * reciprocal


def _softmax(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor:
    r"""Through $u = z - \log \sum e^z$ and, for softmax, $e^u$.

    The secant of $e^u$ is the logarithmic mean $m$ of its ends, $e^{\bar u} \sinh(\Delta u / 2) / (\Delta u / 2)$. As
    probabilities sum to 1, $\sum_j m_j \Delta u_j = 0$: the logarithm of the sum changes by the mean of $\Delta z$
    under the weights $m$.
    """
    z, (z0,) = call.args[0], reference
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    with torch.no_grad():
        # A position that is masked out for both takes and gives nothing.
        open_ = z.isfinite() & z0.isfinite()
        means = torch.where(open_, _log_mean(z.log_softmax(dim), z0.log_softmax(dim)).exp(), 0.0)
        weights = means / means.sum(dim, keepdim=True)
    z = z.masked_fill(~open_, 0.0)
    shifted = z - (weights * z).sum(dim, keepdim=True)
    return shifted if call.name == "log_softmax" else means * shifted


def _log_mean(z: Tensor, z0: Tensor) -> Tensor:
    """The logarithm of the logarithmic mean of $e^z$ and $e^{z_0}$."""
    half = ((z - z0) / 2).abs()
    exact = half + (-torch.expm1(-2 * half)).log() - (2 * half).log()
    return (z + z0) / 2 + torch.where(half < 0.01, half**2 / 6 - half**4 / 180, exact)


def _normalized(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    """The centred sample times one over its deviation, whose secant by the variance is $-1 / (s s_0 (s + s_0))$."""
    norm = SampleNorm.of(call)
    if norm is None or len(reference) != 1:
        return None
    x = call.args[0]
    centred, centred0 = norm.centred(x), norm.centred(reference[0])
    with torch.no_grad():
        scale, scale0 = norm.scale(centred), norm.scale(centred0)
        slope = -(scale * scale0) / (1 / scale + 1 / scale0)
    variance = ((centred.detach() + centred0) * centred).mean(norm.axes, keepdim=True)
    result = centred * (scale + scale0) / 2 + (centred.detach() + centred0) / 2 * slope * variance
    return result.view_as(x) * norm.weight


def _maximum(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    """All to the winner of the sample where the maximum grew, to that of the baseline where it fell."""
    x, (x0,) = call.args[0], reference
    if not isinstance(call.run(), Tensor):
        return None
    if x.ndim == int(call.name.partition("pool")[2][0]) + 1:  # without a batch axis
        alone = replace(call, args=(x[None], *call.args[1:]))
        output = _maximum(propagation, alone, [x0[None]])
        return None if output is None else output[0]
    adaptive = call.name.startswith("adaptive")
    pool = getattr(F, call.name)
    options = {key: value for key, value in call.kwargs.items() if key != "return_indices"}
    arguments = call.args[1 : 2 if adaptive else 6]
    with torch.no_grad():
        (top, winner), (top0, winner0) = (pool(each, *arguments, **options, return_indices=True) for each in (x, x0))
        chosen = torch.where(top >= top0, winner, winner0).flatten(2)
        difference = (x - x0).flatten(2).gather(2, chosen)
        slope = torch.where(difference == 0, 1.0, (top - top0).flatten(2) / difference)
    return (slope * x.flatten(2).gather(2, chosen)).view_as(top)


def _vector_norm(propagation: Propagation, call: Call, reference: list[Tensor]) -> Tensor | None:
    r"""$\Delta |x| = \frac{x + x_0}{|x| + |x_0|} \cdot \Delta x$."""
    (x, order, dim, keepdim), _, _ = call.split("x", "ord", "dim", "keepdim")
    if call.name != "linalg_vector_norm" or order not in (2, None):
        return None
    (x0,) = reference
    with torch.no_grad():
        total = call.run() + call.on(x0)
    return ((x.detach() + x0) * x).sum(dim, keepdim=bool(keepdim)) / torch.where(total == 0, 1.0, total)


SECANTS = {
    "activation": _element_wise,
    "elementwise": _element_wise,
    "product": _bilinear,
    "matmul": _bilinear,
    "quotient": _quotient,
    "softmax": _softmax,
    "normalization": _normalized,
    "maximum": _maximum,
    "norm": _vector_norm,
}
"""Family -> (propagation, call, the baseline's arguments) -> a linear surrogate with the right backward pass."""
