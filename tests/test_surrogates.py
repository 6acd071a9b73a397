"""LIME against scikit-learn, KernelSHAP against Shapley values by enumeration and captum."""

import itertools
import math

import captum.attr
import numpy as np
import pytest
import scipy.stats
import skimage.measure
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import nn

from cases import Linear, network, relu_mlp
from closed_forms import draws_for, explained, normal
from harness.methods.surrogates import _drawn, kernel_shap, lime
from harness.remarks import listening
from harness.space import InputSpace
from harness.units import superpixels

CLOSE = {"rtol": 1e-8, "atol": 1e-10}
SPACES = {ndim: InputSpace(kind, mean=(0.0,), std=(1.0,)) for ndim, kind in ((2, "table"), (3, "signal"), (4, "image"))}


def given(x, *parts, **options):
    return {"space": SPACES[x.ndim], "draws": draws_for(x, *parts), **options}


def pictures(n=4, channels=2, side=12):
    """Smooth pictures that SLIC cuts into different numbers of superpixels."""
    coarse = (6 * normal(n, channels, 3, 3, seed=5)).sigmoid()
    return nn.functional.interpolate(coarse, size=side, mode="bilinear")


def only(units, labels, x, baseline):
    """One sample of which only these units are left."""
    kept = torch.isin(labels, torch.tensor(sorted(units), dtype=labels.dtype)).to(x.dtype)
    return kept * x + (1 - kept) * baseline


def shapley_values(value, players):
    """By the formula, for every player and every set of others."""
    result = []
    for player in players:
        others, total = [each for each in players if each != player], 0.0
        for size in range(len(others) + 1):
            weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(players))
            for coalition in itertools.combinations(others, size):
                total += weight * (value({*coalition, player}) - value(set(coalition)))
        result.append(total)
    return result


def shapley_map(model, x, target, baseline, units):
    """Shapley values of units, spread evenly over their positions, one sample after the other."""
    maps, labels = [], superpixels(x, SPACES[x.ndim], units)
    for n in range(len(x)):
        players, known = labels[n].unique().tolist(), {}

        def value(coalition, n=n, known=known):
            key = frozenset(coalition)
            if key not in known:
                seen = only(key, labels[n], x[n], baseline[n])[None]
                known[key] = explained(model, seen, target[n : n + 1]).item()
            return known[key]

        plane = torch.zeros(labels[n].shape, dtype=torch.float64)
        for player, share in zip(players, shapley_values(value, players), strict=True):
            plane[labels[n] == player] = share / int((labels[n] == player).sum())
        maps.append(plane if x.ndim == 2 else plane[None])
    return torch.stack(maps)


@pytest.mark.parametrize("chunk", [1, 64])
def test_kernel_shap_gives_shapley_values_of_a_table(chunk):
    model, x, target = relu_mlp((7, 12, 12, 3), bias=0.5), normal(4, 7), torch.tensor([0, 2, 1, 1])
    baseline = normal(4, 7, seed=4)
    maps = kernel_shap(model, x, target, baseline=baseline, chunk=chunk, **given(x))
    torch.testing.assert_close(maps, shapley_map(model, x, target, baseline, 50), rtol=1e-6, atol=1e-7)
    single = kernel_shap(model.float(), x.float(), target, baseline=baseline.float(), **given(x))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "units"), [("functional", 7), ("modules", 5), ("signal", 6), ("signal", 1)])
def test_kernel_shap_gives_shapley_values_of_units(name, units):
    model, _, target = network(name, torch.float64, n=4)
    x = normal(4, 2, 24) if name == "signal" else pictures()
    if units == 7:
        assert len({int(each.max()) for each in superpixels(x, SPACES[4], units)}) > 1
    maps = kernel_shap(model, x, target, baseline=x.flip(0), **given(x, units=units))
    torch.testing.assert_close(maps, shapley_map(model, x, target, x.flip(0), units), **CLOSE)


@pytest.mark.parametrize(("samples", "exact"), [(30, True), (29, False)])
def test_kernel_shap_enumerates_as_soon_as_the_samples_suffice(samples, exact):
    model, x, target = relu_mlp((5, 12, 12, 3), bias=0.5), normal(4, 5), torch.tensor([0, 2, 1, 1])
    maps = kernel_shap(model, x, target, baseline=x.flip(0), samples=samples, **given(x))
    assert torch.allclose(maps, shapley_map(model, x, target, x.flip(0), 50), rtol=1e-6, atol=1e-7) == exact


