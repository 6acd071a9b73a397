"""Randomness: the published Philox vectors, independence of batch and order, and the distributions."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from harness.random import MASK, MULTIPLIERS, ROUNDS, WEYL, Draws, key_of, philox, seed_of, torch_seeded

IDS = [f"sample-{i}" for i in range(7)]
KINDS = {
    "bits": lambda draws, **k: draws.bits(3, 5, **k),
    "uniform": lambda draws, **k: draws.uniform(3, 5, **k),
    "normal": lambda draws, **k: draws.normal(3, 5, **k),
    "integers": lambda draws, **k: draws.integers(10**6, 3, 5, **k),
    "permutation": lambda draws, **k: draws.permutation(15, **k),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert philox(torch.tensor(words(counter)), tuple(words(key))).tolist() == words(expected)


def philox_with_big_integers(counter, key):
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & MASK, first >> 32 ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK]
    return c


def test_philox_agrees_with_big_integers_on_random_words():
    generator = random.Random(0)
    for _ in range(20):
        key = (generator.getrandbits(32), generator.getrandbits(32))
        counters = [[generator.getrandbits(32) for _ in range(4)] for _ in range(50)]
        expected = [philox_with_big_integers(counter, key) for counter in counters]
        assert philox(torch.tensor(counters).T, key).T.tolist() == expected


def test_bits_are_philox_of_position_draw_and_sample():
    draws = Draws.of(IDS, 3, "noise")
    for sample, row in zip(IDS, draws.bits(10, draw=6).tolist(), strict=True):
        blocks = [philox_with_big_integers([i, 6, *key_of("sample", sample)], key_of(3, "noise")) for i in range(3)]
        assert row == [word for block in blocks for word in block][:10]


@each_kind
def test_a_slice_of_draws_draws_the_slice(kind):
    draws = Draws.of(IDS, 0, "purpose")
    assert torch.equal(kind(draws[2:5]), kind(draws)[2:5])


@each_kind
def test_batch_and_order_do_not_matter(kind):
    whole = kind(Draws.of(IDS, 0, "purpose"), draw=3)
    order = [4, 0, 6, 2]
    assert torch.equal(kind(Draws.of([IDS[i] for i in order], 0, "purpose"), draw=3), whole[order])
    alone = torch.cat([kind(Draws.of([sample], 0, "purpose"), draw=3) for sample in IDS])
    assert torch.equal(alone, whole)


@each_kind
def test_no_global_generator_is_used_or_moved(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = kind(Draws.of(IDS, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(kind(Draws.of(IDS, 0)), first)


@each_kind
def test_sample_draw_purpose_and_seed_each_give_other_numbers(kind):
    def flat(ids=IDS[:1], parts=(0, "fill"), draw=0):
        return tuple(kind(Draws.of(ids, *parts), draw=draw).flatten().tolist())

    different = {flat(), flat(ids=IDS[1:2]), flat(draw=1), flat(parts=(0, "shift")), flat(parts=(1, "fill"))}
    assert len(different) == 5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5,), (2, 3, 3)])
def test_the_first_numbers_do_not_depend_on_how_many_are_drawn(shape):
    draws = Draws.of(IDS, 0)
    drawn = draws.bits(*shape)
    assert drawn.shape == (7, *shape)
    assert torch.equal(drawn.reshape(7, -1), draws.bits(100)[:, : max(drawn[0].numel(), 1)])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 3)])
def test_normal_numbers_have_the_shape_asked_for(shape):
    assert Draws.of(IDS, 0).normal(*shape).shape == (7, *shape)


def test_uniform_numbers_are_the_middles_of_their_cells():
    draws = Draws.of(IDS, 0)
    assert draws.uniform(9).tolist() == [[(word + 0.5) / 2**32 for word in row] for row in draws.bits(9).tolist()]


@pytest.mark.parametrize("word", [0, MASK])
def test_the_extreme_words_give_neither_0_nor_1_nor_infinity(word, monkeypatch):
    monkeypatch.setattr(Draws, "bits", lambda self, *shape, draw=0: torch.full((len(self.samples), *shape), word))
    draws = Draws.of(IDS, 0)
    assert ((draws.uniform(2) > 0) & (draws.uniform(2) < 1)).all()
    assert draws.normal(2).isfinite().all()
    assert (draws.integers(1000, 2) == (999 if word else 0)).all()


def samples_of(name):
    draws = Draws.of([str(i) for i in range(40)], 17, "distribution")
    return getattr(draws, name)(5000).numpy()


@pytest.mark.parametrize(("name", "law"), [("uniform", stats.uniform), ("normal", stats.norm)])
def test_numbers_follow_their_law(name, law):
    numbers = samples_of(name)
    assert stats.kstest(numbers.ravel(), law.cdf, method="asymp").pvalue > 0.01
    # One test a sample: the p-values must themselves be uniform, so no sample is a bad one.
    each = [stats.kstest(row, law.cdf, method="asymp").pvalue for row in numbers]
    assert stats.kstest(each, stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["uniform", "normal"])
@pytest.mark.parametrize("power", [1, 2])
def test_numbers_are_uncorrelated(name, power):
    numbers = samples_of(name) ** power
    limit = stats.norm.ppf(1 - 1e-4)
    between = np.corrcoef(numbers)[np.triu_indices(len(numbers), 1)]
    assert np.abs(between).max() * np.sqrt(5000) < stats.norm.ppf(1 - 1e-2 / len(between) / 2)
    # Lag 2500 joins the two halves of a Box-Muller pair.
    for lag in (1, 2, 3, 4, 2500):
        pairs = np.corrcoef(numbers[:, lag:].ravel(), numbers[:, :-lag].ravel())[0, 1]
        assert abs(pairs) * np.sqrt(numbers[:, lag:].size) < limit


def test_draws_and_purposes_are_uncorrelated():
    numbers = [Draws.of(["a"], 0, purpose).uniform(20_000, draw=draw)[0] for purpose in "xyz" for draw in range(5)]
    between = np.corrcoef(torch.stack(numbers))[np.triu_indices(15, 1)]
    assert np.abs(between).max() * np.sqrt(20_000) < stats.norm.ppf(1 - 1e-2 / len(between) / 2)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_permutation_holds_every_position_once(size):
    permuted = Draws.of(IDS, 0).permutation(size)
    assert torch.equal(permuted.sort(1).values, torch.arange(size).expand(7, -1))


def test_permutations_are_uniform():
    draws = Draws.of([str(i) for i in range(12_000)], 0, "permutation")
    seven = draws.permutation(7).numpy()
    for position in range(7):
        assert stats.chisquare(np.bincount(seven[:, position], minlength=7)).pvalue > 1e-3
    # All orders, not only each position: an argsort in the wrong direction or of a shared key would show here.
    orders = draws.permutation(4, draw=1).numpy() @ np.array([64, 16, 4, 1])
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 10, 1000])
def test_integers_are_uniform_below_their_end(high):
    counts = np.bincount(Draws.of(IDS, 0).integers(high, 20_000).flatten().numpy(), minlength=high)
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_integers_below_a_high_end_do_not_overflow():
    draws, high = Draws.of(IDS, 0), 2**31 - 1
    exact = [[word * high >> 32 for word in row] for row in draws.bits(1000).tolist()]
    assert draws.integers(high, 1000).tolist() == exact


def test_keys_and_seeds_stand_for_all_their_parts():
    parts = [(0,), ("0",), (0, 0), (1,), (0, "a"), ("a", 0), (("a", 0),), ("a0",)]
    assert len({key_of(*part) for part in parts}) == len({seed_of(*part) for part in parts}) == len(parts)
    assert all(0 <= seed_of(i) < 2**63 for i in range(200))
    # Published results depend on this: keys must not change between versions or machines.
    assert key_of(0, "fill") == (781913518, 723705965)
    assert seed_of(0, "fill") == (723705965 << 32 | 781913518) >> 1


def test_torch_seeded_is_reproducible_and_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch_seeded(1, "twin"):
        first = torch.randn(9)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with torch_seeded(1, "twin"):
        assert torch.equal(torch.randn(9), first)
    with torch_seeded(2, "twin"):
        assert not torch.equal(torch.randn(9), first)


def test_torch_seeded_restores_the_generator_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), torch_seeded(1):
        torch.randn(3) / (1 // 0)
    assert torch.equal(torch.get_rng_state(), before)
