"""Rectifiers and sums that write over their input, in networks whose graph can be traced."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import Tensor, nn
from torch.fx import GraphModule, Node, symbolic_trace

FRESH_MODULES = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
)
FRESH_FUNCTIONS: tuple[Callable[..., Any], ...] = (F.conv1d, F.conv2d, F.conv3d, F.linear)
"""What returns memory of its own, never its input or a view of it."""

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.SiLU, nn.Mish)
FUNCTIONS = (F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardswish, F.hardsigmoid, F.elu, F.silu, F.mish)
"""What has `inplace`."""

OTHER_SPELLINGS = (("call_function", torch.relu), ("call_method", "relu"))
SUMS = (operator.add, torch.add)


def in_place(network: nn.Module) -> nn.Module | None:
    """The same network, in which activations and sums write over an input that nothing else reads.

    That saves a fresh piece of memory for each, which costs as much as the arithmetic.

    Args:
        network: for passes without a gradient; it is not written to.

    Returns:
        None if there is nothing of the kind, or if the graph depends on values and cannot be traced.
    """
    # What checks the shapes of tensors does not know what stands for them while a graph is traced.
    checked = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        traced = symbolic_trace(network)
    except Exception:
        return None
    finally:
        config.update("jaxtyping_disable", checked)
    fresh: set[Node] = set()
    written = 0
    for node in traced.graph.nodes:
        if _returns_fresh(node, traced) or _hands_on(node, fresh, traced):
            fresh.add(node)
        elif over := next((each for each in _candidates(node, traced) if each in fresh and len(each.users) == 1), None):
            _write_over(node, over, traced)
            fresh.add(node)
            written += 1
    traced.recompile()
    return traced if written else None


def has_hooks(module: nn.Module) -> bool:
    """Whether a module may do more than its class says."""
    return any(table for kind, table in vars(module).items() if kind.endswith("hooks"))


def _is_one_of(node: Node, kinds: tuple[type[nn.Module], ...], traced: GraphModule) -> bool:
    if node.op != "call_module":
        return False
    module = traced.get_submodule(str(node.target))
    return type(module) in kinds and not has_hooks(module)


def _returns_fresh(node: Node, traced: GraphModule) -> bool:
    if node.op == "call_module":
        return _is_one_of(node, FRESH_MODULES, traced)
    return node.op == "call_function" and node.target in FRESH_FUNCTIONS


def _hands_on(node: Node, fresh: set[Node], traced: GraphModule) -> bool:
    """Whether it is what a folded batch norm left, with the only use of something fresh."""
    if not _is_one_of(node, (nn.Identity,), traced):
        return False
    return node.args[0] in fresh and len(node.all_input_nodes[0].users) == 1


def _candidates(node: Node, traced: GraphModule) -> tuple[Node, ...]:
    """What a node could write over."""
    if node.op == "call_function" and node.target in SUMS and not node.kwargs:
        return tuple(node.all_input_nodes)
    functions = (node.op, node.target) in OTHER_SPELLINGS or node.target in FUNCTIONS
    return tuple(node.all_input_nodes) if functions or _is_one_of(node, RECTIFIERS, traced) else ()


def _write_over(node: Node, over: Node, traced: GraphModule) -> None:
    if node.op == "call_module":
        module = copy.copy(traced.get_submodule(str(node.target)))
        vars(module)["inplace"] = True
        # A module may be called in several places, of which not all may write.
        name = f"{str(node.target).replace('.', '_')}_over_{over.name}"
        traced.add_submodule(name, module)
        node.target = name
    elif node.target in SUMS:
        other = next((each for each in node.args if each is not over), over)
        node.target, node.args = Tensor.add_, (over, other)
    elif (node.op, node.target) in OTHER_SPELLINGS:
        node.op, node.target = "call_function", torch.relu_
    else:
        node.kwargs = {**node.kwargs, "inplace": True}