def test_kernel_shap_is_exact_in_double_precision():
    model, x, target = relu_mlp((7, 12, 12, 3), bias=0.5), normal(4, 7), torch.tensor([0, 2, 1, 1])
    maps = kernel_shap(model, x, target, baseline=x.flip(0), **given(x))
    torch.testing.assert_close(maps, shapley_map(model, x, target, x.flip(0), 50), **CLOSE)


@pytest.mark.parametrize("samples", [3, 40, 200, 1024])
@pytest.mark.parametrize("name", ["table", "functional"])
def test_kernel_shap_sums_to_the_difference(name, samples):
    model, x, target = network(name, torch.float64)
    x = x if name == "table" else pictures(5)
    maps = kernel_shap(model, x, target, baseline=x.flip(0), samples=samples, **given(x, units=12))
    expected = explained(model, x, target) - explained(model, x.flip(0), target)
    torch.testing.assert_close(maps.flatten(1).sum(1), expected, **CLOSE)


class Triples(nn.Module):
    """Products of three features: with a zero baseline each has a third of a product as its Shapley value."""

    def forward(self, x):
        return torch.stack(
            [x[:, 0:3].prod(1) + x[:, 3:6].prod(1) + x.sum(1), x[:, 4:7].prod(1) - x[:, 10:13].prod(1)], 1
        )

    @staticmethod
    def values(x):
        first, second = x.clone(), torch.zeros_like(x)
        for values, start, sign in ((first, 0, 1), (first, 3, 1), (second, 4, 1), (second, 10, -1)):
            values[:, start : start + 3] += sign * x[:, start : start + 3].prod(1, keepdim=True) / 3
        return torch.stack([first, second], 1)


def test_sampled_kernel_shap_is_unbiased_and_converges():
    x, target = 1 + normal(60, 13), torch.arange(60) % 2
    expected = Triples.values(x)[range(60), target]
    spreads = []
    for samples in (100, 900):
        options = {"baseline": torch.zeros_like(x), "samples": samples, "chunk": 60_000}
        runs = [kernel_shap(Triples(), x, target, **options, **given(x, run)) for run in range(16)]
        errors = torch.stack(runs) - expected
        spreads.append(errors.std(0).mean())
        moved = errors.std(0) > 1e-9
        score = (errors.mean(0) / (errors.std(0) / 4))[moved]
        # Of Student's distribution with 15 degrees of freedom.
        assert abs(score.mean()) < 0.15
        assert score.std() < 1.25 * (15 / 13) ** 0.5
    assert spreads[0] / spreads[1] == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize("method", [kernel_shap, lime])
def test_linear_models_are_exact_with_few_samples(method):
    weight, x, target = normal(3, 12), normal(3, 12, seed=2), torch.tensor([2, 0, 1])
    options = {"penalty": 1e-12, "width": 10.0} if method is lime else {}
    maps = method(Linear(weight, normal(3)), x, target, baseline=x.flip(0), samples=60, **options, **given(x))
    torch.testing.assert_close(maps, weight[target] * (x - x.flip(0)), **CLOSE)


def test_subsets_are_drawn_from_the_kernel_in_pairs():
    exists = torch.tensor([[1.0, 1, 1, 1, 1], [1, 0, 1, 1, 0]], dtype=torch.float64)
    drawn = _drawn(exists, draws_for(exists), 20_000)
    torch.testing.assert_close(drawn[:, ::2] + drawn[:, 1::2], exists[:, None].expand(2, 20_000, 5))
    for row, there in enumerate(exists):
        count = int(there.sum())
        codes = (drawn[row, ::2][:, there > 0] @ (2.0 ** torch.arange(count, dtype=torch.float64))).long()
        seen = np.bincount(codes.numpy(), minlength=2**count)
        law = np.zeros(2**count)
        for code in range(1, 2**count - 1):
            size = code.bit_count()
            law[code] = (count - 1) / (math.comb(count, size) * size * (count - size))
        assert seen[0] == seen[-1] == 0
        assert scipy.stats.chisquare(seen[1:-1], 20_000 * (law / law.sum())[1:-1]).pvalue > 1e-3


