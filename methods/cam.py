"""Class activation maps: a weighted sum of the channels of one layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.registry import method, nearest
from harness.types import NotApplicableError


@method(family="cam", cite="selvaraju2017grad", needs=("spatial",))
def grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    layer: str = "",
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""Grad-CAM: $\sum_k w_k A^k$ with $w_k$ the mean over positions of $\partial f_t / \partial A^k$.

    Upsampled to the input linearly along each axis (bilinear for images). The paper applies a ReLU to the
    sum; here that is an option, because the ReLU turns many maps of a randomized network into zeros.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: the name of the module whose output is A; by default the last one with positions left.
        relu: whether negative values of the sum become zero, as in the paper.

    Raises:
        NotApplicableError: no layer has more than one position, or `layer` does not exist, has no positions or
            is not used by the logits.
    """
    name = layer or last_spatial_layer(model, x[:1])
    modules = {each: module for each, module in model.named_modules() if each}
    if name not in modules:
        raise NotApplicableError(f"grad_cam: the model has no layer {name!r}; {nearest(name, modules)}")
    captured: list[object] = []

    def capture(_module: nn.Module, _inputs: object, output: object) -> object:
        captured.append(output)
        # What follows may be in place; it then writes into the copy.
        return output.clone() if isinstance(output, Tensor) else output

    handle = modules[name].register_forward_hook(capture)
    try:
        with torch.enable_grad():
            logits = model(x.detach().requires_grad_().clone())
            activation = captured[-1] if captured else None
            if not isinstance(activation, Tensor) or activation.ndim != x.ndim:
                raise NotApplicableError(f"grad_cam: layer {name!r} returns no channels with positions")
            score = logits.gather(1, target[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
    finally:
        handle.remove()
    if gradient is None:
        raise NotApplicableError(f"grad_cam: the logits do not use layer {name!r}; name another one as `layer`")
    weights = gradient.flatten(2).mean(2).view(*gradient.shape[:2], *(1,) * (x.ndim - 2))
    coarse = (weights * activation.detach()).sum(1, keepdim=True)
    coarse = coarse.clamp(min=0) if relu else coarse
    mode = {3: "linear", 4: "bilinear"}[x.ndim]
    return interpolate(coarse, size=x.shape[2:], mode=mode, align_corners=False)


def last_spatial_layer(model: nn.Module, x: Float[Tensor, "n c *axes"]) -> str:
    """The name of the module that is the last to return channels with more than one position.

    Raises:
        NotApplicableError: there is none.
    """
    last = ""
    names = {module: name for name, module in model.named_modules() if name}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal last
        if isinstance(output, Tensor) and output.ndim == x.ndim and output[0, 0].numel() > 1:
            last = names[module]

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    if not last:
        raise NotApplicableError("grad_cam: no layer of the model returns channels with more than one position")
    return last
