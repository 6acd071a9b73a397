r"""Rules: what the backward pass of an operator does instead.

Behind each operator the gradient $g$ carries relevance per value, $R = a \odot g$. A rule that keeps relevance
proportional to contributions then needs no division by small activations: sums, means and reshapes are right as they
are, and the whole of LRP-0 is the plain gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness.methods.operators import Call
from harness.methods.propagation import Pending, Propagation, Ruled
from harness.types import NotApplicableError

Make = Callable[[Tensor], tuple[Tensor, Tensor | float]]
"""A tensor -> a new value in its place, and what the gradient is multiplied by on its way back."""


class Scaled(Ruled):
    """An element-wise operator whose backward pass multiplies by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Make, inplace: bool = False) -> Tensor:
        """The value that `make` returns; in place, `x` itself with another history."""
        value, factor = make(x)
        ctx.number = None if isinstance(factor, Tensor) else factor
        ctx.save_for_backward(*([factor] if isinstance(factor, Tensor) else []))
        if inplace:
            ctx.mark_dirty(x)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient times the factor."""
        return gradients[0] * (ctx.saved_tensors[0] if ctx.number is None else ctx.number), None, None


class Redistributed(Ruled):
    """A linear operator, perhaps with the activation behind it, whose relevance goes back by a `Redistribution`."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, z: Tensor, linear: "Linear", activate: "Activation | None", inplace: bool = False
    ) -> Tensor:
        """The activation of `z`; without one, `z` itself with another history or a copy."""
        ctx.linear = linear
        if activate is not None:
            value = activate.value(z)
            # Another tensor, because the model may write into the value later.
            ctx.save_for_backward(a, value - activate.offset)
            return value
        if inplace:
            ctx.mark_dirty(z)
        copy = z.clone()
        ctx.save_for_backward(a, copy)
        return z if inplace else copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """By the rule, in the type of the weights where the model mixes types."""
        a, value = ctx.saved_tensors
        # Let go, as of saved tensors: the operator holds its input, which holds all that came before.
        linear, ctx.linear = ctx.linear, None
        kind = linear.weight.dtype
        value = value.to(kind)
        shared = linear.rule.share(linear, a.to(kind), value, value * gradients[0].to(kind))
        return shared.to(a.dtype), None, None, None, None


Channels = Literal["first", "second"] | None


@dataclass(frozen=True)
class Epsilon:
    r"""LRP-epsilon: $R_j = \sum_k \frac{a_j w_{jk}}{z_k + \epsilon \, \mathrm{sign} z_k} R_k$, sign 0 being 1.

    The operator's own backward pass, scaled: a `Linear` knows how.
    """

    epsilon: float


class Redistribution(ABC):
    r"""How a linear operator $z = \sum_j a_j w_j + b$ gives its relevance to its inputs."""

    @abstractmethod
    def share(
        self, linear: "Linear", a: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], relevance: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The relevance of the inputs divided by their values; a rule for the input returns it undivided."""


LinearRule = Epsilon | Redistribution


@dataclass(frozen=True, eq=False)
class Linear(Pending):
    """One call of a linear operator.

    Attributes:
        apply: (input, weight) -> output, without bias.
        a: the input, with its graph.
        weight: the weight.
        bias: in a shape that broadcasts to the output.
        rule: how relevance goes back.
        channels: which axis of the weight holds the channels of the output, so that a batch norm can be folded.
        version: of the input, to tell whether it is still what it was.
        start: the graph node of the input.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    a: Tensor
    weight: Tensor
    bias: Tensor | None
    rule: LinearRule
    channels: Channels = None
    version: int = 0
    start: Any = None

    def settle(self, propagation: Propagation, output: Tensor, inplace: bool) -> Tensor:
        """`output` with its rule: the same object, or a copy for those who only read."""
        if not isinstance(self.rule, Epsilon):
            self._check()
            return Redistributed.apply(self.a, output.detach_() if inplace else output.detach(), self, None, inplace)
        self._own(propagation, output)
        if epsilon := self.rule.epsilon:
            return Scaled.apply(output, lambda z: (z if inplace else z.clone(), z / _stabilized(z, epsilon)), inplace)
        return output

    def activated(self, propagation: Propagation, output: Tensor, activation: "Activation") -> Tensor:
        """The activation of `output`, both ruled in one step."""
        if activation.may_flip and not isinstance(self.rule, Epsilon):
            return activation.passed(self.settle(propagation, output, False))
        if not isinstance(self.rule, Epsilon):
            self._check()
            return Redistributed.apply(self.a, output.detach(), self, activation)
        self._own(propagation, output)
        return activation.passed(output, self.rule.epsilon)

    def _own(self, propagation: Propagation, output: Tensor) -> None:
        """The operator's own backward pass is part of the rule."""
        propagation.cover(output, [self.start], "linear")

    def _check(self) -> None:
        if self.a._version != self.version:
            raise NotApplicableError("the model writes over the input of a linear operator before it uses the output")

    def then(self, scale: Tensor, shift: Tensor) -> "Linear":
        """The operator and an affine one for each channel behind it, as one operator."""
        per_channel = (-1, *(1,) * (self.weight.ndim - 2))
        if self.channels == "second":
            groups = len(scale) // self.weight.shape[1]
            grouped = self.weight.view(groups, -1, *self.weight.shape[1:])
            weight = (grouped * scale.view(groups, 1, -1, *per_channel[1:])).view_as(self.weight)
        else:
            weight = self.weight * scale.view(-1, *(1,) * (self.weight.ndim - 1))
        scale, shift = scale.view(per_channel), shift.view(per_channel)
        return replace(self, weight=weight, bias=shift if self.bias is None else shift + self.bias * scale)

    def plus(self, constant: Tensor) -> "Linear":
        """The operator with something added that does not depend on the input."""
        return replace(self, bias=constant if self.bias is None else constant + self.bias)


