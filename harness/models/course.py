"""The course of a training: states of a network on the way, whatever recipe trains it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

MOST = 8
"""States on the way that are kept at any time."""

SEPARATOR = "|"

State = dict[str, Tensor]


@dataclass
class Course:
    """States after evenly many steps of the optimizers that train a network.

    How many steps there will be is not known. Whenever there are too many states every other one is dropped, and
    from then on twice as many steps lie between two, so that 4 to 8 are left between the start and the end.

    Attributes:
        interval: how many steps lie between two states.
        steps: how many were taken.
        states: by the steps that were taken.
    """

    interval: int = 1
    steps: int = 0
    states: dict[int, State] = field(default_factory=dict)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """While active, steps of any optimizer that holds parameters of the network are noticed."""
        own = {id(parameter) for parameter in network.parameters()}
        self.states[0] = state_of(network)

        def stepped(optimizer: Optimizer, _arguments: Any, _options: Any) -> None:
            if any(id(each) in own for group in optimizer.param_groups for each in group["params"]):
                self._note(network)

        handle = register_optimizer_step_post_hook(stepped)
        try:
            yield
        finally:
            handle.remove()

    def packed(self, end: nn.Module) -> State:
        """All states as one, with the fraction of the steps in each name, the last one of the trained network.

        A recipe without an optimizer of torch, or one that trains a copy, has a start and an end.
        """
        steps = max(self.steps, 1)
        states = {step / steps: state for step, state in self.states.items() if step < steps} | {1.0: state_of(end)}
        return {f"{at!r}{SEPARATOR}{name}": tensor for at, state in states.items() for name, tensor in state.items()}

    def _note(self, network: nn.Module) -> None:
        self.steps += 1
        if self.steps % self.interval == 0:
            self.states[self.steps] = state_of(network)
        if len(self.states) > MOST + 1:
            self.interval *= 2
            self.states = {step: state for step, state in self.states.items() if step % self.interval == 0}


def unpacked(packed: State) -> list[tuple[float, State]]:
    """The fractions of the training, in order, and the state at each: what `Course.packed` has put together."""
    states: dict[float, State] = {}
    for key, tensor in packed.items():
        at, _, name = key.partition(SEPARATOR)
        states.setdefault(float(at), {})[name] = tensor
    return sorted(states.items(), key=lambda each: each[0])


def state_of(network: nn.Module) -> State:
    """Its state, each tensor by itself: the file format has no room for two that share memory."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
