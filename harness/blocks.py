"""The blocks of a network in execution order: what a cascade randomizes one after the other."""

from collections import defaultdict
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from harness.case import Block

NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def blocks_of(model: nn.Module, x: Float[Tensor, "n ..."]) -> tuple[Block, ...]:
    """The blocks of `model` in the order in which it first uses them on `x`; together they hold every parameter.

    A block is a module with parameters of its own. A normalization joins the block before it. Parameters of a
    module that is never called (the projection inside an attention layer) join the nearest module around it that
    is; parameters that a network holds itself (a class token) form the block `parameters`.
    """
    order = _execution_order(model, x)
    owners: dict[str, list[list[str]]] = defaultdict(lambda: [[], []])
    for kind, named in enumerate((model.named_parameters(), model.named_buffers())):
        for name, _ in named:
            owners[_called_owner(name.rpartition(".")[0], order)][kind].append(name)

    blocks: list[tuple[str, list[str], list[str]]] = []
    modules = dict(model.named_modules())
    for owner in sorted(owners, key=order.__getitem__):
        parameters, buffers = owners[owner]
        joins = isinstance(modules[owner], NORMALIZATIONS) or not parameters
        if joins and blocks:
            blocks[-1][1].extend(parameters)
            blocks[-1][2].extend(buffers)
        elif parameters:
            blocks.append((owner, parameters, buffers))
    return tuple(Block(_block_name(o, set(p), model), tuple(p), tuple(b)) for o, p, b in blocks)


def _block_name(owner: str, parameters: set[str], model: nn.Module) -> str:
    """The outermost module that holds these parameters and no others, such as the `Sequential` around a layer."""
    name, inner = owner, owner
    while inner:
        inner = inner.rpartition(".")[0]
        held = {f"{inner}.{p}" for p, _ in model.get_submodule(inner).named_parameters()} if inner else set()
        name = inner if held == parameters else name
    return name or "parameters"


def _called_owner(name: str, order: dict[str, int]) -> str:
    while name not in order:
        name = name.rpartition(".")[0]
    return name


def _execution_order(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Module name -> when its first call begins. The network itself, "", begins first."""
    order: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(partial(_begins, order, name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return order


def _begins(order: dict[str, int], name: str, _module: nn.Module, _inputs: object) -> None:
    order.setdefault(name, len(order))
