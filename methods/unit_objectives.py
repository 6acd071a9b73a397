"""What an image is to excite: a logit, a probability, a neuron, a channel, a direction, or a whole layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.activations import Layer, activations, layers_of, pooled, watching
from harness.random import Draws
from harness.types import NotApplicableError

Kind = Literal["logit", "probability", "neuron", "channel", "direction", "layer"]
OF_OUTPUT = ("logit", "probability")


@dataclass(frozen=True)
class Objective:
    """Units of a network, and how strongly an input excites each of them.

    Attributes:
        units: their indices.
        layer: the layer that they are of; None: the output of the network.
        read: the excitation of each unit, [n, units], by what the layer or the network returned.
        climbed: what grows with it and is steep where it is flat, if there is such a thing; by the same.
    """

    units: tuple[int, ...]
    layer: Layer | None
    read: Callable[[Tensor], Tensor]
    climbed: Callable[[Tensor], Tensor] | None = None

    def values(
        self, model: nn.Module, x: Float[Tensor, "n c *axes"], climbing: bool = False
    ) -> Float[Tensor, "n units"]:
        """How strongly inputs excite the units, or what is climbed in its place; in its graph."""
        read = self.climbed if climbing and self.climbed else self.read
        with watching(model, (self.layer,) if self.layer else ()) as outputs:
            # A clone, because the network may write into its input.
            logits = model(x.clone())
            return read(outputs[self.layer.name] if self.layer else logits)


def objective_of(
    kind: Kind,
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    labels: Int[Tensor, " n"] | None,
    *,
    layer: str,
    units: int | list[int],
    direction: Literal["class_difference", "random"] | list[float],
    seed: int,
    chunk: int,
) -> Objective:
    r"""An objective by name, with $A_{kp}$ what channel k of a layer returns at position p and P its positions.

    `logit`: $f_u$. `probability`: $\mathrm{softmax}(f)_u$. `neuron`: $A_{up}$ at the middle position. `channel`:
    $\frac{1}{P} \sum_p A_{up}$. `direction`: $\frac{1}{P} \sum_{kp} v_k A_{kp}$ with $|v| = 1$. `layer`:
    $\sum_{kp} A_{kp}^2$, for whatever number of images. Of a probability the logarithm is climbed, because where
    another class is certain its own gradient vanishes.

    Args:
        kind: which one.
        model: returns logits [n, classes].
        x: the samples of the study.
        labels: their classes, for a direction from the mean of all other classes to that of a class.
        layer: of other objectives than of the output; by default the last with more than one position.
        units: their indices; or how many, evenly spaced over all of them.
        direction: v, of which its length does not matter; `class_difference`: the units are classes; `random`.
        seed: of random directions.
        chunk: how many samples go through the network at once.

    Raises:
        NotApplicableError: there is no such layer or unit, or no labels for a difference of classes.
    """
    if kind in OF_OUTPUT:
        with torch.no_grad():
            count = model(x[:1].clone()).shape[1]
        chosen = _chosen(units, count, "logit")
        index = torch.tensor(chosen, device=x.device)
        if kind == "logit":
            return Objective(chosen, None, lambda logits: logits[:, index])
        log = lambda logits: logits.log_softmax(1)[:, index]  # noqa: E731
        return Objective(chosen, None, lambda logits: log(logits).exp(), log)
    place, channels = _layer(model, x, layer, chunk)
    if kind == "layer":
        count = units if isinstance(units, int) else len(units)
        chosen = tuple(range(min(units, len(x)))) if isinstance(units, int) else _chosen(units, len(x), "sample")
        return Objective(chosen, place, lambda a: a.square().flatten(1).sum(1, keepdim=True).expand(-1, len(chosen)))
    if kind == "direction":
        if direction == "class_difference":
            means = activations(model, x, (place,), chunk, of=pooled)[place.name]
            chosen, vectors = _differences(means, labels, units)
        else:
            chosen, vectors = _given(direction, channels, units, seed, x)
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return Objective(chosen, place, lambda a: pooled(a) @ vectors.T)
    chosen = _chosen(units, channels, "channel")
    index = torch.tensor(chosen, device=x.device)
    at = _middle if kind == "neuron" else pooled
    return Objective(chosen, place, lambda a: at(a)[:, index])


def _layer(model: nn.Module, x: Float[Tensor, "n ..."], name: str, chunk: int) -> tuple[Layer, int]:
    """The layer of this name, by default the last with more than one position, and its number of channels."""
    found = layers_of(model, x, (name,) if name else ())
    shapes = {each: one.shape for each, one in activations(model, x[:1], found, chunk).items()}
    spatial = [layer for layer in found if len(shapes[layer.name]) > 2 and shapes[layer.name][2:].numel() > 1]
    layer = (spatial or found)[-1]
    return layer, shapes[layer.name][1]


def _chosen(units: int | list[int], count: int, what: str) -> tuple[int, ...]:
    """The indices of units.

    Raises:
        NotApplicableError: one of them does not exist.
    """
    if isinstance(units, int):
        most = min(units, count)
        return tuple(round(step * (count - 1) / (most - 1)) for step in range(most)) if most > 1 else (0,)
    wrong = next((unit for unit in units if not 0 <= unit < count), None)
    if wrong is not None:
        raise NotApplicableError(f"there is no {what} {wrong}: expected indices from 0 to {count - 1}")
    return tuple(units)


def _differences(
    means: Float[Tensor, "n k"], labels: Int[Tensor, " n"] | None, units: int | list[int]
) -> tuple[tuple[int, ...], Float[Tensor, "units k"]]:
    """The mean of each class minus that of all others.

    Raises:
        NotApplicableError: there are no labels, or no samples of a class.
    """
    if labels is None:
        raise NotApplicableError("a difference of classes needs labels: give `direction` as numbers, or random")
    known = labels.unique().tolist()
    if isinstance(units, list) and not set(units) <= set(known):
        raise NotApplicableError(f"there are no samples of class {min(set(units) - set(known))}")
    chosen = tuple(units) if isinstance(units, list) else tuple(known[at] for at in _chosen(units, len(known), "class"))
    return chosen, torch.stack([means[labels == each].mean(0) - means[labels != each].mean(0) for each in chosen])


def _given(
    direction: str | list[float], channels: int, units: int | list[int], seed: int, x: Tensor
) -> tuple[tuple[int, ...], Float[Tensor, "units k"]]:
    """A direction that was given as numbers, or random ones.

    Raises:
        NotApplicableError: not one number for each channel.
    """
    if isinstance(direction, str):
        chosen = tuple(range(units)) if isinstance(units, int) else tuple(units)
        draws = Draws.of([str(unit) for unit in chosen], seed, "direction", device=x.device)
        return chosen, draws.normal(channels).to(x.dtype)
    if len(direction) != channels:
        raise NotApplicableError(
            f"direction: expected one number for each of {channels} channels, got {len(direction)}"
        )
    return (0,), x.new_tensor(direction)[None]


def _middle(output: Float[Tensor, "n k *axes"]) -> Float[Tensor, "n k"]:
    for side in output.shape[2:]:
        output = output.select(2, side // 2)
    return output
