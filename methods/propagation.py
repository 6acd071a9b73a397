"""The interception of operators, and the proof that nothing was missed.

`Propagation` is active during a forward pass. It sees every call of an operator, whichever module made it, knows which
tensors depend on the input, and hands the call to the rule of the operator's family. A rule keeps the value and
replaces what the backward pass does. `prove_coverage` then reads the recorded autograd graph: a node between input
and output that no rule made, and that is not one of a few additive and structural ones, is refused by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from harness.methods.operators import (
    ATOMIC,
    COPIES,
    DECOMPOSED,
    FAMILIES,
    HOOKING,
    PERHAPS_NOTHING,
    STRUCTURE,
    TRANSPARENT,
    VALUE_FREE,
    Call,
    opened,
)
from harness.tensors import tensors_in
from harness.types import NotApplicableError

Rule = Callable[["Propagation", Call], Any]
"""Runs the call with another backward pass; returns None where it has no answer, and the call is then refused."""


class Ruled(torch.autograd.Function):
    """What the backward passes of rules derive from, so that the proof of coverage knows them."""


class Converted(Ruled):
    """The same tensor, but where the gradient carries relevance behind it, it carries relevance per value before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A copy."""
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Relevance is value times gradient."""
        return ctx.saved_tensors[0] * gradients[0]


class Pending(ABC):
    """A linear operator whose rule waits for what comes next."""

    @abstractmethod
    def settle(self, propagation: "Propagation", output: Tensor, inplace: bool) -> Tensor:
        """`output` with its rule: the same object, or a copy for those who only read."""


class Notes:
    """What is known of tensors, for as long as nobody writes into them unseen."""

    def __init__(self) -> None:
        self._notes = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor) -> Any:
        """The note; None where there is none, or no longer."""
        note, version = self._notes.get(tensor, (None, 0))
        return note if note is not None and version == tensor._version else None

    def __setitem__(self, tensor: Tensor, note: Any) -> None:
        self._notes[tensor] = (note, tensor._version)

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and self.get(tensor) is not None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(list(self._notes))


