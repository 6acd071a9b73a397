"""Networks that are built differently and compute the same function: made, checked and kept; and how maps differ.

What is connected to what is not known of a model in general. So a rewriting is made where the order of the calls
suggests it and then checked: it is kept only if the logits agree, on samples and on noise around them.
"""

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.case import Case
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.random import Draws
from harness.types import NotApplicableError, Score

K = TypeVar("K", bound=Hashable)

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROBES = 4
"""Samples that two networks must agree on, and as many with noise."""

Rewriting = Callable[["Original"], nn.Module]
"""Makes a network that computes the same function, or raises `NotApplicableError` with the reason."""


def relative_difference(
    measure: str, maps: Float[Tensor, "n *shape"], others: Float[Tensor, "n *shape"], stage: str | None = None
) -> Score:
    r"""$\|a - a'\|_2 / \|a\|_2$ of each pair, in [0, inf); undefined where $a$ is zero or either is not finite."""
    a, b = maps.flatten(1).double(), others.flatten(1).double()
    size = a.norm(dim=1)
    undefined = first_reason(
        {"not finite (trained network)": ~a.isfinite().all(1), "not finite (rewritten network)": ~b.isfinite().all(1)},
        {"the map is zero everywhere": size == 0},
    )
    return Score(measure, undefined_as_nan((a - b).norm(dim=1) / size, undefined), undefined, stage=stage)


def rewritten_networks(case: Case, rewritings: Mapping[K, Rewriting]) -> dict[K, nn.Module | str]:
    """The network of a case rewritten in each of these ways, or why it cannot be; made once for all methods.

    Args:
        case: only its network and its samples matter.
        rewritings: by a key that says which network it is, whatever is explained with it.

    Raises:
        NotApplicableError: no rewriting of this network could be checked.
    """
    known = case.shared_here("rewritings")
    if rewritings.keys() - known.keys():
        original = Original(case.model, case.x)
        for key in rewritings.keys() - known.keys():
            try:
                known[key] = rewritings[key](original)
            except NotApplicableError as lack:
                known[key] = str(lack)
    return {key: known[key] for key in rewritings}


class Original:
    """A network that is to be rewritten, in its own precision and in double, with inputs to tell others from it by.

    Args:
        model: returns logits [n, classes], in evaluation mode; never written to. Rewritings share the tensors that
            stay as they are.
        x: samples to trace the model and to check rewritings with.

    Raises:
        NotApplicableError: the logits are not such that others can be compared with them.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n ..."]) -> None:
        self.model = model
        # As many for a single sample, because each has noise of its own.
        self.x = x[torch.arange(PROBES, device=x.device) % len(x)]
        self._own = _Probe.of(model, self.x)

    @cached_property
    def calls(self) -> "list[Call]":
        """The calls of layers for one sample, in the order of execution."""
        return _calls(self.model, self.x[:1])

    @cached_property
    def _double(self) -> "_Probe | None":
        """In double precision; None where that is the network's own, or where it does not run in it throughout."""
        if self.x.dtype == torch.float64:
            return None
        try:
            with _Narrowing() as narrowing:
                probe = _Probe.of(copy.deepcopy(self.model).double(), self.x.double())
        except Exception:
            # A forward pass may raise anything at numbers of a type that it does not expect.
            return None
        return None if narrowing.seen else probe

    def rewritten(
        self, rewrite: Callable[[nn.Module], nn.Module], shift: float | Float[Tensor, "..."] = 0.0
    ) -> nn.Module:
        """What `rewrite` makes of the network, if it computes the same function (of inputs that are shifted).

        In double precision as well, because the rounding of single precision hides what influences the logits little.
        Last, because most that are no rewritings show without.

        Raises:
            NotApplicableError: the logits differ, or the rewritten network cannot be made or run; with the reason.
        """
        try:
            rewritten = rewrite(self.model)
            self._own.check(rewritten, shift)
            if self._double:
                self._double.check(rewrite(self._double.model), shift)
        except NotApplicableError:
            raise
        except Exception as error:
            # A forward pass may raise anything at a number of units that it does not expect.
            raise NotApplicableError(f"the rewritten network fails: {type(error).__name__}: {error}") from None
        return rewritten


@dataclass(frozen=True)
class _Probe:
    """A network in one precision, inputs, and the logits that it gives them."""

    model: nn.Module
    x: Float[Tensor, "m ..."]
    logits: Float[Tensor, "m classes"]

    @classmethod
    def of(cls, model: nn.Module, x: Float[Tensor, "n ..."]) -> "_Probe":
        """The samples, and the samples with as much noise: units that are silent on samples must agree as well.

        Raises:
            NotApplicableError: the logits are not such that others can be compared with them.
        """
        noise = Draws.of([str(row) for row in range(len(x))], "probes", device=x.device).normal(*x.shape[1:])
        size = x.square().mean().sqrt()
        x = torch.cat([x, x + torch.where(size > 0, size, 1) * noise.to(x.dtype)])
        with torch.no_grad():
            logits = model(x.clone())
        probe = cls(model, x, logits)
        if not 0 < probe.spread < torch.inf:
            raise NotApplicableError("a rewriting cannot be checked: the logits are always the same, or not finite")
        return probe

    @property
    def spread(self) -> float:
        """How far a logit gets from its mean. Not how large it is: that may be a bias, whatever the layers do."""
        return float((self.logits - self.logits.mean(0)).abs().max())

    def check(self, rewritten: nn.Module, shift: float | Float[Tensor, "..."]) -> None:
        """Compare the logits of the inputs with those that another network gives the shifted inputs.

        Raises:
            NotApplicableError: they differ by more than rounding, with the difference.
        """
        moved = torch.as_tensor(shift).to(self.x)
        with torch.no_grad():
            others = rewritten(self.x + moved)
        deviation = float((self.logits - others).abs().max()) / self.spread
        if not deviation <= (1e-9 if self.x.dtype == torch.float64 else 1e-4):
            precision = str(self.x.dtype).removeprefix("torch.")
            raise NotApplicableError(f"the logits differ by {deviation:.2g} of their spread ({precision})")


class _Narrowing(TorchFunctionMode):
    """While active, sees whether numbers in double precision become others in less."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and look at the types of what it takes and returns."""
        # Asked before, because an operator may change its argument itself.
        double = any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in args)
        output = func(*args, **(kwargs or {}))
        floating = isinstance(output, Tensor) and output.is_floating_point()
        self.seen |= double and floating and output.dtype != torch.float64
        return output


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass: its tensors, and whether it takes the numbers of the input."""

    name: str
    module: nn.Module
    input: Tensor
    output: object
    reads_input: bool

    def __str__(self) -> str:
        return f"{type(self.module).__name__} {self.name!r}"


def _calls(model: nn.Module, x: Float[Tensor, "1 ..."]) -> list[Call]:
    calls: list[Call] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        given = inputs[0] if inputs else None
        if isinstance(given, Tensor):
            # The shape may be another: a flattened input is still the input.
            same = len(given) == len(x) and given.dtype == x.dtype and torch.equal(given.flatten(), x.flatten())
            calls.append(Call(name, module, given, output, same))

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LINEAR) or (n and not any(m.children()))]
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
        for name, module in layers
    ]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return calls


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with modules of its own that shares all tensors: they are replaced and never written to."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def set_tensor(module: Any, name: str, value: Tensor) -> None:
    """Give a module another parameter or buffer, in the type of the old ones."""
    old = getattr(module, name)
    value = value.detach().to((module.weight if old is None else old).dtype)
    setattr(module, name, value if name in module._buffers else nn.Parameter(value))
