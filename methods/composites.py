"""Composites: which rule each family of operators follows, and the pass through a model that applies them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.operators import Call
from harness.methods.propagation import Propagation, Rule, ancestors, prove_coverage
from harness.methods.rules import Activation, Epsilon, Linear, LinearRule, SampleNorm, Scaled
from harness.types import NotApplicableError

Entry = Callable[..., LinearRule]
"""(lowest, highest values of its input, where they are known) -> the rule of the operator that takes the input."""


def ruled_score(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    rules: Mapping[str, Rule],
    name: str,
    bounds: tuple[Tensor, ...] | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]:
    """The target logits, whose backward pass follows the rules, and the leaf that it ends at.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        rules: operator family -> rule.
        name: of the method, for messages.
        bounds: where the input has a rule of its own, the lowest and highest values it may have, or nothing if the
            rule does not ask; what comes back at the leaf then is relevance.

    Raises:
        NotApplicableError: the model has an operator that no rule covers, or the logits do not depend on the input.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        entered = leaf.clone()
        propagation = Propagation(rules, entered)
        if bounds is not None:
            propagation.raw[entered] = tuple(bound.expand_as(x) for bound in bounds)
        with propagation:
            logits = model(entered)
            score = logits.gather(1, target[:, None])[:, 0]
    if not score.requires_grad or not any(getattr(n, "variable", None) is leaf for n in ancestors(score.grad_fn)):
        raise NotApplicableError(f"{name}: no gradient reaches the input: something in the model detaches it")
    prove_coverage(score, leaf, propagation, name)
    with torch.no_grad():
        plainly, ruled = model(x[:1].clone()), logits[:1].detach()
    if not torch.allclose(plainly, ruled, *rounding(ruled), equal_nan=True):
        raise NotApplicableError(
            f"{name}: under its rules the model computes {ruled.tolist()} and not {plainly.tolist()}"
        )
    return score, leaf


def rounding(values: Tensor) -> tuple[float, float]:
    """Relative and absolute differences that rounding may make in a whole network."""
    precision = torch.finfo(values.dtype).eps ** 0.5
    return precision, precision * float(values.abs().max()) if values.numel() else 0.0


def must_add_up(name: str, maps: Float[Tensor, "n ..."], claim: Float[Tensor, " n"]) -> None:
    """Check that maps sum to what they claim.

    Raises:
        NotApplicableError: they do not, so that the model does something that neither graph nor rules show.
    """
    flat = maps.flatten(1)
    residual, tolerance = flat.sum(1) - claim, rounding(claim)[0] * (flat.abs().sum(1) + claim.abs())
    if bool((residual.abs() > tolerance).any()):
        worst = int((residual.abs() - tolerance).argmax())
        raise NotApplicableError(
            f"{name}: sums to {float(flat[worst].sum()):.4g} where the output changes by {float(claim[worst]):.4g}: "
            "a part of the model depends on the input outside of the graph, or mixes samples"
        )