@dataclass(frozen=True)
class AlphaBeta(Redistribution):
    r"""LRP-alpha-beta: $R_j = \sum_k (\alpha \frac{(a_j w_{jk})^+}{z_k^+} - \beta \frac{(a_j w_{jk})^-}{z_k^-}) R_k$.

    $z^\pm$ hold the positive and the negative part of the bias unless `bias` is False.
    """

    alpha: float
    beta: float
    bias: bool = True

    def share(self, linear: Linear, a: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """As `Redistribution`. Relevance that meets a denominator of zero is lost."""
        up, down = _signed(linear.weight, 0.0, 1.0)
        positive, negative = _signed(linear.bias if self.bias else None, 0.0, 1.0)
        terms = [(up, down, positive, self.alpha * relevance), (down, up, negative, -self.beta * relevance)]
        return _shared(linear, a, terms if self.beta else terms[:1])


@dataclass(frozen=True)
class Gamma(Redistribution):
    r"""LRP-gamma, generalised to inputs and outputs of either sign.

    With $c_{jk} = a_j w_{jk}$: $R_j = \sum_k \frac{c_{jk} + \gamma c_{jk}^\pm}{z_k + \gamma z_k^\pm} R_k$, the
    positive parts where $z_k > 0$ and the negative ones where $z_k < 0$; the bias is one of the contributions.
    """

    gamma: float

    def share(self, linear: Linear, a: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """As `Redistribution`."""
        up, down = _signed(linear.weight, 1.0, self.gamma)
        positive, negative = _signed(linear.bias, 1.0, self.gamma)
        above, below = relevance * (z > 0), relevance * (z < 0)
        terms = [(up, down, positive, above), (down, up, negative, below)]
        return _shared(linear, a, terms if bool(below.any()) else terms[:1])


@dataclass(frozen=True)
class Flat(Redistribution):
    r"""$R_j = \sum_k \frac{1}{n_k} R_k$, $n_k$ the number of inputs of output $k$. For the input."""

    def share(self, linear: Linear, a: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """As `Redistribution`."""
        return _undivided(linear, [(torch.ones_like(a), torch.ones_like(linear.weight))], relevance)


@dataclass(frozen=True)
class Squared(Redistribution):
    r"""LRP-w2: $R_j = \sum_k \frac{w_{jk}^2}{\sum_i w_{ik}^2} R_k$. For the input."""

    def share(self, linear: Linear, a: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """As `Redistribution`."""
        return _undivided(linear, [(torch.ones_like(a), linear.weight**2)], relevance)


@dataclass(frozen=True, eq=False)
class Box(Redistribution):
    r"""LRP-zB: $R_j = \sum_k \frac{x_j w_{jk} - l_j w_{jk}^+ - h_j w_{jk}^-}{\sum_i \dots} R_k$. For the input."""

    low: Tensor
    high: Tensor

    def share(self, linear: Linear, a: Tensor, z: Tensor, relevance: Tensor) -> Tensor:
        """As `Redistribution`."""
        # Together, because close to the bounds the three terms of the formula nearly cancel.
        above, below = (a - self.low, linear.weight.clamp(min=0)), (a - self.high, linear.weight.clamp(max=0))
        return _undivided(linear, [above, below], relevance)


def _signed(tensor: Tensor | None, whole: float, gain: float) -> Any:
    """The tensor times `whole` with its positive parts times `gain` added, and the same with its negative parts."""
    if tensor is None:
        return None, None
    return whole * tensor + gain * tensor.clamp(min=0), whole * tensor + gain * tensor.clamp(max=0)


Term = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""(weight of positive inputs, weight of negative ones, bias, relevance)."""


def _shared(linear: Linear, a: Tensor, terms: list[Term]) -> Tensor:
    r"""The sum over terms of $\sum_k w_{jk} R_k / (\sum_i a_i w_{ik} + b_k)$; relevance that meets a zero is lost."""
    signed = bool(a.amin() < 0)
    with torch.enable_grad():
        above = (a.clamp(min=0) if signed else a).detach().requires_grad_()
        below = a.clamp(max=0).requires_grad_() if signed else None
        totals = []
        for up, down, bias, _ in terms:
            total = linear.apply(above, up)
            total = total if below is None else total + linear.apply(below, down)
            totals.append(total if bias is None else total + bias)
    shares = [_ratio(relevance, total) for (*_, relevance), total in zip(terms, totals, strict=True)]
    if below is None:
        return torch.autograd.grad(totals, above, shares)[0]
    positive, negative = torch.autograd.grad(totals, (above, below), shares)
    return torch.where(a < 0, negative, positive)


def _ratio(relevance: Tensor, total: Tensor) -> Tensor:
    return (relevance / total.detach()).masked_fill_(total == 0, 0.0)


def _undivided(linear: Linear, parts: list[tuple[Tensor, Tensor]], relevance: Tensor) -> Tensor:
    r"""$\sum_k c_{jk} R_k / \sum_i c_{ik}$, the contributions $c$ being the sum of input times weight over `parts`."""
    with torch.enable_grad():
        inputs = [value.detach().requires_grad_() for value, _ in parts]
        total = sum(linear.apply(value, weight) for value, (_, weight) in zip(inputs, parts, strict=True))
    assert isinstance(total, Tensor)
    gradients = torch.autograd.grad(total, inputs, _ratio(relevance, total))
    return torch.stack([value.detach() * gradient for value, gradient in zip(inputs, gradients, strict=True)]).sum(0)


def _stabilized(z: Tensor, epsilon: float) -> Tensor:
    return z + torch.copysign(z.new_full((), epsilon), z) if epsilon else z


ZERO_AT_ZERO = frozenset(
    """
    relu relu6 gelu silu hardswish tanh elu selu celu leaky_relu prelu mish softsign tanhshrink hardshrink softshrink
    """.split()
)


class Activation:
    """A call of an element-wise activation: its value, and what it adds where its argument is zero."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def value(self, z: Tensor) -> Tensor:
        """The activation of another argument."""
        return self.call.on(z)

    @property
    def offset(self) -> Tensor | float:
        """The value at zero, which acts like a bias."""
        return 0.0 if self.call.name in ZERO_AT_ZERO else self.value(self.call.args[0].new_zeros(()))

    @property
    def may_flip(self) -> bool:
        """Whether the value may have the other sign than its argument."""
        return self.call.name in ("leaky_relu", "prelu")

    def passed(self, z: Tensor, epsilon: float = 0.0) -> Tensor:
        """The activation, through which all relevance passes but what the offset takes."""
        return Scaled.apply(z, lambda z: self._and_factor(z, epsilon))

    def _and_factor(self, z: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        value = self.value(z)
        factor = (value - self.offset if self.call.name not in ZERO_AT_ZERO else value) / _stabilized(z, epsilon)
        return value, factor if epsilon else torch.where(z == 0, 0.0, factor)


@dataclass(frozen=True)
class SampleNorm:
    """A call of layer, group, instance or root-mean-square normalization, by the statistics of each sample.

    Attributes:
        shape: the input in a shape in which statistics are taken over `axes`.
        axes: those axes.
        weight: in a shape that broadcasts to the input.
        centre: whether the mean is taken away.
        eps: added to the variance.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    weight: Tensor | float
    centre: bool
    eps: float

    @classmethod
    def of(cls, call: Call) -> "SampleNorm | None":
        """What the call normalizes; None where an instance norm uses running statistics."""
        x = call.args[0]
        if call.name in ("layer_norm", "rms_norm"):
            centre = call.name == "layer_norm"
            (_, shape, weight), rest, kwargs = call.split("input", "normalized_shape", "weight")
            eps = kwargs.get("eps", rest[centre] if len(rest) > centre else None)
            eps = (1e-5 if centre else torch.finfo(x.dtype).eps) if eps is None else eps
            return cls(tuple(x.shape), tuple(range(-len(shape), 0)), 1.0 if weight is None else weight, centre, eps)
        if call.name == "group_norm":
            (_, groups, weight, _, eps), _, _ = call.split("input", "num_groups", "weight", "bias", "eps")
        else:
            names = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps")
            (_, weight, _, _, _, own, _, eps), _, _ = call.split(*names)
            groups = x.shape[1]
            if not own:
                return None
        weight = 1.0 if weight is None else weight.view(-1, *(1,) * (x.ndim - 2))
        return cls((len(x), groups, -1), (2,), weight, True, 1e-5 if eps is None else eps)

    def centred(self, x: Tensor) -> Tensor:
        """The input without its mean, in `shape`."""
        x = x.reshape(self.shape)
        return x - x.mean(self.axes, keepdim=True) if self.centre else x

    def scale(self, centred: Tensor) -> Tensor:
        """One over the standard deviation."""
        return ((centred**2).mean(self.axes, keepdim=True) + self.eps).rsqrt()
