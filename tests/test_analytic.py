"""Networks whose right maps are known: the maps are right by every definition, and the data are what they claim."""

import itertools

import captum.attr
import numpy as np
import pytest
import torch
from sample_maps import normal
from scipy import stats
from skimage.measure import label
from sklearn.linear_model import LogisticRegression
from torch import nn

from harness.catalogue import DATA, METHODS, MODELS
from harness.data.evidence import MEAN, SAMPLES, SHAPE, SIDE, STD, THRESHOLD, evidence, region
from harness.data.suppressors import suppressors
from harness.models.analytic import Additive, Bright, suppressor_optimal
from harness.planted import doubt
from harness.random import Draws
from known_truth import EVERY, SUBJECTS, each_picture, each_subject, explained, subject, target_of

# The right maps.


@each_subject
@pytest.mark.parametrize("baseline", ["black", "noise", "other sample"])
def test_contributions_sum_to_what_the_logit_gains_over_the_baseline(name, baseline):
    model, x, target, black = subject(name)
    beside = {"black": black, "noise": normal(*x.shape), "other sample": x.roll(1, 0)}[baseline]
    total = model.contributions(x, target, beside).flatten(1).sum(1)
    gained = explained(model, x, target) - explained(model, beside, target)
    torch.testing.assert_close(total, gained, rtol=0, atol=1e-9)
    assert gained.abs().min() > 1e-3


