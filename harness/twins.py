"""Twins: randomly initialized networks of the same architecture."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from harness.random import seed_of, torch_seeded
from harness.snapshot import copy_of


def twin_of(model: nn.Module, build: Callable[[], nn.Module] | None, *key: object) -> nn.Module:
    """A network like `model` with parameters drawn anew; a function of the key and the architecture alone.

    From the constructor where there is one. Otherwise each module of a copy re-draws its parameters by its
    own `reset_parameters`; parameters that none draws are shuffled within the tensor. Layers that a constructor
    starts with a weight of zeros, as some start the head of a transformer, are re-drawn too: behind them a new network
    is constant and has no maps.
    """
    with torch_seeded("twin", *key), torch.device("cpu"):
        twin = build() if build else _redrawn(model)[0]
        for reset in _silent(twin).values():
            reset()
    reference = next(iter(model.parameters()), None)
    twin = twin.to(reference) if reference is not None else twin
    return twin.eval()


def twin_note(model: nn.Module, build: Callable[[], nn.Module] | None) -> str:
    """How twins of this model come about, for the record."""
    if build:
        with torch_seeded("note"), torch.device("cpu"):
            silent = ", ".join(_silent(build()))
        return "twins by constructor" + (f"; zero weights by reset_parameters: {silent}" if silent else "")
    with torch_seeded("note"), torch.device("cpu"):
        shuffled = _redrawn(model)[1]
    names = ", ".join(name or "the network's own" for name in shuffled)
    return "twins by reset_parameters" + (f"; shuffled within the tensor: {names}" if shuffled else "")


def _silent(model: nn.Module) -> dict[str, Callable[[], None]]:
    """The layers whose weight is zero everywhere, and how each draws a new one."""
    found = {}
    for name, module in model.named_modules():
        weight, reset = getattr(module, "weight", None), _reset(module)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and reset and not weight.any():
            found[name] = reset
    return found


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _reset(module: nn.Module) -> Callable[[], None] | None:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _redrawn(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network with parameters drawn by its modules, and the names of those with parameters that were shuffled."""
    # On the CPU, where the generator is the same on every machine.
    twin, shuffled = copy_of(model).cpu(), []
    for name, module in twin.named_modules():
        if isinstance(module, _NormBase):
            module.reset_running_stats()
        own, reset = _own(module), _reset(module)
        left = own
        if own and reset:
            before = [parameter.detach().clone() for parameter in own]
            reset()
            # A weight under a weight norm or a spectral norm is no parameter: what it is made of is, and not drawn.
            left = [parameter for parameter, old in zip(own, before, strict=True) if _as_it_was(parameter, old)]
        shuffled += [name] if left else []
        for parameter in left:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.data.copy_(parameter.data.flatten()[order].view_as(parameter))
    return twin, shuffled


def _as_it_was(parameter: Tensor, old: Tensor) -> bool:
    return torch.equal(parameter, old) and bool((old != old.flatten()[:1]).any())


def constructor_fault(model: nn.Module, build: Callable[[], nn.Module]) -> str:
    """Why a constructor cannot make twins of this model; empty if it can.

    It must make this architecture, with weights drawn by torch's generator and no other.
    """
    first, again, other = (twin_of(model, build, "check", key) for key in (0, 0, 1))
    shapes = [{name: tuple(p.shape) for name, p in network.named_parameters()} for network in (model, first)]
    if shapes[0] != shapes[1]:
        wrong = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        return f"it makes another network than the model: they differ in parameter {wrong!r}"
    drawn = [[p for p in network.parameters() if p.unique().numel() > 1] for network in (first, again, other)]
    if not all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True)):
        return "it draws weights by another generator than torch's on the CPU: twins cannot be reproduced"
    if drawn[0] and all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True)):
        return "it returns the same weights each time: it must not seed or load anything itself"
    return ""


def architecture_of(model: nn.Module) -> int:
    """A hash of names and shapes: networks that differ only in their weights share their twins."""
    return seed_of("architecture", [(name, tuple(p.shape)) for name, p in model.named_parameters()])
