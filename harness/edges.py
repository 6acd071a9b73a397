"""Edges of an image, found without any model."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad


def edge_strength(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    r"""Sobel's edge strength of the mean over channels, $\sqrt{(S_h^2 + S_v^2) / 2}$.

    Borders are replicated; scaled as in scikit-image.
    """
    smooth, difference = torch.tensor([1.0, 2.0, 1.0]) / 4, torch.tensor([1.0, 0.0, -1.0])
    horizontal = torch.outer(difference, smooth).to(x)
    kernels = torch.stack([horizontal, horizontal.T])[:, None]
    edges = conv2d(pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernels)
    return (edges.square().sum(1, keepdim=True) / 2).sqrt()