class Propagation(TorchFunctionMode):
    """While active, every operator between `leaf` and the output goes by the rule of its family.

    Attributes:
        rules: family -> rule; an operator of a family without one is refused if it lies on the path.
        pending: outputs of linear operators whose rule waits, because a batch norm is folded into them and an
            activation takes its relevance back in one step. Whatever else reads them settles them first.
        gates: tensors that scale others and take no relevance themselves.
        raw: where the input has a rule of its own, the tensors that still are the input, only moved, with their lowest
            and highest possible values. They carry relevance, all others relevance divided by their value.
    """

    def __init__(self, rules: Mapping[str, Rule], leaf: Tensor) -> None:
        super().__init__()
        self.rules = rules
        self.pending, self.gates, self.raw, self._constant = (Notes() for _ in range(4))
        self._dependent = WeakTensorKeyDictionary()
        self._dependent[leaf] = True
        self._entry = leaf.grad_fn
        self._made: dict[Any, tuple[str, bool]] = {}
        self._opening: list[Callable[..., Any]] = []
        self._hooks = _saving_hooks()

    def depends(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the input, differentiably or not."""
        if tensor in self._dependent:
            return True
        if tensor.grad_fn is None or tensor in self._constant:
            return False
        return self._entry in _ancestors(tensor.grad_fn)

    def settled(self, call: Call) -> Call:
        """The call with every linear operator before it ruled, and in the units that all rules but the first expect."""
        if not any(tensor in self.pending or tensor in self.raw for tensor in call.tensors):
            return call
        # What shares memory with the output of a linear operator must share its history too.
        shares = call.inplace or call.name == "setitem" or call.name in STRUCTURE | HOOKING
        return call.mapped(lambda tensor: self._ready(tensor, shares))

    def _ready(self, tensor: Tensor, shares: bool) -> Tensor:
        if (linear := self.pending.get(tensor)) is not None:
            tensor = linear.settle(self, tensor, shares)
        elif tensor in self.raw:
            tensor = Converted.apply(tensor)
        else:
            return tensor
        self._dependent[tensor] = True
        return tensor

    def cover(self, output: Any, stop: Iterable[Any], name: str, covered: bool = True) -> Any:
        """Note of the nodes from `output` back to `stop` who made them, and whether a rule answers for them."""
        seen: set[Any] = {None, *stop}
        stack: list[Any] = [tensor.grad_fn for tensor in tensors_in(output)]
        while stack:
            node = stack.pop()
            if node not in seen and not _is_ruled(node):
                seen.add(node)
                if covered or node not in self._made:
                    self._made[node] = (name, covered)
                stack.extend(parent for parent, _ in node.next_functions)
        return output

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand a call to the rule of its family.

        Raises:
            NotApplicableError: the model uses the backward pass in its own forward pass.
        """
        kwargs = kwargs or {}
        if func in _GRADIENTS or _saving_hooks() is not self._hooks:
            what = "takes a gradient in" if func in _GRADIENTS else "recomputes or moves what it saves for"
            raise NotApplicableError(f"the model {what} its own pass, which the rules would change")
        if isinstance(func, FunctionType) and func not in self._opening and func.__name__ not in ATOMIC:
            self._opening.append(func)
            try:
                with self:
                    return opened(func)(*args, **kwargs)
            finally:
                self._opening.remove(func)
        call = Call.of(func, args, kwargs)
        if call.name in VALUE_FREE or not any(map(self.depends, call.tensors)):
            return self._noted(func(*args, **kwargs), False)
        if not torch.is_grad_enabled():
            # Inside a part that the model itself keeps out of the graph, such as a Function of its own.
            return self._noted(func(*args, **kwargs), True)
        if call.name in PERHAPS_NOTHING:
            answer = func(*args, **kwargs)
            if answer is args[0] or not tensors_in(answer):
                return answer
        if call.name in DECOMPOSED:
            with self:
                output = DECOMPOSED[call.name](*args, **kwargs)
            return self._noted(self._write(args[0], output, call.name) if call.inplace else output, True)
        return self._noted(self._run(call), True)

    def _run(self, call: Call) -> Any:
        first: Any = call.args[0] if call.args else None
        moved = self._moved(call)
        if moved is not None:
            return moved
        rule = self.rules.get(FAMILIES.get(call.name, ""))
        output = rule(self, call) if rule else None
        if output is None:
            output = self.run(call, covered=False)
        elif call.inplace and output is not first:
            output = self._write(first, output, call.name)
        if call.name in STRUCTURE and first in self.gates:
            for each in tensors_in(output):
                self.gates[each] = True
        return output

    def _moved(self, call: Call) -> Any:
        """The input, moved, with its bounds; the output of a linear operator, copied."""
        first: Any = call.args[0] if call.args else None
        dependent = [tensor for tensor in call.tensors if self.depends(tensor)]
        if call.name in COPIES and first in self.pending:
            linear, output = self.pending.get(first), call.run()
            if output.dtype == first.dtype:
                self.pending[output] = linear
                return output
        if call.inplace or call.name not in STRUCTURE or not all(tensor in self.raw for tensor in dependent):
            return None
        output = self.cover(call.run(), _nodes(dependent), call.name)
        ends = [self._end(call, end) for end in range(len(self.raw.get(dependent[0])))]
        for place, each in enumerate(tensors_in(output)):
            self.raw[each] = tuple(tensors_in(end)[place] for end in ends)
        return output

    def _end(self, call: Call, end: int) -> Any:
        return call.mapped(lambda tensor: self.raw.get(tensor)[end] if tensor in self.raw else tensor).run()

    def run(self, call: Call, covered: bool) -> Any:
        """The operator with its own backward pass: right by a rule, or refused where it does more than sum and move.

        Raises:
            NotApplicableError: a part of the input is overwritten where the input has a rule of its own.
        """
        first: Any = call.args[0] if call.args else None
        if call.name == "setitem" and first in self.raw:
            raise NotApplicableError(PARTS)
        call = self.settled(call)
        before = _nodes(call.tensors)
        if call.name == "setitem":
            call.run()
            # The assignment hides inside a node of the whole tensor, and is no more than a copy.
            covered = not any(self.depends(tensor) for tensor in tensors_in(call.args[1]))
            return self._noted(self.cover(first, before, call.name, covered), True)
        in_sight = call.args[0] is first and not (isinstance(first, Tensor) and first._is_view())
        if call.inplace and not in_sight and call.name not in STRUCTURE:
            output = self.cover(call.on(call.args[0]), before, call.name, covered)
            return self._write(first, output, call.name)
        return self.cover(call.run(), before, call.name, covered)

    def _write(self, overwritten: Tensor, output: Tensor, name: str) -> Tensor:
        """Every alias of what is written to in place must see the result, and what is known of it.

        Raises:
            NotApplicableError: a part of the input is overwritten where the input has a rule of its own.
        """
        if overwritten._is_view() and any(_share(overwritten, raw) for raw in self.raw if raw is not overwritten):
            raise NotApplicableError(PARTS)
        known = [(notes, notes.get(output)) for notes in (self.pending, self.gates, self.raw)]
        before = _nodes([overwritten, output])
        # Without the detachment, zeros would flow on into what was there before; a view cannot be detached.
        written = (overwritten if overwritten._is_view() else overwritten.detach_()).copy_(output)
        for notes, note in known:
            if note is not None:
                notes[written] = note
        return self.cover(written, before, name)

    def _noted(self, output: Any, depends: bool) -> Any:
        for tensor in tensors_in(output):
            if depends:
                self._dependent[tensor] = True
            elif tensor.grad_fn is not None:
                self._constant[tensor] = True
        return output

    def stranger(self, node: Any) -> str:
        """The name of an operator that neither a rule nor its own backward pass answers for, else nothing."""
        name = str(node.name().rpartition("::")[2])
        maker, covered = self._made.get(node, ("", False))
        if covered or _is_ruled(node) or name in TRANSPARENT:
            return ""
        return f"{maker} ({name})" if maker else name


def prove_coverage(
    output: Float[Tensor, " n"], leaf: Float[Tensor, "n ..."], propagation: Propagation, name: str
) -> None:
    """Check that between `leaf` and `output` there is nothing but what rules made, sums and structure.

    What the graph cannot show stays unseen: a rectifier made of a maximum pool over a tensor stacked with zeros
    is a maximum pool.

    Raises:
        NotApplicableError: an operator has no rule; the message names the method and the operators. Or nothing leads
            to the input at all.
    """
    nodes = nodes_between(output, leaf)
    if not nodes:
        raise NotApplicableError(f"{name}: no gradient reaches the input: something in the model detaches it")
    strangers = sorted({stranger for node in nodes if (stranger := propagation.stranger(node))})
    if strangers:
        raise NotApplicableError(
            f"{name} has no rule for: {', '.join(strangers)}, which the model puts between input and output"
        )


PARTS = "the model writes into parts of its input, which needs a rule of its own"
_GRADIENTS = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


def _saving_hooks() -> Any:
    """The hooks that something, such as a checkpoint, has put on all tensors that are saved for a backward pass."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _ancestors(node: Any) -> set[Any]:
    """A graph node and all nodes that its backward pass may reach."""
    found, stack = {node}, [node]
    while stack:
        for parent, _ in stack.pop().next_functions:
            if parent is not None and parent not in found:
                found.add(parent)
                stack.append(parent)
    return found


def _nodes(tensors: Iterable[Tensor]) -> list[Any]:
    """The graph nodes of the tensors and of what they are views of."""
    return [each.grad_fn for tensor in tensors for each in (tensor, tensor._base) if each is not None]


def _is_ruled(node: Any) -> bool:
    return issubclass(getattr(node, "_forward_cls", object), Ruled)


def nodes_between(output: Tensor, leaf: Tensor) -> set[Any]:
    """The autograd nodes on some path from `output` to `leaf`."""
    consumers: dict[Any, list[Any]] = {output.grad_fn: []}
    stack: list[Any] = [output.grad_fn]
    starts: list[Any] = []
    while stack:
        node = stack.pop()
        if getattr(node, "variable", None) is leaf:
            starts.append(node)
        for parent, _ in node.next_functions if node else ():
            if parent is not None:
                if parent not in consumers:
                    consumers[parent] = []
                    stack.append(parent)
                consumers[parent].append(node)
    reached, stack = set(starts), starts
    while stack:
        fresh = [node for node in consumers[stack.pop()] if node not in reached]
        reached.update(fresh)
        stack.extend(fresh)
    return reached
