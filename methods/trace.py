"""One run of a network and what led to its logits: what each operator and each module returned.

Of those tensors a *bottleneck* tells all: it lies on every path from the input to the logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.methods.axes import Axed, Axes
from harness.methods.propagation import nodes_between
from harness.tensors import tensors_in
from harness.types import NotApplicableError

_NORMALIZATIONS = ("layer_norm", "rms_norm", "group_norm")
_LEARNT = frozenset(
    """
    conv1d conv2d conv_transpose1d conv_transpose2d linear matmul mm bmm addmm einsum batch_norm layer_norm
    multi_head_attention_forward
""".split()
)
"""Before one of them the network has learnt nothing about the input, and has no layer."""


@dataclass(eq=False)
class Seen:
    """A tensor that depends on the input, as an operator returned it.

    Attributes:
        tensor: itself.
        node: of the autograd graph, which made it.
        version: how often it had been written into.
        name: the outermost module that returned it, else the operator.
        axes: which of its axes holds channels, if that is known.
        normalized: what it is the normalization of, if it is one.
    """

    tensor: Tensor
    node: Any
    version: int
    name: str
    axes: Axes | None
    normalized: Tensor | None = None


@dataclass
class Trace(TorchFunctionMode):
    """While active, remembers what every operator and every hooked module returned that depends on the input.

    Attributes:
        x: the input.
        keep: a module whose output later operators in place must not reach.
        seen: in the order in which they were made.
        of_module: module name -> what it returned last.
        linear: input, weight and output of the last linear layer.
    """

    x: Tensor
    keep: str = ""
    seen: list[Seen] = field(default_factory=list)
    of_module: dict[str, Seen] = field(default_factory=dict)
    linear: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self._places: dict[int, int] = {}
        self._running: list[tuple[str, int]] = []
        self._learnt = False
        self._axed = Axed(self.x)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and remember what it returned."""
        output = func(*args, **(kwargs or {}))
        name = func.__name__.strip("_")
        self._learnt |= name in _LEARNT
        results = args[0] if name == "setitem" else output
        carriers = [tensor for tensor in tensors_in(results) if tensor.grad_fn is not None]
        new = [tensor for tensor in carriers if not self._handed_on(tensor)]
        for tensor in new:
            self._axed.follow(name, args, tensor)
        # Of several results one may carry everything, such as the values of a maximum beside their places.
        if len(carriers) == 1 and new:
            where = self._running[-1][0] if self._running else ""
            self._note(new[0], f"{name} in {where or 'the network'}", args[0] if name in _NORMALIZATIONS else None)
            if name == "linear" and len(args) > 1:
                self.linear = (args[0], args[1], new[0])
        return output

    def _note(self, tensor: Tensor, name: str, normalized: Tensor | None = None) -> None:
        if self._learnt and tensor.ndim > 1 and tensor.grad_fn is not None:
            self._places[id(tensor)] = len(self.seen)
            axes = self._axed.of(tensor)
            self.seen.append(Seen(tensor, tensor.grad_fn, tensor._version, name, axes, normalized))

    def _place(self, tensor: Tensor) -> int:
        """Where a tensor was last seen, -1 if it was not."""
        place = self._places.get(id(tensor), -1)
        return place if place >= 0 and self.seen[place].tensor is tensor else -1

    def _handed_on(self, tensor: Tensor) -> bool:
        place = self._place(tensor)
        return place >= 0 and self.seen[place].version == tensor._version

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Module names for what modules return."""
        handles: list[Any] = []

        def enter(name: str) -> Callable[..., None]:
            return lambda _module, _inputs: self._running.append((name, len(self.seen)))

        def leave(name: str) -> Callable[..., Any]:
            return lambda _module, inputs, output: self._leave(name, inputs, output)

        # Scripted modules take no hooks; what they return is read by whatever follows.
        named = {name: each for name, each in model.named_modules() if not isinstance(each, torch.jit.ScriptModule)}
        try:
            for name, module in named.items():
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, name: str, inputs: tuple[Any, ...], output: object) -> object:
        _, began = self._running.pop()
        if not isinstance(output, Tensor) or not name:
            return None
        if self._place(output) < 0:
            # No operator was seen to make it, but a Function of the user's own.
            self._learnt = True
            self._axed.follow(name, inputs, output)
            self._note(output, name)
        place = self._place(output)
        if place >= 0:
            self.of_module[name] = self.seen[place]
            if place >= began:
                self.seen[place].name = name
        # What follows may be in place; it then writes into the copy.
        return output.clone() if name == self.keep else None


@dataclass(frozen=True)
class Traced:
    """One run of a network: its target logits and what led to them.

    Attributes:
        trace: what operators and modules returned.
        score: the sum of the target logits, with its graph.
        logits: all of them.
        leaf: the samples.
        between: the nodes of the graph between score and leaf.
        modules: the names of all modules.
    """

    trace: Trace
    score: Float[Tensor, ""]
    logits: Float[Tensor, "n classes"]
    leaf: Float[Tensor, "n ..."]
    between: set[Any]
    modules: tuple[str, ...]

    def gradient(self, seen: Seen) -> Tensor:
        """Of the target logits, by something on the way."""
        (gradient,) = torch.autograd.grad(self.score, seen.tensor, retain_graph=True)
        return gradient

    @cached_property
    def bottlenecks(self) -> list[Seen]:
        """What lies on every path from the input to the logits, and was not overwritten since."""
        nodes = _bottlenecks(self.score.grad_fn, self.between)
        return [s for s in self.trace.seen if s.node in nodes and s.version == s.tensor._version]

    def read(self, seen: Seen) -> Bool[Tensor, " tokens"]:
        """Which of its tokens what follows reads: seen where positions end, so that no weight can hide it."""
        at = self.bottlenecks.index(seen)
        n, behind = len(self.leaf), [each.tensor for each in self.bottlenecks[at:]]
        end = next((tensor for tensor in behind if tensor.ndim == 2 and len(tensor) == n), self.logits)
        probe = torch.arange(1, end.numel() + 1, device=end.device).sqrt().cos().to(end.dtype).view_as(end)
        (gradient,) = torch.autograd.grad(end, seen.tensor, probe, retain_graph=True)
        return (gradient != 0).any(2).any(0)


def traced(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    keep: str = "",
    inside: Callable[[Tensor], Any] | None = None,
) -> Traced:
    """Run the network once on the samples.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        keep: a module whose output later operators in place must not reach.
        inside: what is to be entered, with the input, for as long as the network runs.

    Raises:
        NotApplicableError: the logits do not depend on the input.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        entered = leaf.clone()
        trace = Trace(entered, keep)
        with trace.hooked(model), trace, inside(entered) if inside else nullcontext():
            logits = model(entered)
        score = logits.gather(1, target[:, None]).sum()
    between = nodes_between(score, leaf)
    if not between:
        raise NotApplicableError("no gradient reaches the input: something in the model detaches it")
    return Traced(trace, score, logits, leaf, between, tuple(dict(model.named_modules(remove_duplicate=False))))


def _bottlenecks(output: Any, between: set[Any]) -> set[Any]:
    """The nodes on every path: in an order from the output to the input, those that no edge jumps over."""
    parents = {node: [p for p, _ in node.next_functions if p in between] for node in between}
    waiting = dict.fromkeys(between, 0)
    for node in between:
        for parent in parents[node]:
            waiting[parent] += 1
    order, ready = [], [output]
    while ready:
        node = ready.pop()
        order.append(node)
        for parent in parents[node]:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    place = {node: index for index, node in enumerate(order)}
    found, furthest = set(), 0
    for index, node in enumerate(order):
        if furthest <= index:
            found.add(node)
        furthest = max(furthest, *(place[parent] for parent in parents[node]), 0)
    return found
