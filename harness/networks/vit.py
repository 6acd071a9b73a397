"""A small vision transformer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    r"""Multi-head self-attention, every product in the open.

    For each head: $\mathrm{softmax}(Q K^\top / \sqrt{w}) V$ with $Q, K, V$ of width $w$ = `width` / `heads`; the heads
    are put side by side and mixed by a linear layer (`vaswani2017attention`).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n positions width"]) -> Float[Tensor, "n positions width"]:
        """What each position gathers from all."""
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-2, -1)) / query.shape[-1] ** 0.5
        mixed = torch.matmul(scores.softmax(-1), value)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def split(self, x: Float[Tensor, "n positions width"]) -> Float[Tensor, "n heads positions part"]:
        """The part of each head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then two linear layers at each position, each normalized before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "n positions width"]) -> Float[Tensor, "n positions width"]:
        """The residual stream after this layer."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A pre-norm vision transformer (`dosovitskiy2021image`) for images [c, h, w], without dropout.

    Covers products of activations, softmax, layer norm, GELU, residual sums, input that enters by patches, and
    parameters that belong to no layer (class token, position embedding); it has no rectifier and no feature map.

    Args:
        shape: [c, h, w] of one input.
        classes: how many logits.
        patch: side of the square patches.
        width: of the residual stream.
        depth: layers.
        heads: of each attention.

    Raises:
        ValueError: the patches do not tile the image, or the heads do not share the width evenly.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, patch: int = 7, width: int = 64, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        channels, rows, columns = shape
        if rows % patch or columns % patch:
            raise ValueError(f"patch {patch} must divide both sides of the image; they are {rows} and {columns}")
        if width % heads:
            raise ValueError(f"heads must divide the width; {heads} heads do not divide {width}")
        positions = (rows // patch) * (columns // patch) + 1
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, positions, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """The logits, read from the class token, which is position 0; patches follow row by row."""
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        return self.head(self.norm(self.layers(x)[:, 0]))
