"""The one loop behind all methods that change the input and watch the output."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def target_logits(
    model: nn.Module,
    target: Int[Tensor, " n"],
    count: int,
    chunk: int,
    perturbed: Callable[[range], Float[Tensor, "n k ..."]],
    *,
    probability: bool = False,
) -> Iterator[tuple[range, Float[Tensor, "n k"]]]:
    """The target logits of `count` versions of each sample, in batches of about `chunk` inputs.

    Args:
        model: returns logits [n, classes].
        target: the explained class of each sample.
        count: how many versions there are of each.
        chunk: how many inputs go through the model at once; at least one version of each sample does.
        perturbed: which versions -> these versions of each sample.
        probability: whether to yield the probability of the target class instead of its logit.

    Yields:
        Which versions, and their target logits.
    """
    at_once = max(1, chunk // len(target))
    for start in range(0, count, at_once):
        part = range(start, min(start + at_once, count))
        with torch.no_grad():
            inputs = perturbed(part)
            logits = model(inputs.flatten(0, 1)).unflatten(0, (len(target), len(part)))
            logits = logits.softmax(2) if probability else logits
            yield part, logits.gather(2, target[:, None, None].expand(-1, len(part), 1))[:, :, 0]


def mixed(
    x: Float[Tensor, "n *shape"], baseline: Float[Tensor, "n *shape"], mask: Float[Tensor, "n k ..."]
) -> Float[Tensor, "n k *shape"]:
    """`x` where the mask is one, the baseline where it is zero: $b + m (x - b)$. The mask has one channel, or `x`'s."""
    return torch.lerp(baseline[:, None], x[:, None], mask)
