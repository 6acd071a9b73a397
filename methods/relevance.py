"""Layer-wise relevance propagation as a composite: linear operators by rules of choice, all others by conservation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.composites import BATCH_NORM, of_one_number, plain, ruled_gradients
from harness.methods.operators import Call
from harness.methods.propagation import Propagation, Rule
from harness.methods.rules import Activation, Channels, Epsilon, Linear, LinearRule, SampleNorm, Scaled
from harness.types import NotApplicableError

Entry = Callable[..., LinearRule]
"""(lowest, highest values of its input, where they are known) -> the rule of the operator that takes the input."""


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
            "product": partial(self._of_gates, self._product),
            "quotient": partial(self._of_gates, self._quotient),
            "normalization": _constant_scale,
            "softmax": self._softmax,
            "elementwise": self._gate,
            "norm": self._gate,
            "sum": partial(self._of_gates, self._sum),
            "maximum": plain,
            "index": plain,
        }

    def _linear(self, propagation: Propagation, call: Call, rule: LinearRule) -> Any:
        (a, weight, bias), rest, kwargs = call.split("input", "weight", "bias")
        if any(propagation.depends(tensor) for tensor in (weight, bias) if tensor is not None):
            return None
        # After the channels, a convolution has as many axes as its weight has after the first two.
        bias = None if bias is None else bias.view(-1, *(1,) * (weight.ndim - 2))
        channels: Channels = "second" if call.name.startswith("conv_transpose") else "first"
        linear = Linear(
            lambda a, weight: call.function(a, weight, None, *rest, **kwargs), a, weight, bias, rule, channels
        )
        return self._waits(propagation, call, linear)

    def _matmul(self, propagation: Propagation, call: Call) -> Any:
        factors = call.tensors
        dependent = [propagation.depends(factor) for factor in factors]
        if all(dependent):
            return self._product(propagation, call)
        if call.name == "einsum":
            return None
        left = dependent[0]
        a, weight = factors if left else factors[::-1]
        linear = Linear(
            lambda a, weight: call.function(*((a, weight) if left else (weight, a))), a, weight, None, self.dense
        )
        return self._waits(propagation, call, linear)

    def _waits(self, propagation: Propagation, call: Call, linear: Linear) -> Tensor:
        if linear.a in propagation.raw and self.entry:
            linear = replace(linear, rule=self.entry(*propagation.raw.get(linear.a)))
            self.entered = True
        else:
            call = propagation.settled(call)
            linear = replace(linear, a=next(t for t in call.tensors if propagation.depends(t)))
        output = call.run()
        output = output.clone() if output._is_view() else output
        propagation.pending[output] = replace(linear, version=linear.a._version, start=linear.a.grad_fn)
        return output

    def _batch_norm(self, propagation: Propagation, call: Call) -> Any:
        x, weight, bias, mean, variance, training, _, eps = call.split(*BATCH_NORM)[0]
        if training or mean is None or any(map(propagation.depends, call.tensors[1:])):
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
            scale, shift = scale.view(channels), shift.view(channels)
            folded = Linear(torch.mul, x, scale, shift, Epsilon(0.0), None, x._version, x.grad_fn)
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
        if any(propagation.depends(tensor) and not tensor.requires_grad for tensor in call.tensors):
            return None
        factors = [tensor for tensor in call.tensors if propagation.depends(tensor)]
        if len(factors) == 1:
            return self._scaled(propagation, call, factors[0])
        gated = sum(factor in propagation.gates for factor in factors) == 1
        call = propagation.settled(call)

        def share(factor: Tensor) -> Tensor:
            if not propagation.depends(factor):
                return factor
            if gated:
                return factor.detach() if factor in propagation.gates else factor
            return Scaled.apply(factor, lambda x: (x.clone(), 0.5))

        before = [tensor.grad_fn for tensor in call.tensors if propagation.depends(tensor)]
        return propagation.cover(call.mapped(share).aside().run(), before, call.name)

    def _scaled(self, propagation: Propagation, call: Call, factor: Tensor) -> Any:
        """A constant factor for each channel is folded into a linear operator before it, as that of a batch norm."""
        if factor in propagation.raw:
            return self._one_to_one(propagation, call)
        linear = propagation.pending.get(factor)
        constant = next((value for value in (*call.args, *call.kwargs.values()) if value is not factor), None)
        if linear is None or not linear.channels or not isinstance(constant, (int, float, Tensor)):
            return plain(propagation, call)
        scale = torch.as_tensor(constant, dtype=factor.dtype, device=factor.device).detach()
        channels = (factor.shape[1], *(1,) * (factor.ndim - 2))
        if factor.ndim != linear.weight.ndim or tuple(scale.shape) not in ((), channels, (1, *channels)):
            return plain(propagation, call)
        output = call.aside().run()
        scale = scale.flatten().expand(factor.shape[1])
        propagation.pending[output] = linear.then(scale, torch.zeros_like(scale))
        return output

    def _of_gates(self, rule: Rule, propagation: Propagation, call: Call) -> Any:
        """What is made of gates and constants alone is a gate."""
        dependent = [tensor for tensor in call.tensors if propagation.depends(tensor)]
        gates = [tensor in propagation.gates for tensor in (dependent[:1] if call.name == "div" else dependent)]
        output = rule(propagation, call)
        if all(gates):
            output = propagation.run(call, covered=False) if output is None else output
            propagation.gates[output] = True
        return output

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
        dependent = [tensor for tensor in call.tensors if propagation.depends(tensor)]
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
        at_zero = call.mapped(lambda tensor: torch.zeros_like(tensor) if tensor is dependent[0] else tensor)
        propagation.pending[output] = linear.plus(at_zero.aside().run().detach())
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
        raw = next(tensor for tensor in call.tensors if tensor in propagation.raw)
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