def attributed(method, x, target, baseline, labels, **options):
    """What captum gives each unit of each sample, spread over its positions; numbers of units must start at zero."""
    maps = []
    for n in range(len(x)):
        mask = labels[n : n + 1] if x.ndim == 2 else labels[n : n + 1, None].repeat(1, x.shape[1], *(1,) * (x.ndim - 2))
        shares = method.attribute(
            x[n : n + 1], baselines=baseline[n : n + 1], target=int(target[n]), feature_mask=mask, **options
        )
        sizes = (labels[n, ..., None] == labels[n].flatten()).sum(-1)
        maps.append(shares[0] / sizes if x.ndim == 2 else shares[0, :1] / sizes)
    return torch.stack(maps).double().detach()


@pytest.mark.parametrize(("name", "units"), [("functional", 5), ("signal", 4)])
def test_kernel_shap_agrees_with_the_shapley_values_of_captum(name, units):
    model, _, target = network(name, torch.float64, n=3)
    x = normal(3, 2, 24) if name == "signal" else pictures(3)
    labels = superpixels(x, SPACES[x.ndim], units)
    maps = kernel_shap(model, x, target, baseline=x.flip(0), **given(x, units=units))
    expected = attributed(captum.attr.ShapleyValues(model), x, target, x.flip(0), labels)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-7)  # It adds up in float32.


