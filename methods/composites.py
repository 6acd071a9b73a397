"""Composites: which rule each family of operators follows, and the pass through a model that applies them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.operators import Call
from harness.methods.propagation import Propagation, Rule, prove_coverage
from harness.methods.rules import Scaled
from harness.types import NotApplicableError


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
            propagation.raw[entered] = tuple(torch.zeros_like(x) + bound for bound in bounds)
        with propagation:
            logits = model(entered)
            score = logits.gather(1, target[:, None])[:, 0]
    prove_coverage(score, leaf, propagation, name)
    if not _is_what_it_was(model, x[:1], logits[:1].detach()):
        raise NotApplicableError(f"{name}: under its rules the model computes other logits than by itself")
    return score, leaf


def _is_what_it_was(model: nn.Module, x: Float[Tensor, "one ..."], ruled: Float[Tensor, "one classes"]) -> bool:
    """Whether the rules left the value as it is, seen on one sample."""
    try:
        # With gradients, because without them some modules take a faster way to other numbers.
        with torch.enable_grad():
            plainly = model(x.detach().requires_grad_().clone()).detach()
        return torch.allclose(plainly, ruled, *rounding(ruled), equal_nan=True)
    except RuntimeError:  # a model that takes whole batches only cannot be asked
        return True


def rounding(values: Tensor) -> tuple[float, float]:
    """Relative and absolute differences that rounding may make in a whole network."""
    precision = torch.finfo(values.dtype).eps ** 0.5
    return precision, precision * float(values.abs().max()) if values.numel() else 0.0


def must_add_up(name: str, maps: Float[Tensor, "n ..."], claim: Float[Tensor, " n"], size: Float[Tensor, " n"]) -> None:
    """Check that maps sum to what they claim, up to the rounding of numbers of this size.

    Raises:
        NotApplicableError: they do not, so that the model does something that neither graph nor rules show.
    """
    flat = maps.flatten(1)
    residual, tolerance = flat.sum(1) - claim, rounding(claim)[0] * (flat.abs().sum(1) + size)
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
) -> tuple[Any, ...]:
    """Gradients of `ruled_score` by `x`, then by the tensors of `also`; with `relevance_one`, of its logarithm.

    None for a tensor that the score does not depend on.
    """
    score, leaf = ruled_score(model, x, target, rules, name, bounds)
    start = torch.where(score == 0, 0.0, 1 / score) if relevance_one else torch.ones_like(score)
    return torch.autograd.grad(score, [leaf, *also], start.detach(), allow_unused=True)


def plain(propagation: Propagation, call: Call) -> Any:
    """The operator's own backward pass; not where a part that depends on the input has none, such as a mask."""
    if any(propagation.depends(tensor) and not tensor.requires_grad for tensor in call.tensors):
        return None
    return propagation.run(call, covered=True)


def plain_linear(propagation: Propagation, call: Call) -> Any:
    """A linear operator whose weight does not depend on the input."""
    weight = call.split("input", "weight")[0][1]
    return None if propagation.depends(weight) else plain(propagation, call)


def plain_product(propagation: Propagation, call: Call) -> Any:
    """A matrix product; an einsum with a weight would have to be read to know what kind of layer it is."""
    if call.name == "einsum" and not all(map(propagation.depends, call.tensors)):
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
    first, *others = call.tensors
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
    x, *bounds = call.tensors
    shape, sign = x.shape if bounds else (), -1 if from_above else 1
    probes = [x.new_full(shape, sign * number) for number in (-1.0, 0.0, 1e-3)]
    return all(torch.equal(call.on(probe), sign * (sign * probe).clamp(min=0)) for probe in probes)


GUIDED = {**PLAIN, "activation": _guided}
DECONVNET = {**PLAIN, "activation": _reconstructed}