@each_subject
def test_what_a_position_contributes_is_the_drop_when_it_alone_is_removed(name):
    model, x, target, black = subject(name, n=2)
    for row in range(2):
        alone = torch.eye(x[0].numel(), dtype=torch.bool).view(-1, *x.shape[1:])
        without = torch.where(alone, black[row], x[row])
        targets = target[row].expand(len(without))
        drops = explained(model, x[row : row + 1], target[row : row + 1]) - explained(model, without, targets)
        contributions = model.contributions(x, target, black)[row]
        torch.testing.assert_close(contributions.flatten(), drops, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("transform", [None, Bright(), nn.Tanh()])
def test_contributions_are_shapley_values(transform, target):
    """By the definition: over all orders of four features, the mean of what each adds when it comes."""
    model = Additive(normal(4), 0.3, transform).double()
    x, baseline = 2 * normal(3, 4, seed=1), normal(3, 4, seed=2)
    targets = torch.full((3,), target)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        now = baseline.clone()
        for feature in order:
            before = explained(model, now, targets)
            now[:, feature] = x[:, feature]
            expected[:, feature] += (explained(model, now, targets) - before) / 24
    contributions = model.contributions(x, targets, baseline)
    torch.testing.assert_close(contributions, expected, rtol=0, atol=1e-12)
    assert contributions.abs().max() > 0.01


@each_subject
@pytest.mark.parametrize("steps", [1, 3])
def test_integrated_gradients_of_a_linear_network_are_its_contributions_in_any_number_of_steps(name, steps):
    model, x, target, black = subject(name)
    model.transform = nn.Identity()
    expected = model.contributions(x, target, black)
    ours = METHODS["integrated_gradients"].function(model, x, target, baseline=black, steps=steps)
    theirs = captum.attr.IntegratedGradients(model).attribute(x, black, target, n_steps=steps + 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-9)


def test_integrated_gradients_of_the_additive_network_come_as_near_to_its_contributions_as_their_steps_allow():
    model, x, target, black = subject("spots", n=3)
    expected = model.contributions(x, target, black)
    ig = captum.attr.IntegratedGradients(model)
    for steps in (50, 400):
        found = ig.attribute(x, black, target, n_steps=steps, method="riemann_middle")
        # The gradient jumps once on the path, which misplaces at most the half of a step.
        most = (model.weight * (x - black)).abs() * STD / 2 / (2 * steps)
        assert ((found - expected).abs() <= most + 1e-12).all()
    assert (found - expected).abs().max() > 0


def test_the_map_of_the_second_logit_is_that_of_the_first_with_its_sign_reversed():
    for name in SUBJECTS:
        model, x, _, black = subject(name)
        one, other = (model.contributions(x, torch.full((6,), target), black) for target in (0, 1))
        assert torch.equal(one, -other)
        assert torch.equal(model(x)[:, 0], -model(x)[:, 1])


@each_subject
def test_a_source_makes_the_same_network_again_and_each_is_its_own(name):
    source = SUBJECTS[name][0]()
    one, other = source.build((), 0), source.build((7, 7), 3)
    assert not one.training
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
        assert first.dtype == torch.float32
        with torch.no_grad():
            first.zero_()
    x = SUBJECTS[name][1]().batch([0])
    assert not torch.equal(one(x), other(x))
    assert torch.equal(other(x), source.build((), 0)(x))
    assert source.shape == x.shape[1:]
    assert source.data in DATA
    assert source.name in MODELS
    assert source.code(one) == SUBJECTS["region"][0]().code(other)


# Pictures with evidence.


@each_picture
def test_an_average_picture_is_of_the_first_class_and_black_is_of_the_second(name):
    model, x, _, black = subject(name, SAMPLES)
    with torch.no_grad():
        odds = torch.sub(*model(x).unbind(1))
        assert torch.sub(*model(black[:1]).unbind(1)).item() == pytest.approx(-3, abs=1e-6)
    assert odds.mean().sigmoid().item() == pytest.approx(0.95, abs=0.02)
    assert odds.min() > 0


@each_picture
def test_masks_are_exactly_where_something_contributes(name):
    model, x, _, black = subject(name, SAMPLES, torch.float32)
    contributions = model.contributions(x, target_of(SAMPLES), black)
    inside = (SUBJECTS[name][1]().masks(EVERY) > 0).expand_as(x)
    assert (contributions[~inside] == 0).all()
    assert (contributions[inside] > 0).all()
    assert 0.05 < inside.double().mean() < 0.4
    again = contributions.flatten(1).norm(dim=1)
    assert (again > 0).all()


def test_spots_are_bright_and_the_ground_is_not_and_each_picture_has_its_own():
    data = evidence()
    pixels, spots = data.batch(EVERY).double() * STD + MEAN, data.masks(EVERY) > 0
    assert pixels.shape == (SAMPLES, *SHAPE)
    assert (pixels >= 0).all()
    assert (pixels <= 1 + 1e-6).all()
    assert (((pixels > THRESHOLD).all(1, keepdim=True)) == spots).all()
    assert ((pixels > THRESHOLD).any(1, keepdim=True) == spots).all()
    assert len({each.numpy().tobytes() for each in spots}) == SAMPLES
    # No place is bright everywhere, nor is one never but at the corners.
    share = spots.double().mean((0, 1))
    assert share.max() < 0.3
    assert (share[2:-2, 2:-2] > 0).all()


def test_the_region_is_three_discs_and_the_same_in_each_picture():
    masks = evidence(truth="region").masks(EVERY)
    assert (masks == masks[0]).all()
    assert label(masks[0, 0].numpy()).max() == 3
    assert torch.equal(masks[0] > 0, region() > 0)
    assert torch.equal(evidence(truth="region").batch(EVERY), evidence().batch(EVERY))


@each_picture
def test_exchanges_touch_the_truth_alone_or_the_rest_alone(name):
    data = SUBJECTS[name][1]()
    for row in [0, 1, 2, 500, SAMPLES - 1]:
        x, inside = data.read(row), (data.read_mask(row) > 0).expand(SHAPE)
        truth, rest = data.planted.other_truth(row), data.planted.other_rest(row)
        assert torch.equal(truth[~inside], x[~inside])
        assert (truth[inside] == truth[inside][0]).all()
        assert (truth[inside] <= x[inside]).all()
        assert (truth[inside] < x[inside]).double().mean() > 0.9
        assert torch.equal(rest[inside], x[inside])
        assert (rest[~inside] != x[~inside]).double().mean() > 0.99
        network = SUBJECTS[name][0]().build((), 0)
        change = [(network(each[None]) - network(x[None]))[0, 0].item() for each in (truth, rest)]
        assert change[0] < -1
        assert change[1] == pytest.approx(0, abs=1e-5)


def test_only_the_network_that_uses_the_planted_truth_is_not_doubted():
    for network, truth in itertools.product(("region", "spots"), repeat=2):
        model, data = SUBJECTS[network][0]().build((), 0), SUBJECTS[truth][1]()
        found = doubt(model, data, lambda _, rows: target_of(SAMPLES)[rows], lambda x: x)
        assert (found == "") == (network == truth)
        assert ("does not use what was planted" in found) == (network != truth)
    data, model = suppressors(), suppressor_optimal().build((), 0)

    def doubted():
        return doubt(model, data, lambda _, rows: data.labels[rows], lambda x: x)

    assert doubted() == ""
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]))
    assert "does not use what was planted" in doubted()


