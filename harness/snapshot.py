"""What a model is at one moment, to notice what somebody left behind in it and to undo that."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

HELD = ("_parameters", "_buffers", "_modules")
"""What a module holds by name; of other attributes a network may change what it likes in each pass."""

NAMED = 3


class Snapshot:
    """Hooks, submodules, attributes, weights, flags and gradients of a model. Holds a copy of the weights."""

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        own = [module.__dict__ for module in modules.values()]
        self._tables: list[dict[str, Any]] = [
            *own,
            *(table for each in own for table in each.values() if isinstance(table, dict)),
        ]
        self._contents = [dict(table) for table in self._tables]
        self._watched = [
            (name, kind, table, dict(table))
            for name, module in modules.items()
            for kind, table in vars(module).items()
            if isinstance(table, dict) and (kind in HELD or kind.endswith("hooks"))
        ]
        self._modes = {name: (module, module.training) for name, module in modules.items()}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._tensors = {
            name: (tensor, tensor.data, tensor.data.clone(), tensor.requires_grad, tensor.grad)
            for name, tensor in tensors.items()
        }

    def changes(self) -> str:
        """What is not as it was, in words; empty if nothing is."""
        found = list(dict.fromkeys(self._found()))
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return ", ".join(found[:NAMED]) + more

    def restore(self) -> None:
        """Make everything as it was."""
        for table, contents in zip(self._tables, self._contents, strict=True):
            # In place, because handles of hooks refer to the table.
            table.clear()
            table.update(contents)
        for tensor, storage, values, requires_grad, gradient in self._tensors.values():
            tensor.data = storage
            storage.copy_(values)
            tensor.requires_grad_(requires_grad)
            tensor.grad = gradient

    def _found(self) -> Iterator[str]:
        for name, kind, table, before in self._watched:
            if table.keys() != before.keys() or any(table[key] is not before[key] for key in table):
                yield f"{kind.strip('_').replace('_', ' ')} of {name or 'the model'}"
        for name, (module, training) in self._modes.items():
            if module.training != training:
                yield f"the mode of {name or 'the model'}"
        for name, (tensor, storage, values, requires_grad, gradient) in self._tensors.items():
            if tensor.data_ptr() != storage.data_ptr() or not _same(tensor.data, values):
                yield f"the values of {name}"
            if tensor.requires_grad != requires_grad:
                yield f"requires_grad of {name}"
            if tensor.grad is not gradient:
                yield f"the gradient of {name}"


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def copy_of(model: nn.Module) -> nn.Module:
    """A network of its own, with copies of everything.

    `copy.deepcopy` refuses tensors with a graph, as a weight norm leaves them in its module until it is called again.
    """
    tensors = [each for module in model.modules() for each in vars(module).values() if isinstance(each, Tensor)]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in tensors if not each.is_leaf})