def ruled_gradients(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    rules: Mapping[str, Rule],
    name: str,
    *,
    also: Sequence[Tensor] = (),
    bounds: tuple[Tensor, ...] | None = None,
    relevance_one: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of `ruled_score` by `x`, then by the tensors of `also`; with `relevance_one`, of its logarithm."""
    score, leaf = ruled_score(model, x, target, rules, name, bounds)
    start = torch.where(score == 0, 0.0, 1 / score) if relevance_one else torch.ones_like(score)
    return torch.autograd.grad(score, [leaf, *also], start.detach(), allow_unused=True)


def plain(propagation: Propagation, call: Call) -> Any:
    """The operator's own backward pass; not where a part that depends on the input has none, such as a mask."""
    if any(propagation.depends(tensor) and not tensor.requires_grad for tensor in call.tensors()):
        return None
    return propagation.run(call, covered=True)


def plain_linear(propagation: Propagation, call: Call) -> Any:
    """A linear operator whose weight does not depend on the input."""
    weight = call.split("input", "weight")[0][1]
    return None if propagation.depends(weight) else plain(propagation, call)


def plain_product(propagation: Propagation, call: Call) -> Any:
    """A matrix product; an einsum with a weight would have to be read to know what kind of layer it is."""
    if call.name == "einsum" and not all(map(propagation.depends, call.tensors())):
        return None
    return plain(propagation, call)


def plain_quotient(propagation: Propagation, call: Call) -> Any:
    """A division that does not round."""
    return None if call.kwargs.get("rounding_mode") else plain(propagation, call)


BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")


def plain_batch_norm(propagation: Propagation, call: Call) -> Any:
    """Batch norm with the statistics of the training; those of the batch make samples depend on each other."""
    _, _, _, mean, _, training, _, _ = call.split(*BATCH_NORM)[0]
    return None if training or mean is None else plain(propagation, call)


PLAIN: dict[str, Rule] = {
    "dense": plain_linear,
    "convolution": plain_linear,
    "batch_norm": plain_batch_norm,
    "matmul": plain_product,
    "quotient": plain_quotient,
    **dict.fromkeys(
        "product normalization softmax maximum index elementwise norm".split(),
        plain,
    ),
}
"""The gradient: every operator that is smooth almost everywhere by itself, activations left out."""


def of_one_number(propagation: Propagation, call: Call) -> bool:
    """Whether an activation acts on one number at a time, its first argument; a maximum of two tensors does not."""
    first, *others = call.tensors()
    return first is call.args[0] and propagation.depends(first) and not any(map(propagation.depends, others))


def _guided(propagation: Propagation, call: Call) -> Any:
    if not of_one_number(propagation, call) or _cuts_at_zero(call, from_above=True):
        return None
    output = plain(propagation, call.aside())
    if output is not None and (call.name not in LIMITS or _cuts_at_zero(call)):
        output.register_hook(lambda gradient: gradient.clamp(min=0))
    return output


def _reconstructed(propagation: Propagation, call: Call) -> Any:
    if not of_one_number(propagation, call) or not call.args[0].requires_grad:
        return None
    if call.name not in RECTIFIERS and not _cuts_at_zero(call):
        return None
    output = Scaled.apply(call.args[0], lambda x: (call.on(x), 1.0))
    output.register_hook(lambda gradient: gradient.clamp(min=0))
    return output


LIMITS = frozenset("clamp clamp_min clamp_max maximum minimum".split())
"""Activations only where they cut at zero; elsewhere they guard a value, such as a norm before a division."""

RECTIFIERS = frozenset("relu relu6 leaky_relu prelu elu selu celu gelu silu mish hardswish softplus".split())


def _cuts_at_zero(call: Call, from_above: bool = False) -> bool:
    """Whether a bound makes a rectifier: nothing below zero passes, and numbers just above it do; or the reverse."""
    if call.name not in LIMITS | {"hardtanh", "threshold"}:
        return False
    x, *bounds = call.tensors()
    shape, sign = x.shape if bounds else (), -1 if from_above else 1
    probes = [x.new_full(shape, sign * number) for number in (-1.0, 0.0, 1e-3)]
    return all(torch.equal(call.on(probe), sign * (sign * probe).clamp(min=0)) for probe in probes)


GUIDED = {**PLAIN, "activation": _guided}
DECONVNET = {**PLAIN, "activation": _reconstructed}


class LRP:
    """Layer-wise relevance propagation: linear operators by rules of choice, the others as follows.

    Activations pass relevance on; what they add at zero takes its share, like a bias. Where two tensors that depend on
    the input are multiplied, one that gates (the output of a sigmoid or softmax, the reciprocal of a norm) counts as
    a constant, and else each gets half. Normalization by a sample's own statistics keeps its scale constant. Maxima
    pass relevance to the winner. A batch norm is folded into the linear operator before it, wherever that stands;
    one that follows something else is a linear operator by itself, proportional to contributions.

    Args:
        dense: the rule of linear layers.
        convolution: the rule of convolutions.
        entry: the rule of the operator that takes the input itself; by default the same as everywhere.
        softmax: "constant" makes attention weights gates; "taylor" sends relevance through them, half to the weights
            and half to the values (`achtibat2024attnlrp`).
    """

    def __init__(
        self,
        dense: LinearRule,
        convolution: LinearRule,
        entry: Entry | None = None,
        softmax: Literal["constant", "taylor"] = "constant",
    ) -> None:
        self.dense, self.convolution, self.entry = dense, convolution, entry
        self.softmax = softmax
        self.entered = False

    def rules(self) -> dict[str, Rule]:
        """Family -> rule."""
        return {
            "dense": lambda propagation, call: self._linear(propagation, call, self.dense),
            "convolution": lambda propagation, call: self._linear(propagation, call, self.convolution),
            "batch_norm": self._batch_norm,
            "activation": self._activation,
            "matmul": self._matmul,
            "product": self._product,
            "quotient": self._quotient,
            "normalization": _constant_scale,
            "softmax": self._softmax,
            "elementwise": self._gate,
            "norm": self._gate,
            "sum": self._sum,
            "maximum": plain,
            "index": plain,
        }

    def _linear(self, propagation: Propagation, call: Call, rule: LinearRule) -> Any:
        (a, weight, bias), rest, kwargs = call.split("input", "weight", "bias")
        if any(propagation.depends(tensor) for tensor in (weight, bias) if tensor is not None):
            return None
        # After the channels, a convolution has as many axes as its weight has after the first two.
        bias = None if bias is None else bias.view(-1, *(1,) * (weight.ndim - 2))
        channels = "second" if call.name.startswith("conv_transpose") else "first"

        def apply(a: Tensor, weight: Tensor) -> Tensor:
            return call.function(a, weight, None, *rest, **kwargs)

        return self._waits(propagation, call, Linear(apply, a, weight, bias, rule, channels))

    def _matmul(self, propagation: Propagation, call: Call) -> Any:
        factors = call.tensors()
        dependent = [propagation.depends(factor) for factor in factors]
        if all(dependent):
            return self._product(propagation, call)
        if call.name == "einsum":
            return None
        left = dependent[0]
        a, weight = factors if left else factors[::-1]

        def apply(a: Tensor, weight: Tensor) -> Tensor:
            return call.function(*((a, weight) if left else (weight, a)))

        return self._waits(propagation, call, Linear(apply, a, weight, None, self.dense))

    def _waits(self, propagation: Propagation, call: Call, linear: Linear) -> Tensor:
        if linear.a in propagation.raw and self.entry:
            linear = replace(linear, rule=self.entry(*propagation.raw.get(linear.a)))
            self.entered = True
        else:
            call = propagation.settled(call)
            linear = replace(linear, a=next(t for t in call.tensors() if propagation.depends(t)))
        output = call.run()
        output = output.clone() if output._is_view() else output
        propagation.pending[output] = replace(linear, version=linear.a._version)
        return output

    def _batch_norm(self, propagation: Propagation, call: Call) -> Any:
        x, weight, bias, mean, variance, training, _, eps = call.split(*BATCH_NORM)[0]
        if training or mean is None or any(map(propagation.depends, call.tensors()[1:])):
            return None
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        if x in propagation.raw:
            return self._one_to_one(propagation, call)
        linear = propagation.pending.get(x)
        if linear is not None and linear.channels and x.ndim == linear.weight.ndim:
            folded = linear.then(scale, shift)
        else:
            call = propagation.settled(call)
            channels = (-1, *(1,) * (x.ndim - 2))
            x = call.args[0]
            folded = Linear(torch.mul, x, scale.view(channels), shift.view(channels), Epsilon(0.0), None, x._version)
        output = call.run()
        propagation.pending[output] = folded
        return output

    def _activation(self, propagation: Propagation, call: Call) -> Any:
        z = call.args[0]
        if not of_one_number(propagation, call):
            return None
        if z in propagation.raw:
            return self._one_to_one(propagation, call)
        linear = propagation.pending.get(z)
        activation = Activation(call)
        output = linear.activated(propagation, z, activation) if linear else activation.passed(z)
        if call.name in ("sigmoid", "hardsigmoid"):
            propagation.gates[output] = True
        return output

    def _product(self, propagation: Propagation, call: Call) -> Any:
        if any(propagation.depends(tensor) and not tensor.requires_grad for tensor in call.tensors()):
            return None
        factors = [tensor for tensor in call.tensors() if propagation.depends(tensor)]
        if len(factors) == 1:
            return self._one_to_one(propagation, call) if factors[0] in propagation.raw else plain(propagation, call)
        gated = sum(factor in propagation.gates for factor in factors) == 1
        call = propagation.settled(call)

        def share(factor: Tensor) -> Tensor:
            if not propagation.depends(factor):
                return factor
            if gated:
                return factor.detach() if factor in propagation.gates else factor
            return Scaled.apply(factor, lambda x: (x.clone(), 0.5))

        before = [tensor.grad_fn for tensor in call.tensors() if propagation.depends(tensor)]
        return propagation.cover(call.mapped(share).aside().run(), before, call.name)

    def _quotient(self, propagation: Propagation, call: Call) -> Any:
        """The numerator takes all."""
        (over, under), _, options = call.split("input", "other")
        if not isinstance(over, Tensor) or not propagation.depends(over) or options.get("rounding_mode"):
            return None
        if over in propagation.raw and not (isinstance(under, Tensor) and propagation.depends(under)):
            return self._one_to_one(propagation, call)
        call = propagation.settled(call).aside()
        over = call.args[0]
        divided = call.mapped(lambda tensor: tensor if tensor is over else tensor.detach()).run()
        return propagation.cover(divided, [over.grad_fn], call.name)

    def _sum(self, propagation: Propagation, call: Call) -> Any:
        """A constant moves the input and its bounds; any other sum has the right backward pass by itself."""
        dependent = [tensor for tensor in call.tensors() if propagation.depends(tensor)]
        if len(dependent) != 1:
            return None
        if dependent[0] in propagation.raw:
            return self._one_to_one(propagation, call)
        linear = propagation.pending.get(dependent[0])
        if linear is None or call.name == "rsub" or (call.name != "add" and dependent[0] is not call.args[0]):
            return None
        output = call.aside().run()
        if output.shape != dependent[0].shape:
            return None
        constant = (
            call.mapped(lambda tensor: torch.zeros_like(tensor) if tensor is dependent[0] else tensor).aside().run()
        )
        propagation.pending[output] = linear.plus(constant.detach())
        return output

    def _softmax(self, propagation: Propagation, call: Call) -> Any:
        if self.softmax == "taylor":
            # In these units the first-order rule x_i (R_i - s_i sum R) is the plain gradient.
            return plain(propagation, call)
        return self._gate(propagation, call)

    def _gate(self, propagation: Propagation, call: Call) -> Any:
        """Has no rule where relevance arrives; where it only scales something else, none does."""
        output = propagation.run(call, covered=False)
        if isinstance(output, Tensor):
            propagation.gates[output] = True
        return output

    def _one_to_one(self, propagation: Propagation, call: Call) -> Tensor:
        """Numbers that are moved or scaled one by one, before the operator that takes the input: relevance stays."""
        raw = next(tensor for tensor in call.tensors() if tensor in propagation.raw)
        call = call.aside()

        def value(at: Tensor) -> Tensor:
            return call.mapped(lambda tensor: at if tensor is raw else tensor).run()

        output = Scaled.apply(raw, lambda x: (value(x), 1.0))
        ends = [value(bound) for bound in propagation.raw.get(raw)]
        propagation.raw[output] = (torch.minimum(*ends), torch.maximum(*ends)) if ends else ()
        return output


def _constant_scale(propagation: Propagation, call: Call) -> Any:
    """Normalization by the sample's own statistics is linear in the centred sample while its scale is constant."""
    norm = SampleNorm.of(call)
    if norm is None:
        return None
    call = propagation.settled(call)
    x = call.args[0]
    centred = norm.centred(x)
    linear = (centred * norm.scale(centred).detach()).view_as(x) * norm.weight
    propagation.cover(linear, [x.grad_fn], call.name)
    return Scaled.apply(linear, lambda _: (call.run(), 1.0))


def relevance(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    composite: LRP,
    name: str,
    *,
    bounds: tuple[Tensor, ...] = (),
    relevance_one: bool = False,
) -> Float[Tensor, "n *shape"]:
    """The relevance of the input, starting with the target logit or with 1.

    Raises:
        NotApplicableError: an operator has no rule, or no linear operator takes the input where it has its own rule.
    """
    raw = bounds if composite.entry else None
    (result,) = ruled_gradients(model, x, target, composite.rules(), name, bounds=raw, relevance_one=relevance_one)
    if composite.entry and not composite.entered:
        raise NotApplicableError(
            f"{name}: the rule for the input needs a linear layer or convolution that takes the input itself"
        )
    return result if composite.entry else x * result