def test_parts_are_tiles_that_cover_the_picture_once_and_are_black_where_they_are_missing():
    data = evidence()
    for row in (0, 77):
        where, without = data.read_parts(row)
        assert where.shape == (9, SIDE, SIDE)
        assert without.shape == (9, *SHAPE)
        assert set(where.unique().tolist()) == {0.0, 1.0}
        assert (where.sum(0) == 1).all()
        for part in range(9):
            down, across = divmod(part, 3)
            tile = torch.zeros(SIDE, SIDE)
            tile[8 * down : 8 * down + 8, 8 * across : 8 * across + 8] = 1
            assert torch.equal(where[part], tile)
            expected = torch.where(tile > 0, torch.tensor((0 - MEAN) / STD), data.read(row))
            torch.testing.assert_close(without[part], expected, rtol=0, atol=1e-7)
        black = data.space.fill("black", data.batch([row]), Draws.of([data.ids[row]]))
        torch.testing.assert_close(without[0, :, :8, :8], black[0, :, :8, :8], rtol=0, atol=1e-6)


@pytest.mark.parametrize("truth", ["spots", "region"])
@pytest.mark.parametrize("count", [1, 5, 130, SAMPLES])
def test_backwards_reverses_the_first_and_everything_that_belongs_to_them(truth, count):
    data, back = evidence(truth=truth), evidence(truth=truth, backwards=count)
    assert list(back.ids) == [*reversed(data.ids[:count]), *data.ids[count:]]
    assert len(set(back.ids)) == len(data) == len(back) == SAMPLES
    place = {sample: row for row, sample in enumerate(back.ids)}
    for row in {0, 1, 4, 129, 130, 600, SAMPLES - 1}:
        there = place[data.ids[row]]
        assert torch.equal(data.read(row), back.read(there))
        assert torch.equal(data.read_mask(row), back.read_mask(there))
        assert torch.equal(data.planted.other_truth(row), back.planted.other_truth(there))
        assert torch.equal(data.planted.other_rest(row), back.planted.other_rest(there))
        for one, other in zip(data.read_parts(row), back.read_parts(there), strict=True):
            assert torch.equal(one, other)


# Suppressors.


def test_a_suppressor_says_nothing_of_the_class_and_what_it_disturbs_says_something():
    data = suppressors()
    x, label = data.batch(EVERY).numpy(), data.labels.numpy() * 2 - 1.0
    correlation = [np.corrcoef(feature, label)[0, 1] for feature in x.T]
    for feature in (1, 3, 4, 5, 6, 7):
        assert abs(correlation[feature]) < 4 / SAMPLES**0.5
    for feature in (0, 2):
        # Covariance 1 of a variance of 1 + 4 + 1/4; class 0 is on the positive side.
        assert correlation[feature] == pytest.approx(-1 / 5.25**0.5, abs=4 / SAMPLES**0.5)
    assert abs(data.labels.double().mean() - 0.5) < 4 * 0.5 / SAMPLES**0.5
    low, high = data.space.bounds(data.batch(EVERY))
    assert (data.batch(EVERY) >= low).all()
    assert (data.batch(EVERY) <= high).all()