def test_kernel_shap_agrees_with_that_of_captum():
    """Within its noise: captum draws subsets also where there are few, and its constraint is a large weight."""
    model, _, target = network("functional", torch.float64, n=2)
    x = pictures(2)
    labels = superpixels(x, SPACES[4], 5)
    maps = kernel_shap(model, x, target, baseline=x.flip(0), **given(x, units=5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = attributed(captum.attr.KernelShap(model), x, target, x.flip(0), labels, n_samples=2000)
    assert (maps - expected).norm() < 0.05 * maps.norm()


def by_scikit_learn(model, x, target, baseline, labels, kept, width, penalty):
    """Map and R2 of each sample by weighted ridge regression on the units that it has."""
    maps, scores = [], []
    for n in range(len(x)):
        players = labels[n].unique()
        features = kept[n][:, players].double().numpy().copy()
        features[0] = 1
        inputs = torch.stack([only(players[row > 0].tolist(), labels[n], x[n], baseline[n]) for row in features])
        values = explained(model, inputs, target[n].expand(len(inputs))).numpy()
        # The cosine of the angle between the vector of what is kept and that of ones.
        norms = np.linalg.norm(features, axis=1) * np.sqrt(len(players))
        cosine = features.sum(1) / np.where(norms > 0, norms, 1)
        weights = np.exp(-((1 - cosine) ** 2) / width**2)
        fit = Ridge(alpha=penalty, solver="cholesky").fit(features, values, sample_weight=weights)
        scores.append(r2_score(values, fit.predict(features), sample_weight=weights))
        plane = torch.zeros(labels[n].shape, dtype=torch.float64)
        for player, share in zip(players, fit.coef_, strict=True):
            plane[labels[n] == player] = share / int((labels[n] == player).sum())
        maps.append(plane if x.ndim == 2 else plane[None])
    return torch.stack(maps), torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize(("width", "penalty"), [(0.25, 1.0), (0.1, 0.01), (5.0, 30.0)])
@pytest.mark.parametrize(
    ("name", "units"), [("functional", 20), ("modules", 1), ("signal", 6), ("signal", 100), ("table", 50)]
)
def test_lime_equals_ridge_regression_of_scikit_learn(name, units, width, penalty):
    model, x, target = network(name, torch.float64, n=4)
    x = pictures() if x.ndim == 4 else x
    labels, baseline = superpixels(x, SPACES[x.ndim], units), 0.4 * x.flip(0)
    kept = (draws_for(x, "lime").bits(int(labels.max()) + 1, 150) & 1).transpose(1, 2)
    expected, scores = by_scikit_learn(model, x, target, baseline, labels, kept, width, penalty)
    options = {"baseline": baseline, "samples": 150, "units": units, "width": width, "penalty": penalty}
    with listening() as remarks:
        maps = lime(model, x, target, **options, **given(x, "lime"))
    torch.testing.assert_close(maps, expected, **CLOSE)
    (said,) = remarks["r_squared"]
    torch.testing.assert_close(said, scores, **CLOSE)
    assert ((scores < 0.9999) | (scores.isnan())).any()


@pytest.mark.parametrize("chunk", [1, 64])
def test_lime_weighs_by_closeness_and_shrinks(chunk):
    model, x, target = network("table", torch.float64)
    options = {"baseline": torch.zeros_like(x), "chunk": chunk, "samples": 300}
    maps = {
        (width, penalty): lime(model, x, target, width=width, penalty=penalty, **options, **given(x))
        for width in (0.1, 10.0)
        for penalty in (0.01, 1000.0)
    }
    assert (maps[0.1, 0.01] - maps[10.0, 0.01]).norm() > 0.02 * maps[10.0, 0.01].norm()
    assert maps[10.0, 1000.0].norm() < 0.2 * maps[10.0, 0.01].norm()


@pytest.mark.parametrize("level", [0.0, 0.3, 7.7])
def test_lime_of_a_constant_model_is_zero_and_its_fit_undefined(level):
    model, x = Linear(torch.zeros(2, 9).double(), torch.full((2,), level).double()), normal(6, 9)
    with listening() as remarks:
        maps = lime(model, x, torch.arange(6) % 2, baseline=torch.zeros_like(x), samples=50, **given(x))
    torch.testing.assert_close(maps, torch.zeros_like(maps), rtol=0, atol=1e-12)
    assert remarks["r_squared"][0].isnan().all()


def test_lime_without_a_penalty_takes_samples_with_different_numbers_of_units():
    model, x, target = network("functional", torch.float64, n=4)[0], pictures(), torch.arange(4)
    together = {"baseline": torch.zeros_like(x), "units": 20, "samples": 300}
    assert len({int(each.max()) for each in superpixels(x, SPACES[4], 20)}) > 1
    small = lime(model, x, target, penalty=1e-10, **together, **given(x))
    maps = lime(model, x, target, penalty=0.0, **together, **given(x))
    torch.testing.assert_close(maps, small, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_a_sample_does_not_depend_on_the_units_of_others(method):
    model, x, target = network("functional", torch.float64, n=4)[0], pictures(), torch.arange(4)
    options = {"units": 20, "samples": 80, "space": SPACES[4]}
    assert len({int(each.max()) for each in superpixels(x, SPACES[4], 20)}) > 1
    draws, maps = draws_for(x), method(model, x, target, baseline=x.flip(0), draws=draws_for(x), **options)
    for n in range(4):
        row = slice(n, n + 1)
        alone = method(model, x[row], target[row], baseline=x.flip(0)[row], draws=draws[row], **options)
        torch.testing.assert_close(alone, maps[row], **CLOSE)


@pytest.mark.parametrize("units", [1, 5, 7, 24, 50])
def test_pieces_of_a_signal_are_of_one_length(units):
    labels = superpixels(normal(2, 3, 24), SPACES[3], units)
    sizes = np.bincount(labels[0].numpy())
    assert len(sizes) == min(units, 24)
    assert sizes.max() - sizes.min() <= 1
    assert (labels.diff(dim=1) >= 0).all()
    assert torch.equal(*labels)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_superpixels_are_connected_and_about_as_many_as_asked(channels):
    x = pictures(3, channels, 24)
    x[:, :, :, 11:] = 1 - x[:, :, :, 11:].round()
    x[:, :, :, :11] = 0.2 * x[:, :, :, :11]
    for units in (4, 12, 40):
        for labels in superpixels(x, SPACES[4], units).numpy():
            assert set(np.unique(labels)) == set(range(labels.max() + 1))
            assert labels.max() + 1 <= 1.5 * units
            assert all(skimage.measure.label(labels == each, connectivity=1).max() == 1 for each in np.unique(labels))


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_a_picture_of_one_colour_and_one_feature(method):
    model, x, target = network("functional", torch.float64, n=2)
    maps = method(model, torch.full_like(x, 0.5), target, baseline=torch.zeros_like(x), **given(x, samples=30))
    assert maps.isfinite().all()
    line, one = Linear(normal(2, 1)), normal(2, 1, seed=3)
    # By itself the kernel of LIME is far too narrow for one unit: hiding it has the distance 1.
    options = {"width": 10.0, "penalty": 1e-12} if method is lime else {}
    maps = method(line, one, target, baseline=torch.zeros_like(one), samples=30, **options, **given(one))
    torch.testing.assert_close(maps, (line.weight[target] * one).detach(), **CLOSE)
