"""Which layer of a network a library takes its class activation map from: the same that ours would take."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.entries import nearest
from harness.methods.layers import Layout, features
from harness.types import NotApplicableError


def layer_called(name: str, model: nn.Module, x: Float[Tensor, "n c *axes"], method: str) -> tuple[nn.Module, Layout]:
    """The module of this name, or that of the last layer with positions if the name is empty, and where they are.

    Which one it is, is remarked with the cell.

    Args:
        name: as in `model.named_modules()`, or empty.
        model: the network.
        x: samples, of which the first goes through it.
        method: who asks, for the error.

    Raises:
        NotApplicableError: there is no such module, it returns no channels with positions, or the last layer that
            does is a function and no module.
    """
    found = features(model, x[:1], torch.zeros(1, dtype=torch.long, device=x.device), name, method)
    modules = dict(model.named_modules(remove_duplicate=False))
    if found.layer not in modules:
        others = nearest(found.layer.rpartition(" ")[2], [each for each in modules if each])
        raise NotApplicableError(
            f"{method}: the last layer with positions is a function, {found.layer}: name a module as `layer`; {others}"
        )
    return modules[found.layer], found.layout
