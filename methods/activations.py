"""The layers of a network that introspections look at, and what they return."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from harness.entries import nearest
from harness.methods.trace import Seen, traced
from harness.types import NotApplicableError

NORMALIZATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """A module by name, its place in the network from the input on, and which axis of its output holds channels."""

    name: str
    index: int
    channels: int

    def arranged(self, output: Float[Tensor, "..."]) -> Float[Tensor, "n k *axes"]:
        """What it returned, with channels as the second axis."""
        return output.movedim(self.channels, 1)


def layers_of(
    model: nn.Module, x: Float[Tensor, "n ..."], wanted: Sequence[str] = (), most: int = 8
) -> tuple[Layer, ...]:
    """The layers of these names; without names some that everything passes through, from the input to the output.

    Those are modules whose output is a bottleneck (`harness.methods.trace`). Of several without a layer of weights
    between them the last counts, behind normalization, activation and pooling.

    Args:
        model: returns logits [n, classes].
        x: some samples, of which the first serves.
        wanted: names of modules.
        most: how many at most without names: evenly spaced, the first and the last included.

    Raises:
        NotApplicableError: there is no module of that name, or it is not used, or returns no channels.
    """
    run = traced(model, x[:1], torch.zeros(1, dtype=torch.int64, device=x.device))
    place = {id(seen): position for position, seen in enumerate(run.trace.seen)}
    modules = dict(model.named_modules())
    weighty = sorted(
        place[id(seen)]
        for name, seen in run.trace.of_module.items()
        if [*modules[name].parameters(recurse=False)] and not isinstance(modules[name], NORMALIZATIONS)
    )
    if wanted:
        unknown = next((name for name in wanted if name not in run.trace.of_module), None)
        if unknown is not None:
            known = [name for name in run.trace.of_module if name]
            raise NotApplicableError(f"the model uses no layer {unknown!r}; {nearest(unknown, known)}")
        found = {name: run.trace.of_module[name] for name in wanted}
    else:
        last: dict[int, Seen] = {}
        for seen in run.bottlenecks:
            if seen.name in run.trace.of_module and _channels(seen) is not None:
                before = sum(at <= place[id(seen)] for at in weighty)
                # What only lays out the same in fewer axes hides where it was.
                if before not in last or seen.tensor.ndim >= last[before].tensor.ndim:
                    last[before] = seen
        found = {seen.name: seen for seen in last.values()}
    order = [(name, place[id(seen)], _channels(seen)) for name, seen in found.items()]
    without = next((name for name, _, channels in order if channels is None), None)
    if without is not None:
        raise NotApplicableError(f"layer {without!r} returns no channels: nothing says which of its axes holds them")
    if not order:
        raise NotApplicableError("no module of the model returns what everything passes through: name `layers`")
    some = sorted(order, key=lambda each: each[1])
    if not wanted and len(some) > most:
        some = [some[round(step * (len(some) - 1) / (most - 1))] for step in range(most)] if most > 1 else some[-1:]
    return tuple(Layer(name, index, channels) for index, (name, _, channels) in enumerate(some) if channels is not None)


def _channels(seen: Seen) -> int | None:
    if seen.tensor.ndim == 2:
        return 1
    return None if seen.axes is None else seen.axes.channels


@contextmanager
def watching(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, Tensor]]:
    """While active, what each layer returned in the last pass, with channels as the second axis, in its graph."""
    outputs: dict[str, Tensor] = {}

    def note(layer: Layer) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            # A clone, because what comes next in the network may write into it.
            outputs[layer.name] = layer.arranged(output).clone()

        return hook

    handles = [model.get_submodule(layer.name).register_forward_hook(note(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def activations(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    layers: Sequence[Layer],
    chunk: int,
    of: Callable[[Tensor], Tensor] = lambda output: output,
) -> dict[str, Float[Tensor, "n ..."]]:
    """What each layer returns for the samples, without a graph, by the layer's name.

    Args:
        model: the network.
        x: the samples.
        layers: from `layers_of`.
        chunk: how many samples go through the network at once.
        of: what is kept of an output [n, k, *axes], so that no more has to be held of all samples.
    """
    parts: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    with torch.no_grad(), watching(model, layers) as outputs:
        for part in x.split(chunk):
            model(part.clone())
            for name, output in outputs.items():
                parts[name].append(of(output).detach())
    return {name: torch.cat(part) for name, part in parts.items()}


def pooled(output: Float[Tensor, "n k *axes"]) -> Float[Tensor, "n k"]:
    """The mean of each channel over positions."""
    return output.flatten(2).mean(2) if output.ndim > 2 else output
