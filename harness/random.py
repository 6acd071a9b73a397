"""Randomness as a pure function of its key: Philox4x32-10 in tensor operations.

Every draw is a function of (seed, purpose, sample id, draw, position): the same on the CPU and on CUDA, and
independent of batch, chunk and order. Source: `salmon2011parallel`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod, tau

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(counter: Int[Tensor, "4 *shape"], key: tuple[int, int]) -> Int[Tensor, "4 *shape"]:
    """Philox4x32-10 (`salmon2011parallel`): four 32-bit words out for four words in.

    Args:
        counter: words in [0, 2^32), as int64.
        key: two words in [0, 2^32).

    Returns:
        Words in [0, 2^32), as int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3])


def _multiply(constant: int, words: Int[Tensor, "*shape"]) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    # In 16-bit halves: the 64-bit product of two 32-bit words does not fit into a signed int64.
    upper = (words >> 16) * constant
    lower = (words & 0xFFFF) * constant
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def key_of(*parts: object) -> tuple[int, int]:
    """Two 32-bit words that stand for the parts (their `repr`), by BLAKE2b."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def seed_of(*parts: object) -> int:
    """A non-negative 63-bit seed that stands for the parts, for generators that are not ours."""
    low, high = key_of(*parts)
    return (high << 32 | low) >> 1


@contextmanager
def torch_seeded(*parts: object) -> Iterator[None]:
    """Torch's own CPU generator, seeded by the parts inside the block and as it was after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))
        yield


@dataclass(frozen=True)
class Draws:
    """Random numbers for a block of samples, one row a sample, each a function of its key alone.

    `draws[i:j]` gives the same numbers to the samples i to j as `draws` gives them.
    """

    key: tuple[int, int]
    samples: Int[Tensor, "n 2"]

    @classmethod
    def of(cls, ids: Sequence[str], *parts: object, device: torch.device | str = "cpu") -> "Draws":
        """Draws for the samples with these ids, keyed by the parts (seed, purpose, ...)."""
        words = [key_of("sample", sample) for sample in ids]
        return cls(key_of(*parts), torch.tensor(words, dtype=torch.int64, device=device).reshape(-1, 2))

    def __getitem__(self, index: slice | Int[Tensor, " m"]) -> "Draws":
        return Draws(self.key, self.samples[index])

    def bits(self, *shape: int, draw: int = 0) -> Int[Tensor, "n ..."]:
        """Uniform 32-bit words as int64 of shape [n, *shape]."""
        size, n, device = prod(shape), len(self.samples), self.samples.device
        position = torch.arange(-(-size // 4), device=device).expand(n, -1)
        counter = [
            position,
            torch.full_like(position, draw),
            self.samples[:, :1].expand_as(position),
            self.samples[:, 1:].expand_as(position),
        ]
        words = philox(torch.stack(counter), self.key)
        return words.permute(1, 2, 0).flatten(1)[:, :size].reshape(n, *shape)

    def uniform(self, *shape: int, draw: int = 0) -> Float[Tensor, "n ..."]:
        """Uniform numbers in the open interval (0, 1), float64."""
        return (self.bits(*shape, draw=draw).double() + 0.5) / 2.0**32

    def normal(self, *shape: int, draw: int = 0) -> Float[Tensor, "n ..."]:
        """Standard normal numbers, float64, by the Box-Muller transform."""
        size = prod(shape)
        radius, angle = self.uniform(2, -(-size // 2), draw=draw).unbind(1)
        radius = (-2 * radius.log()).sqrt()
        pairs = torch.cat([radius * (tau * angle).cos(), radius * (tau * angle).sin()], 1)
        return pairs[:, :size].reshape(-1, *shape)

    def integers(self, high: int, *shape: int, draw: int = 0) -> Int[Tensor, "n ..."]:
        """Integers in [0, high), as int64; the bias is below high / 2^32."""
        return self.bits(*shape, draw=draw) * high >> 32

    def permutation(self, size: int, draw: int = 0) -> Int[Tensor, "n size"]:
        """A random permutation of 0 .. size-1 for each sample."""
        return self.bits(size, draw=draw).argsort(stable=True, dim=1)
