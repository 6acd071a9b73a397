"""Which layer of a network a class activation map is taken from, and how it gets the size of the input."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.registry import nearest
from harness.remarks import remark
from harness.types import NotApplicableError


def layer_called(name: str, model: nn.Module, x: Float[Tensor, "n c *axes"], method: str) -> nn.Module:
    """The module of this name, or the last that returns channels with more than one position if the name is empty.

    Which one it is, is remarked with the cell.

    Args:
        name: as in `model.named_modules()`, or empty.
        model: the network.
        x: samples, of which the first goes through it.
        method: who asks, for the error.

    Raises:
        NotApplicableError: there is no such module, or it returns no channels with positions.
    """
    modules = {each: module for each, module in model.named_modules() if each}
    if name and name not in modules:
        raise NotApplicableError(f"{method}: the model has no layer {name!r}; {nearest(name, modules)}")
    spatial = _spatial(model, modules, x[:1])
    if not spatial:
        raise NotApplicableError(f"{method}: no layer of the model returns channels with more than one position")
    if name and name not in spatial:
        raise NotApplicableError(f"{method}: layer {name!r} returns no channels with positions; {nearest('', spatial)}")
    remark("layer", name or spatial[-1])
    return modules[name or spatial[-1]]


def _spatial(model: nn.Module, modules: dict[str, nn.Module], x: Float[Tensor, "1 c *axes"]) -> list[str]:
    """The names of the modules that return channels with more than one position, by when they last do."""
    names = {module: name for name, module in modules.items()}
    order: dict[str, None] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == x.ndim and output[0, 0].numel() > 1:
            order.pop(names[module], None)
            order[names[module]] = None

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def upsampled(maps: Float[Tensor, "n c *coarse"], x: Float[Tensor, "n d *axes"]) -> Float[Tensor, "n c *axes"]:
    """Maps of a layer in the size of the input: bilinearly for images, linearly for signals."""
    mode = {3: "linear", 4: "bilinear"}[x.ndim]
    return interpolate(maps, size=x.shape[2:], mode=mode, align_corners=False)
