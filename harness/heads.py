"""Heads: wrappers that make a network whose output is no row of class logits return [n, k] all the same.

Methods know only targets, columns of [n, k]. A head says which scalars of the output the columns are.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.types import InputError


class _Head(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _column(self, x: Float[Tensor, "n ..."], index: int) -> Float[Tensor, " n"]:
        """One of the outputs of a model that returns [n] or [n, k].

        Raises:
            InputError: it returns something else.
        """
        output = self.model(x)
        if isinstance(output, Tensor) and output.ndim == 1:
            output = output[:, None]
        if not isinstance(output, Tensor) or output.ndim != 2 or not 0 <= index < output.shape[1]:
            raise InputError(f"{self._name}: expected an output [n, k] with k > {index}, got {shape_of(output)}")
        return output[:, index]

    @property
    def _name(self) -> str:
        return f"head {type(self).__name__}"


def shape_of(output: object) -> str:
    """What a model returned, in words for a message."""
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


class Segmentation(_Head):
    r"""Class logits at every position -> their means over a mask: $g_c(x) = \frac{1}{|M|} \sum_{p \in M} f_c(x)_p$.

    The model returns [n, classes, *positions], or a dictionary with that under `out` as torchvision's do.

    Args:
        model: the network.
        mask: [*positions], true where the output counts; everywhere by default.
    """

    mask: Tensor | None

    def __init__(self, model: nn.Module, mask: Tensor | None = None) -> None:
        super().__init__(model)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
        """The mean logit of each class.

        Raises:
            InputError: the model returns no logits at positions.
        """
        output = self.model(x)
        output = output.get("out") if isinstance(output, dict) else output
        if not isinstance(output, Tensor) or output.ndim != x.ndim:
            raise InputError(f"{self._name}: expected an output [n, classes, *positions], got {shape_of(output)}")
        if self.mask is None:
            return output.flatten(2).mean(2)
        return output[:, :, self.mask.bool()].mean(2)


class Regression(_Head):
    """One number -> [y, -y]: target 0 explains the number, target 1 its negative, `predicted` its absolute value.

    The model returns [n] or [n, outputs].

    Args:
        model: the network.
        output: which of its outputs.
    """

    def __init__(self, model: nn.Module, output: int = 0) -> None:
        super().__init__(model)
        self.output = output

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 2"]:
        """The number and its negative."""
        y = self._column(x, self.output)
        return torch.stack([y, -y], 1)


class MultiLabel(_Head):
    r"""The logit $z$ of one label -> $[-z/2, z/2]$: target 1 is present, 0 is absent, and softmax gives the sigmoid.

    The model returns [n] or [n, labels], before the sigmoid. Serves binary classifiers with one output too.

    Args:
        model: the network.
        label: which of its labels.
    """

    def __init__(self, model: nn.Module, label: int = 0) -> None:
        super().__init__(model)
        self.label = label

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n 2"]:
        """Minus half the logit of the label, and half of it."""
        half = self._column(x, self.label) / 2
        return torch.stack([-half, half], 1)


HEADS: dict[str, type[_Head]] = {"segmentation": Segmentation, "regression": Regression, "multi_label": MultiLabel}
"""Name in a study -> wrapper. Its options are the arguments besides the model."""


def with_head(model: nn.Module, name: str, options: dict[str, Any]) -> nn.Module:
    """The model under the head of this name; the model itself if there is none."""
    if not name:
        return model
    wrapped = HEADS[name](model, **options)
    wrapped.training = model.training
    return wrapped


def without_head(model: nn.Module) -> nn.Module:
    """The model under its head; the model itself if it has none."""
    inner: nn.Module = model.model if isinstance(model, _Head) else model
    return inner