def test_rows_are_cause_disturbance_and_noise():
    data = suppressors()
    x, cause = data.batch(EVERY).double(), 1.0 - 2 * data.labels
    left = torch.stack([x[:, 0] - x[:, 1] - cause, x[:, 2] - x[:, 3] - cause])
    assert left.std(1).tolist() == pytest.approx([0.5, 0.5], rel=4 / (2 * SAMPLES) ** 0.5)
    assert left.mean(1).abs().max() < 4 * 0.5 / SAMPLES**0.5
    assert x[:, [1, 3]].std(0).tolist() == pytest.approx([2, 2], rel=4 / (2 * SAMPLES) ** 0.5)
    assert x[:, 4:].std(0).tolist() == pytest.approx([1] * 4, rel=4 / (2 * SAMPLES) ** 0.5)
    independent = torch.cat([left, x[:, [1, 3, 4, 5, 6, 7]].T, cause[None]])
    assert (torch.corrcoef(independent) - torch.eye(9)).abs().max() < 4.5 / SAMPLES**0.5


def test_the_log_odds_of_the_network_are_those_of_the_joint_density():
    """Both classes are normal, with covariances by hand from x_a = z + d + e, x_b = d."""
    covariance = np.eye(8)
    for a, b in ((0, 1), (2, 3)):
        covariance[a, a], covariance[b, b], covariance[a, b], covariance[b, a] = 4.25, 4.0, 4.0, 4.0
    mean = np.array([1.0, 0, 1, 0, 0, 0, 0, 0])
    data = suppressors()
    x = data.batch(range(100)).double()
    one, other = (stats.multivariate_normal(sign * mean, covariance).logpdf(x.numpy()) for sign in (1, -1))
    logits = suppressor_optimal().build((), 0).double()(x).detach()
    assert (logits[:, 0] - logits[:, 1]).tolist() == pytest.approx((one - other).tolist(), rel=1e-9)


def accuracy(weight):
    """Of the network with these weights, on all rows."""
    data, model = suppressors(), suppressor_optimal().build((), 0)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weight))
        return (model(data.batch(EVERY)).argmax(1) == data.labels).double().mean().item()


def test_the_network_is_as_good_as_can_be_and_worse_without_its_suppressors():
    best = suppressor_optimal().build((), 0).weight.tolist()
    bayes, without = stats.norm.cdf(8**0.5), stats.norm.cdf((2 / 4.25) ** 0.5)
    assert accuracy(best) == pytest.approx(bayes, abs=4 * (bayes * (1 - bayes) / SAMPLES) ** 0.5)
    alone = accuracy([8.0, 0, 8, 0, 0, 0, 0, 0])
    assert alone == pytest.approx(without, abs=4 * (without * (1 - without) / SAMPLES) ** 0.5)
    assert accuracy(best) > alone + 0.2
    assert best == [8.0, -8, 8, -8, 0, 0, 0, 0]


def test_a_regression_on_the_rows_finds_the_weights_too():
    data = suppressors()
    x, first = data.batch(EVERY).numpy(), (data.labels == 0).numpy()
    found = LogisticRegression().fit(x, first).coef_[0]
    size = np.abs(found[:4]).mean()
    assert np.sign(found[:4]).tolist() == [1, -1, 1, -1]
    assert (np.abs(found[:4]) / size).tolist() == pytest.approx([1] * 4, rel=0.15)
    assert np.abs(found[4:]).max() < 0.1 * size


def test_the_mask_is_what_the_network_uses_and_exchanges_keep_to_it():
    data = suppressors()
    assert (data.masks(EVERY) == torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])).all()
    x = data.batch(EVERY)
    for row in [0, 1, 2, 3, 500, SAMPLES - 1]:
        truth, rest = data.planted.other_truth(row), data.planted.other_rest(row)
        assert torch.equal(truth[4:], x[row, 4:])
        (from_row,) = (x[:, :4] == truth[:4]).all(1).nonzero()[:, 0].tolist()
        assert data.labels[from_row] != data.labels[row]
        assert torch.equal(rest[:4], x[row, :4])
        assert (x[:, 4:] == rest[4:]).all(1).sum() == 1
        assert not torch.equal(rest[4:], x[row, 4:])
