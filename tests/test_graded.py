"""Maps of known quality are what they are called."""

import itertools
import math

import numpy as np
import pytest
import torch
from sample_maps import normal
from scipy import stats
from torch import nn

import harness
from cases import case_of
from harness.data.evidence import evidence
from harness.methods.graded import graded
from harness.models.analytic import Additive
from harness.space import InputSpace
from known_truth import cosine, each_subject, subject, target_of, unit


def maps_of(name, n=8, dtype=torch.float64, ids=None, **options):
    model, x, target, black = subject(name, n, dtype)
    return graded(model, x, target, baseline=black, ids=ids or [f"s{row}" for row in range(n)], **options)


def truth_of(name, n=8, dtype=torch.float64):
    model, x, target, black = subject(name, n, dtype)
    return model.contributions(x, target, black).detach()


@each_subject
@pytest.mark.parametrize("wrong", ["moved", "white"])
def test_quality_one_is_the_truth_at_length_one_and_others_are_between_it_and_a_wrong_map(name, wrong):
    truth, other = unit(truth_of(name)), maps_of(name, quality=0.0, wrong=wrong)
    torch.testing.assert_close(maps_of(name, quality=1.0, wrong=wrong).detach(), truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(other.flatten(1).norm(dim=1), torch.ones(8).double(), rtol=0, atol=1e-12)
    for quality in (0.9, 0.5, 0.1):
        expected = quality * truth + (1 - quality) * other
        torch.testing.assert_close(maps_of(name, quality=quality, wrong=wrong), expected, rtol=0, atol=1e-12)


def test_the_cosine_with_the_truth_is_what_the_quality_says_when_the_wrong_map_is_noise():
    truth = truth_of("spots", 200)
    for quality in (0.9, 0.75, 0.5, 0.25, 0.1, 0.0):
        found = cosine(maps_of("spots", 200, quality=quality, wrong="white"), truth).detach()
        expected = quality / math.hypot(quality, 1 - quality)
        # Noise is orthogonal to the truth to within one over the root of the number of values.
        assert found.mean().item() == pytest.approx(expected, abs=4 / (200 * truth[0].numel()) ** 0.5 + 1e-3)
    assert found.std().item() == pytest.approx(truth[0].numel() ** -0.5, rel=4 / 400**0.5)


def test_white_noise_is_standard_normal_and_of_each_sample_its_own():
    noise = maps_of("spots", 40, quality=0.0, wrong="white")
    flat = noise.flatten() * noise[0].numel() ** 0.5
    assert stats.kstest(flat.detach(), "norm").pvalue > 0.001
    between = torch.corrcoef(noise.flatten(1).detach()) - torch.eye(40)
    assert between.abs().max() < 5 / noise[0].numel() ** 0.5


def moves(name, n, ids=None):
    """By how much each map of quality 0 is the truth moved around the torus; all channels alike."""
    truth, found = unit(truth_of(name, n)), maps_of(name, n, quality=0.0, ids=ids).detach()
    axes = range(2, truth.ndim) if truth.ndim > 2 else [1]
    shifts = list(itertools.product(*(range(truth.shape[axis]) for axis in axes)))
    far = torch.full((len(shifts), n), math.inf, dtype=torch.float64)
    for place, shift in enumerate(shifts):
        far[place] = (truth.roll(shift, list(axes)) - found).flatten(1).abs().amax(1)
    assert far.amin(0).max() < 1e-12, "no map is anything else than the truth, moved"
    return [shifts[place] for place in far.argmin(0).tolist()]


@each_subject
def test_the_wrong_map_is_the_truth_moved_around_the_torus(name):
    found = moves(name, 24)
    assert len(set(found)) > (12 if name != "suppressors" else 3)
    assert moves(name, 24, ids=[f"other/{row}" for row in range(24)]) != found


def test_a_signal_is_moved_in_time_with_all_its_channels():
    model, x = Additive(torch.ones(3, 1), 0.0).double(), normal(30, 3, 11)
    ids = [f"s{row}" for row in range(30)]
    found = graded(model, x, target_of(30), baseline=torch.zeros_like(x), ids=ids, quality=0.0).detach()
    by = [[(unit(x)[row].roll(step, 1) - found[row]).abs().max() < 1e-12 for step in range(11)] for row in range(30)]
    assert [sum(each) for each in by] == [1] * 30
    assert len({each.index(True) for each in by}) > 5


def shifts_of(n, *axes):
    """By how much maps that are one position large are moved, for very many samples."""
    x = torch.zeros(n, 1, *axes) if len(axes) > 1 else torch.zeros(n, *axes)
    x[(slice(None), *(0,) * (x.ndim - 1))] = 1
    ids = [f"s{row}" for row in range(n)]
    maps = graded(Additive(torch.ones(()), 0.0), x, target_of(n), baseline=torch.zeros_like(x), ids=ids, quality=0.0)
    assert (maps.flatten(1).amax(1) == 1).all()
    return maps.flatten(1).argmax(1)


@pytest.mark.parametrize("axes", [(4, 6), (8,)])
def test_all_moves_but_none_are_equally_likely(axes):
    n, places = 24_000, math.prod(axes)
    counts = np.bincount(shifts_of(n, *axes), minlength=places)
    assert stats.chisquare(counts[1:]).pvalue > 0.001


@pytest.mark.parametrize("axes", [(8,), (24, 24)])
def test_a_wrong_map_is_never_the_right_one(axes):
    assert (shifts_of(8000, *axes) > 0).all()


@pytest.mark.parametrize("wrong", ["moved", "white"])
def test_maps_are_of_the_sample_alone_whatever_the_study_its_chunks_and_its_order(wrong):
    model, x, target, _ = subject("spots", 10, torch.float32)
    space, ids = evidence().space, [f"evidence/{row}" for row in range(10)]
    entry = ("graded", {"quality": 0.5, "baseline": "black", "wrong": wrong})

    def maps(rows, **settings):
        picked = [ids[row] for row in rows]
        return case_of(model, x[rows], target[rows], entry, space=space, samples=picked, **settings).maps

    order = list(range(10))
    whole = maps(order)
    for settings in ({"seed": 5}, {"chunk": 1}, {"chunk": 3}):
        torch.testing.assert_close(maps(order, **settings), whole, rtol=0, atol=1e-7)
    torch.testing.assert_close(maps(order[::-1]), whole.flip(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(maps([7]), whole[7:8], rtol=0, atol=1e-7)


@each_subject
@pytest.mark.parametrize("quality", [1.0, 0.5, 0.0])
def test_changed_maps_are_the_same_maps_changed(name, quality):
    plain = maps_of(name, 60, quality=quality)
    assert torch.equal(maps_of(name, 60, quality=quality, change="negated"), -plain)
    inverted = maps_of(name, 60, quality=quality, change="inverted")
    top = plain.flatten(1).amax(1).view(-1, *(1,) * (plain.ndim - 1))
    assert torch.equal(inverted, top - plain)
    assert (inverted.flatten(1).amin(1) == 0).all()
    factor = maps_of(name, 60, quality=quality, change="rescaled") / plain
    known = [each[plain[row] != 0] for row, each in enumerate(factor)]
    for each in known:
        torch.testing.assert_close(each, each[:1].expand_as(each), rtol=1e-9, atol=0)
    factors = torch.stack([each[0] for each in known]).detach()
    assert (factors > 0.01).all()
    assert (factors < 100).all()
    assert len(set(factors.tolist())) == 60
    assert stats.kstest(factors.log10(), stats.uniform(-2, 4).cdf).pvalue > 0.001


@pytest.mark.parametrize("quality", [-1.0, -1e-9, 1.0000001, 2.0, math.nan, math.inf])
def test_a_quality_that_is_none_is_refused(quality):
    with pytest.raises(ValueError, match=r"graded: expected a quality in \[0, 1\], got"):
        maps_of("spots", 2, quality=quality)


def test_a_network_that_does_not_know_its_map_has_no_graded_maps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    results = harness.evaluate(
        model,
        torch.rand(3, 1, 2, 2),
        space=InputSpace("image", (0.0,), (1.0,)),
        methods=["graded"],
        metrics=["zero_fraction"],
    )
    assert list(results.cells["status"]) == ["not_applicable"]
