"""What makes results silently wrong: found in the model, in the samples and in what the one makes of the other."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from harness.heads import shape_of
from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError

NAMED = 3
ALONE = 4
SAME_OUTPUT = {torch.float64: 1e-6, torch.float32: 1e-3}
SAME_ROUGHLY = 1e-2
"""In half precision, and on CUDA, where convolutions may round to ten bits."""
SUMS_TO_ONE = 1e-3
OUTSIDE_BOX = 1e-3
JITTER = 0.1
DIRECTIONS = 8
ROUNDINGS = 100

LAST_STEPS = {"Sigmoid": "a sigmoid", "Softmax": "a softmax", "LogSoftmax": "a log-softmax", "LogSigmoid": "a sigmoid"}
"""Operations that make probabilities of logits."""

REARRANGEMENTS = frozenset(
    "Alias Clone Div Mean Neg Permute Reshape Rsub Select Slice Squeeze Stack T ToCopy Transpose Unsqueeze "
    "UnsafeView View".split()
)
"""Operations that may follow them and leave them probabilities, or the halves of one that a head makes."""

WRAPPED: dict[str, str] = {
    "ScriptModule": "a scripted model: rules and blocks cannot see into it; load its weights into the eager network",
    "OptimizedModule": "a compiled model: rules cannot see into it; give the network itself, model._orig_mod",
    "DataParallel": "wrapped in DataParallel, which scatters batches: give the network itself, model.module",
    "DistributedDataParallel": "wrapped in DistributedDataParallel: give the network itself, model.module",
}
"""Class -> why models of it are refused."""


@dataclass(frozen=True)
class Finding:
    """A problem with its remedy, in words, and what `run` and `evaluate` do about it; the doctor tells them all."""

    problem: str
    action: Literal["refuse", "warn", "cope"]


def in_model(model: nn.Module) -> list[Finding]:
    """What is wrong with a model before anything goes through it."""
    wrapped = wrapping(model)
    found = [Finding(wrapped, "refuse")] if wrapped else []
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted and not wrapped:
        outermost = [name for name in scripted if name.rpartition(".")[0] not in scripted]
        remedy = "methods with backward rules refuse them; build the network from eager modules"
        found.append(Finding(f"parts of the model are scripted ({_few(outermost)}): {remedy}", "warn"))
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        dropout = sum("Dropout" in type(module).__name__ for module in model.modules() if module.training)
        on = f", with dropout on in {dropout} modules" if dropout else ""
        found.append(Finding(f"the model is in train mode ({_few(training)}){on}: call model.eval() first", "refuse"))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        found.append(
            Finding(
                f"requires_grad is off for {len(frozen)} parameters ({_few(frozen)}): harmless for gradients by the "
                "input, wrong for methods that use those by parameters; call model.requires_grad_(True)",
                "cope",
            )
        )
    return found


def wrapping(model: nn.Module) -> str:
    """What a model is that keeps anybody from seeing into it, with the remedy; empty if it is nothing of the kind."""
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        reason = next((WRAPPED[kind] for kind in kinds if kind in WRAPPED), "")
        if name and "ScriptModule" in kinds:
            continue
        if not reason and getattr(module, "_compiled_call_impl", None) is not None:
            reason = "compiled in place: rules cannot see into it; give a network on which compile() was not called"
        if any(map(is_lazy, module.parameters(recurse=False))):
            reason = "lazy, without a shape yet: send a sample through it once, in its constructor"
        if reason:
            return f"{f'module {name!r}' if name else 'the model'} is {reason}"
    return ""


def in_samples(x: Float[Tensor, "n ..."], space: InputSpace, ids: Sequence[str]) -> list[Finding]:
    """What is wrong with samples, whatever the model."""
    broken = _not_finite(x, "the input of sample", ids, "clean the data or leave the sample out")
    if broken:
        return broken
    excess = space.excess(x)
    if excess.max() <= OUTSIDE_BOX:
        return []
    row, count = int(excess.argmax()), int((excess > OUTSIDE_BOX).sum())
    return [
        Finding(
            f"{count} of {len(x)} samples leave the declared box by up to {float(excess.max()):.2g} of its width "
            f"(sample {ids[row]}): mean, std, low or high are not those of these inputs",
            "warn",
        )
    ]


def in_output(output: object, ids: Sequence[str]) -> list[Finding]:
    """What is wrong with what a model returned."""
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(ids):
        problem = (
            f"the model must return logits of shape [n, classes], got {shape_of(output)}: "
            "wrap it in a module that does (in a study, `head: segmentation`, `regression` or `multi_label`; "
            "in Python, see harness.heads)"
        )
        return [Finding(problem, "refuse")]
    if output.shape[1] < 2:
        problem = (
            "the model returns one output: wrap it in harness.heads.Regression, or MultiLabel if it is a logit "
            "(in a study, `head: regression`, `head: multi_label`)"
        )
        return [Finding(problem, "refuse")]
    if not output.is_floating_point():
        return [
            Finding(f"the model must return real logits, got {output.dtype}: nothing can be differentiated", "refuse")
        ]
    broken = _not_finite(output, "the model's output for sample", ids, "check its weights and the scale of the input")
    if broken:
        return broken
    if len(output) > 1:
        one = torch.ones(len(output), device=output.device, dtype=output.dtype)
        for last, sums in (("a softmax", output.sum(1)), ("a log-softmax", output.exp().sum(1))):
            if torch.allclose(sums, one, rtol=0, atol=SUMS_TO_ONE) and (last != "a softmax" or output.min() >= 0):
                return [_of_probabilities(last)]
    return []


def in_repetition(
    model: nn.Module, x: Float[Tensor, "n ..."], output: Float[Tensor, "n classes"], ids: Sequence[str]
) -> list[Finding]:
    """What shows when the model is run again: chance, a dependence on the batch, writing into its input, its last step.

    Args:
        model: the network.
        x: samples.
        output: what it returned for them.
        ids: theirs.
    """
    found = _in_last_step(model, x[:1])
    given = x.clone()
    with torch.no_grad():
        again = model(given)
        # A single sample gets a companion, so that there is a batch that it can depend on.
        others = list(x[:ALONE].split(1)) if len(x) > 1 else [torch.cat([x, x / 2])]
        other_outputs = [model(batch.clone()) for batch in others]
    if not torch.equal(given, x):
        problem = "the model writes into its input in place: other code would see changed samples (here it gets copies)"
        found.append(Finding(problem, "cope"))
    same = SAME_ROUGHLY if output.is_cuda else SAME_OUTPUT.get(output.dtype, SAME_ROUGHLY)
    tolerance = same * float(output.abs().max())
    if not torch.allclose(again, output, rtol=same, atol=tolerance):
        problem = f"the model's output for sample {ids[0]} depends on chance: switch dropout off"
        return [*found, Finding(problem, "refuse")]
    for row, (batch, logits) in enumerate(zip(others, other_outputs, strict=True)):
        if logits.shape != (len(batch), output.shape[1]):
            problem = (
                f"the model must return [n, classes] for batches of any size n, got {shape_of(logits)} for "
                f"{len(batch)}: squeeze only the axes that are meant"
            )
            return [*found, Finding(problem, "refuse")]
        if not torch.allclose(logits[0], output[row], rtol=same, atol=tolerance):
            problem = (
                f"the model's output for sample {ids[row]} depends on the rest of its batch: "
                "let normalizations use their running statistics"
            )
            return [*found, Finding(problem, "refuse")]
    return found


def _in_last_step(model: nn.Module, x: Float[Tensor, "1 ..."]) -> list[Finding]:
    """Whether the last step of the model makes probabilities, by the graph that autograd records."""
    try:
        with torch.enable_grad():
            node = model(x.clone().requires_grad_().clone()).grad_fn
    except Exception:  # without a graph nothing is known; whatever it is, `in_gradient` tells it
        return []
    steps = _steps(node)
    return [_of_probabilities(LAST_STEPS[step]) for step in sorted(steps)[:1]] if steps <= LAST_STEPS.keys() else []


def _steps(node: Any) -> set[str]:
    """The operations that an output comes from, those aside that only rearrange."""
    name = "" if node is None else str(node.name()).partition("Backward")[0]
    if name not in REARRANGEMENTS:
        return {name}
    return set().union(*(_steps(before) for before, _ in node.next_functions if before is not None))


def _of_probabilities(last: str) -> Finding:
    problem = f"the outputs look like those of {last} inside the model: remove it, so that logits are explained"
    return Finding(problem, "warn")


def in_gradient(model: nn.Module, x: Float[Tensor, "n ..."]) -> list[Finding]:
    r"""Whether the gradient is that of the output: $\langle \nabla f_t, v \rangle = (f_t(x + hv) - f_t(x - hv)) / 2h$.

    For random directions v; a detached part or a backward pass of its own makes them differ. In float64, or in the
    model's own precision, and then more roughly, if it runs in no other. Near the samples and not at them, because a
    background of zeros sits on the kinks of rectifiers and ties the maxima of poolings; and medians, because a kink may
    lie between x - hv and x + hv, and a slope may happen to be small.
    """
    error = ""
    for double, step, tolerance in ((True, 1e-6, 1e-2), (False, 1e-3, 0.5)):
        try:
            network = copy.deepcopy(model).double() if double else model
            difference = _difference(network, x.double() if double else x, step)
        except Exception as caught:  # whatever a model raises when it is differentiated
            error = f"{type(caught).__name__}: {caught}".partition("\n")[0]
            continue
        if difference is None:
            problem = "no gradient reaches the input: something in the model detaches it (no_grad, detach, numpy)"
        elif math.isnan(difference):
            problem = "the gradient by the input holds NaN or infinite values"
        elif difference > tolerance:
            problem = (
                f"the gradient is not that of the output (they differ by {difference:.0%} along random directions): "
                "a part of the model is detached or has a backward pass of its own"
            )
        else:
            return []
        return [Finding(problem, "warn")]
    return [Finding(f"the model cannot be differentiated by its input: {error}", "warn")]


def _difference(model: nn.Module, x: Float[Tensor, "n ..."], step: float) -> float | None:
    """How much slopes and gradients differ, relative to the larger ones; None if there is no gradient."""
    x = x[torch.arange(max(DIRECTIONS, len(x)), device=x.device) % len(x)]
    draws = [Draws.of([str(row) for row in range(len(x))], what, device=x.device) for what in ("jitter", "direction")]
    scale = x.abs().mean(0).clamp(min=1e-3)
    jitter, direction = (scale * draw.normal(*x.shape[1:]).to(x.dtype) for draw in draws)
    x = x + JITTER * jitter
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf.clone())
        target = logits.argmax(1, keepdim=True)
        explained = logits.gather(1, target).sum()
        if not explained.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(explained, leaf, allow_unused=True)
    if gradient is None:
        return None
    with torch.no_grad():
        ends = [model(x + sign * step * direction).gather(1, target)[:, 0] for sign in (1, -1)]
    slope, claimed = (ends[0] - ends[1]) / (2 * step), (gradient * direction).flatten(1).sum(1)
    precision = torch.finfo(x.dtype)
    rounding = ROUNDINGS * precision.eps * float(logits.detach().abs().max()) / step
    larger = torch.maximum(slope.abs(), claimed.abs()).median()
    return float((slope - claimed).abs().median() / larger.clamp(min=max(rounding, precision.tiny)))


def refuse(found: Sequence[Finding]) -> list[str]:
    """The problems to warn of.

    Raises:
        InputError: there are some to refuse.
    """
    fatal = [finding.problem for finding in found if finding.action == "refuse"]
    if fatal:
        raise InputError("; ".join(fatal))
    return [finding.problem for finding in found if finding.action == "warn"]


def _not_finite(values: Float[Tensor, "n ..."], what: str, ids: Sequence[str], remedy: str) -> list[Finding]:
    broken = ~values.flatten(1).isfinite().all(1)
    if not broken.any():
        return []
    row = int(broken.nonzero()[0, 0])
    kind = "NaN" if values[row].isnan().any() else "infinite values"
    return [Finding(f"{what} {ids[row]} holds {kind} ({int(broken.sum())} samples do): {remedy}", "refuse")]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
