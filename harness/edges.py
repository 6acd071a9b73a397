"""Edges of an image, found without any model."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def edge_strength(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    r"""Sobel's edge strength of the mean over channels, $\sqrt{(S_h^2 + S_v^2) / 2}$.

    Borders are replicated; scaled as in scikit-image. Exactly zero where the image is flat: differences come first.
    """
    around = pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    down, right = around[:, :, 2:] - around[:, :, :-2], around[..., 2:] - around[..., :-2]
    horizontal = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    vertical = (right[:, :, :-2] + 2 * right[:, :, 1:-1] + right[:, :, 2:]) / 4
    return ((horizontal.square() + vertical.square()) / 2).sqrt()
