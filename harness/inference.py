"""The form of a network for passes without a gradient: faster, and used only after its logits were checked."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from harness.inplace import has_hooks, in_place
from harness.snapshot import copy_of
from harness.tensors import tensors_in

EAGER = "eager"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHECKED = 16
"""How many samples the logits are compared on, at most."""

ROUNDING = 1000
"""By how many units in the last place of the largest logit another order of sums may change logits."""


@dataclass(frozen=True)
class Inference:
    """A network for passes without a gradient.

    Attributes:
        form: what it is, in words: a part of the key of every cell.
        network: it.
        layout: of its inputs in memory.
    """

    form: str
    network: nn.Module
    layout: torch.memory_format = torch.preserve_format

    def logits(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """Its output; `x` is safe from a network that writes in place."""
        with torch.no_grad() if self.form == EAGER else torch.inference_mode():
            return self.network(x.clone(memory_format=self.layout))


def inference_form(model: nn.Module, x: Float[Tensor, "n ..."], compiled: bool = False) -> Inference:
    """The fastest form of a network that has its logits on these samples.

    Batch norms are folded into the convolution or linear layer whose output they alone take, on the CPU images lie with
    their channels last, and activations and sums write over what nothing else reads; in single precision only, as
    nothing is gained elsewhere. What cannot be copied, or does not bear it, stays as it is.

    Args:
        model: in evaluation mode; it is not written to.
        x: some samples; at most `CHECKED` of them are used.
        compiled: whether torch compiles what is left, so that it does not have to write in place. Where that fails, a
            warning says why, and the form is the fastest of the others.
    """
    x = x[:CHECKED]
    eager = Inference(EAGER, model)
    if any(tensor.dtype != torch.float32 for tensor in (x, *model.parameters())):
        return eager
    expected = eager.logits(x)
    made = [form for make in (_folded_channels_last, _folded) if (form := _tried(make, model, x))]
    if compiled and (form := _compiled([*made, Inference("", model)], x, expected)):
        return form
    for each in made:
        for form in (_tried(_in_place, each), each):
            if form and _has(form, x, expected):
                return form
    return eager


def _compiled(forms: Sequence[Inference], x: Tensor, expected: Tensor) -> Inference | None:
    """The first of these that can be compiled and has these logits then."""
    problem: object = ""
    for each in forms:
        # What `torch.compile` returns is a network of its own that calls the copy.
        try:
            network: Any = torch.compile(copy_of(each.network))
            form = replace(each, form=", ".join(filter(None, (each.form, "compiled"))), network=network)
            if _same(form.logits(x), expected):
                return form
            problem = "its logits are others then"
        except Exception as error:
            problem = error
    warnings.warn(f"the network is not compiled: {str(problem).partition(chr(10))[0]}", stacklevel=2)
    return None


def _tried(make: Callable[..., Inference | None], *given: object) -> Inference | None:
    """What is made, if it can be made."""
    with suppress(Exception):
        return make(*given)
    return None


def _has(form: Inference, x: Tensor, expected: Tensor) -> bool:
    """Whether a form has these logits, and can be called at all."""
    with suppress(Exception):
        return _same(form.logits(x), expected)
    return False


def _in_place(made: Inference) -> Inference | None:
    network = in_place(made.network)
    return replace(made, form=f"{made.form}, in place", network=network) if network else None


def _folded_channels_last(model: nn.Module, x: Tensor) -> Inference | None:
    if x.ndim != 4 or x.is_cuda or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return None
    folded = _folded(model, x)
    network = (folded.network if folded else copy_of(model)).to(memory_format=torch.channels_last)
    return Inference("folded, channels last" if folded else "channels last", network, torch.channels_last)


def _folded(model: nn.Module, x: Tensor) -> Inference | None:
    pairs = foldable(model, x)
    if not pairs:
        return None
    network = copy_of(model)
    for layer, norm in pairs:
        inner, outer = network.get_submodule(layer), network.get_submodule(norm)
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(inner, nn.Linear) else fuse_conv_bn_eval
        _replace(network, layer, fuse(inner, outer))
        _replace(network, norm, nn.Identity())
    return Inference("folded", network)


def foldable(model: nn.Module, x: Float[Tensor, "n ..."]) -> list[tuple[str, str]]:
    """Names of the layers and batch norms of which the second takes what the first returns, and nothing else does."""
    names = {module: name for name, module in model.named_modules() if _is_plain(module)}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    handles = [module.register_forward_hook(note) for module in names]
    uses = _Uses()
    try:
        with torch.no_grad(), uses:
            model(x[:1].clone())
    finally:
        for handle in handles:
            handle.remove()
    once = Counter(module for module, _, _ in calls)
    made_by = {id(output): module for module, _, output in calls if not isinstance(module, _BatchNorm)}
    pairs = []
    for norm, taken, _ in calls:
        layer = made_by.get(id(taken))
        alone = layer and once[norm] == once[layer] == 1 and uses.of[id(taken)] == 1
        if isinstance(norm, _BatchNorm) and layer and alone and _fits(layer, norm):
            pairs.append((names[layer], names[norm]))
    return pairs


def _is_plain(module: nn.Module) -> bool:
    """Whether it computes what its class says: no relative with a forward pass of its own, no hooks, no statistics."""
    if has_hooks(module):
        return False
    if isinstance(module, NORMS):
        return type(module) in NORMS and module.running_mean is not None and not module.training
    return type(module) in (*CONVOLUTIONS, nn.Linear)


def _fits(layer: nn.Module, norm: _BatchNorm) -> bool:
    # A batch norm of a linear layer's [n, t, c] is over its second axis, which are not the layer's outputs.
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return bool(size == norm.num_features)


@dataclass
class _Uses(TorchFunctionMode):
    """While active, counts how many operators took each tensor, and keeps them, so that no two have one id."""

    of: Counter[int] = field(default_factory=Counter)
    kept: list[Tensor] = field(default_factory=list)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        # What asks for a shape takes nothing.
        if tensors_in(result):
            for tensor in tensors_in((args, tuple((kwargs or {}).values()))):
                self.of[id(tensor)] += 1
                self.kept.append(tensor)
        return result


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, module)


def _same(logits: Tensor, expected: Tensor) -> bool:
    if logits.shape != expected.shape or not torch.equal(logits.argmax(1), expected.argmax(1)):
        return False
    allowed = ROUNDING * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return float((logits - expected).abs().max()) <= allowed
