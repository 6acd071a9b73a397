"""The interception of operators, and the proof that nothing was missed.

`Propagation` is active during a forward pass. It sees every call of an operator, whichever module made it, knows which
tensors depend on the input, and hands the call to the rule of the operator's family. A rule keeps the value and
replaces what the backward pass does. `prove_coverage` then reads the recorded autograd graph: a node between input
and output that no rule made, and that is not one of a few additive and structural ones, is refused by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from harness.methods.operators import (
    DECOMPOSED,
    FAMILIES,
    PERHAPS_NOTHING,
    STRUCTURE,
    TRANSPARENT,
    VALUE_FREE,
    Call,
    opened,
    tensors_in,
)
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
    def settle(self, propagation: "Propagation", output: Tensor) -> None:
        """Give `output` its rule now."""


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
        self.pending, self.gates, self.raw, self._dependent = (WeakTensorKeyDictionary() for _ in range(4))
        self._dependent[leaf] = True
        self._made: dict[Any, tuple[str, bool]] = {}
        self._opening: list[Callable[..., Any]] = []

    def depends(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the input, differentiably or not. What nobody saw being made does."""
        known = self._dependent.get(tensor)
        return tensor.grad_fn is not None if known is None else bool(known)

    def settled(self, call: Call) -> Call:
        """The call with every linear operator before it ruled, and in the units that all rules but the first expect."""
        for tensor in call.tensors():
            if linear := self.pending.pop(tensor, None):
                linear.settle(self, tensor)
        if not any(tensor in self.raw for tensor in call.tensors()):
            return call
        return call.mapped(lambda tensor: Converted.apply(tensor) if tensor in self.raw else tensor)

    def cover(self, output: Any, stop: Iterable[Any], name: str, covered: bool = True) -> Any:
        """Note of the nodes from `output` back to `stop` who made them, and whether a rule answers for them."""
        stop, stack = set(stop), [tensor.grad_fn for tensor in tensors_in(output)]
        while stack:
            node = stack.pop()
            if node is not None and node not in stop and node not in self._made and not _is_ruled(node):
                self._made[node] = (name, covered)
                stack.extend(parent for parent, _ in node.next_functions)
        return output

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand a call to the rule of its family."""
        kwargs = kwargs or {}
        if isinstance(func, FunctionType) and func not in self._opening:
            self._opening.append(func)
            try:
                with self:
                    return opened(func)(*args, **kwargs)
            finally:
                self._opening.remove(func)
        call = Call.of(func, args, kwargs)
        if call.name in VALUE_FREE or not any(map(self.depends, call.tensors())):
            return self._noted(func(*args, **kwargs), False)
        if not torch.is_grad_enabled():
            # Inside a part that the model itself keeps out of the graph, such as a Function of its own.
            return self._noted(func(*args, **kwargs), True)
        if call.name in PERHAPS_NOTHING:
            answer = func(*args, **kwargs)
            if answer is args[0] or not any(True for _ in tensors_in(answer)):
                return answer
        if call.name in DECOMPOSED:
            with self:
                return DECOMPOSED[call.name](*args, **kwargs)
        return self._noted(self._run(call), True)

    def _run(self, call: Call) -> Any:
        first = call.args[0] if call.args else None
        if call.name in STRUCTURE and isinstance(first, Tensor) and first in self.raw:
            output = call.run()
            if isinstance(output, Tensor):
                self.raw[output] = tuple(call.on(bound) for bound in self.raw[first])
                return output
        rule = self.rules.get(FAMILIES.get(call.name, ""))
        output = rule(self, call) if rule else None
        if output is None:
            output = self.run(call, covered=False)
        elif call.inplace and output is not first:
            output = self._write(first, output, call.name)
        if call.name in STRUCTURE and isinstance(first, Tensor) and first in self.gates:
            for each in tensors_in(output):
                self.gates[each] = True
        return output

    def run(self, call: Call, covered: bool) -> Any:
        """The operator with its own backward pass: right by a rule, or refused where it does more than sum and move."""
        first, call = call.args[0] if call.args else None, self.settled(call)
        before = _nodes(call.tensors())
        if call.name == "setitem" and call.args[0] is first:
            call.run()
            self._noted(first, True)
            # The assignment hides inside a node of the whole tensor, and is no more than a copy.
            return self.cover(first, before, call.name, not any(self.depends(t) for t in tensors_in(call.args[1])))
        if call.inplace and (call.args[0] is not first or first._is_view()):
            output = self.cover(call.on(call.args[0]), before, call.name, covered)
            return self._write(first, output, call.name)
        return self.cover(call.run(), before, call.name, covered)

    def _write(self, overwritten: Tensor, output: Tensor, name: str) -> Tensor:
        """Every alias of what is written to in place must see the result, and what is known of it."""
        known = [(notes, notes.get(output)) for notes in (self.gates, self.raw)]
        before = _nodes([overwritten, output])
        # Without the detachment, zeros would flow on into what was there before; a view cannot be detached.
        written = (overwritten if overwritten._is_view() else overwritten.detach_()).copy_(output)
        self.pending.pop(written, None)
        for notes, note in known:
            notes.pop(written, None)
            if note is not None:
                notes[written] = note
        return self.cover(written, before, name)

    def _noted(self, output: Any, depends: bool) -> Any:
        for tensor in tensors_in(output):
            if depends or tensor.grad_fn is not None:
                self._dependent[tensor] = depends
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
        NotApplicableError: an operator has no rule; the message names the method and the operators.
    """
    strangers = sorted({stranger for node in _nodes_between(output, leaf) if (stranger := propagation.stranger(node))})
    if strangers:
        raise NotApplicableError(
            f"{name} has no rule for: {', '.join(strangers)} (operators that this model puts between input and output)"
        )


def _nodes(tensors: Iterable[Tensor]) -> list[Any]:
    """The graph nodes of the tensors and of what they are views of."""
    return [each.grad_fn for tensor in tensors for each in (tensor, tensor._base) if each is not None]


def _is_ruled(node: Any) -> bool:
    return issubclass(getattr(node, "_forward_cls", object), Ruled)


def _nodes_between(output: Tensor, leaf: Tensor) -> set[Any]:
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
