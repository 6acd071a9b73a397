"""What makes results silently wrong: found in the model, in the samples and in what the one makes of the other."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.heads import shape_of
from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError

NAMED = 3
SAME_OUTPUT = 1e-2
SUMS_TO_ONE = 1e-3
OUTSIDE_BOX = 1e-3
STEP = 1e-6
SAME_DERIVATIVE = 1e-2

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
    found = []
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        reason = next((WRAPPED[kind] for kind in kinds if kind in WRAPPED), "")
        if reason:
            found.append(Finding(f"{f'module {name!r}' if name else 'the model'} is {reason}", "refuse"))
            break
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
            "wrap it in a module that does (segmentation, regression and multi-label models: see harness.heads)"
        )
        return [Finding(problem, "refuse")]
    if output.shape[1] < 2:
        problem = "the model returns one output: wrap it in harness.heads.Regression, or MultiLabel if it is a logit"
        return [Finding(problem, "refuse")]
    broken = _not_finite(output, "the model's output for sample", ids, "check its weights and the scale of the input")
    if broken:
        return broken
    one = torch.ones(len(output), device=output.device, dtype=output.dtype)
    for last, sums in (("a softmax", output.sum(1)), ("a log-softmax", output.exp().sum(1))):
        if torch.allclose(sums, one, rtol=0, atol=SUMS_TO_ONE) and (last != "a softmax" or output.min() >= 0):
            problem = f"the outputs look like those of {last} inside the model: remove it, so that logits are explained"
            return [Finding(problem, "warn")]
    if len(output) > 1 and output.min() >= 0 and output.max() <= 1:
        return [Finding("all outputs are between 0 and 1: remove the sigmoid, so that logits are explained", "warn")]
    return []


def in_repetition(
    model: nn.Module, x: Float[Tensor, "n ..."], output: Float[Tensor, "n classes"], ids: Sequence[str]
) -> list[Finding]:
    """Whether outputs depend on chance or on the batch, and whether the model writes into its input."""
    found = []
    given = x.clone()
    with torch.no_grad():
        again, alone = model(given), model(x[:1].clone())
    if not torch.equal(given, x):
        problem = "the model writes into its input in place: other code would see changed samples (here it gets copies)"
        found.append(Finding(problem, "cope"))
    tolerance = SAME_OUTPUT * float(output.abs().max())
    if not torch.allclose(again, output, rtol=SAME_OUTPUT, atol=tolerance):
        found.append(Finding(f"the model's output for sample {ids[0]} depends on chance: switch dropout off", "refuse"))
    elif not torch.allclose(alone, output[:1], rtol=SAME_OUTPUT, atol=tolerance):
        problem = (
            f"the model's output for sample {ids[0]} depends on the rest of its batch: "
            "let normalizations use their running statistics"
        )
        found.append(Finding(problem, "refuse"))
    return found


def in_gradient(model: nn.Module, x: Float[Tensor, "n ..."]) -> list[Finding]:
    r"""Whether the gradient is that of the output: $\langle \nabla f_t, v \rangle = (f_t(x + hv) - f_t(x - hv)) / 2h$.

    In float64 and for a random direction v; a detached part or a backward pass of its own makes them differ. The
    median over the samples, because a kink between x - hv and x + hv spoils a sample.
    """
    try:
        double, x = copy.deepcopy(model).double(), x.double()
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            logits = double(leaf.clone())
            target = logits.argmax(1, keepdim=True)
            (gradient,) = torch.autograd.grad(logits.gather(1, target).sum(), leaf, allow_unused=True)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            return [Finding(f"the gradient cannot be checked in float64: {str(error).partition(chr(10))[0]}", "warn")]
        gradient = None
    if gradient is None:
        problem = "no gradient reaches the input: something in the model detaches it (no_grad, detach, numpy)"
        return [Finding(problem, "warn")]
    direction = Draws.of([str(row) for row in range(len(x))], "direction", device=x.device).normal(*x.shape[1:])
    step = STEP * float(x.abs().mean().clamp(min=1e-3))
    with torch.no_grad():
        ends = [double(x + sign * step * direction).gather(1, target)[:, 0] for sign in (1, -1)]
    slope, claimed = (ends[0] - ends[1]) / (2 * step), (gradient * direction).flatten(1).sum(1)
    scale = torch.maximum(slope.abs(), claimed.abs())
    tiny = 1e-9 * float(logits.detach().abs().max())
    difference = float(((slope - claimed).abs() / scale.clamp(min=tiny)).median())
    if difference <= SAME_DERIVATIVE:
        return []
    return [
        Finding(
            f"the gradient is not that of the output (they differ by {difference:.0%} along a random direction): "
            "a part of the model is detached or has a backward pass of its own",
            "warn",
        )
    ]


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
