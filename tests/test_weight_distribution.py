"""Weight distributions: scipy, closed forms of spectra, laws of initializers, uniform p, and shuffled weights."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import harness
from closed_forms import normal
from harness import Artifact, Samples, Score
from harness.digests import digest
from harness.methods.weight_distribution import weight_distribution
from harness.methods.weight_laws import (
    FIRST_TWIN,
    Law,
    against_law,
    edge_of,
    laws_of,
    matrices_of,
    quantiles,
    singular_values,
    structure,
)
from harness.models.loaded import LoadedModel
from harness.space import InputSpace
from harness.types import NotApplicableError


def build():
    return nn.Sequential(
        *(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(12 * 16, 40), nn.ReLU(), nn.Linear(40, 10)),
    )


X = torch.zeros(2, 2, 6, 6)


def source_of(seed=0, build=build):
    model = build().eval()
    return LoadedModel(model, build, seed, X[:1], lambda: X)


def ask(model, source, reference=None, **options):
    """({(measure, layer, step): value}, {(name, layer): artifact})."""
    data, space = Samples(X, None, ["a", "b"]), InputSpace.undeclared(X)
    with torch.no_grad():
        found = list(weight_distribution(model, space, data, source=source, reference=reference or model, **options))
    scores = {(each.measure, each.stage, each.step): each.values.item() for each in found if isinstance(each, Score)}
    return scores, {(each.name, each.stage): each for each in found if isinstance(each, Artifact)}


def with_order_lost(model, seed):
    """The same weights in another order."""
    generator, copy = torch.Generator().manual_seed(seed), build()
    copy.load_state_dict(model.state_dict())
    for parameter in copy.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return copy.eval()


def test_distances_and_moments_are_those_of_scipy():
    weights, law = 1.5 * normal(30, 40, seed=1) + 0.2, np.sort(normal(5000, seed=2).numpy())
    found = against_law(weights, Law(law, len(law)), 100_000)
    flat = weights.flatten().numpy()
    same = stats.ks_2samp(flat, law, method="asymp")
    assert found["kolmogorov_smirnov"] == pytest.approx(same.statistic, abs=1e-12)
    assert found["kolmogorov_smirnov_p"] == pytest.approx(same.pvalue, rel=1e-9)
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(flat, law) / law.std(), rel=1e-12)
    assert found["mean"] == pytest.approx(flat.mean() / law.std())
    assert found["deviation_ratio"] == pytest.approx(flat.std() / law.std())
    assert (found["skewness"], found["kurtosis"]) == pytest.approx((stats.skew(flat), stats.kurtosis(flat)))


@pytest.mark.parametrize(("factor", "move"), [(3.0, 0.0), (1.0, 0.7), (1.0, 0.0)])
def test_what_is_scaled_or_moved_has_a_closed_form_whatever_the_scale_of_the_law(factor, move):
    """Of uniform laws on [-a, a]: (1 - 1 / factor) / 2, and for a shift by d standard deviations d / sqrt 12."""
    law = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    deviation = 3**-0.5
    for scale in (1e-3, 1.0, 50.0):
        weights = scale * (factor * law[:20_000] + move * deviation).view(100, 200)
        found = against_law(weights, Law(scale * law.numpy(), len(law)), 100_000)
        distance = (1 - 1 / factor) / 2 if factor > 1 else move / 12**0.5
        area = (factor - 1) / 2 / deviation if factor > 1 else move
        assert found["kolmogorov_smirnov"] == pytest.approx(distance, abs=1e-3)
        assert found["wasserstein"] == pytest.approx(area, abs=1e-3)
        assert found["deviation_ratio"] == pytest.approx(factor, rel=1e-3)
        assert found["kurtosis"] == pytest.approx(-1.2, abs=1e-3)


def test_quantiles_stand_for_large_tensors_and_do_not_depend_on_the_order():
    weights, law = normal(500, 100, seed=3), np.sort(normal(50_000, seed=4).numpy() * 1.1)
    whole = against_law(weights, Law(law, len(law)), 100_000)
    some = against_law(weights, Law(quantiles(torch.from_numpy(law), 2000), len(law)), 2000)
    for measure in ("kolmogorov_smirnov", "wasserstein", "deviation_ratio", "kurtosis"):
        assert some[measure] == pytest.approx(whole[measure], abs=2e-2), measure
    assert some["kolmogorov_smirnov"] == pytest.approx(whole["kolmogorov_smirnov"], abs=1e-3)
    other = weights.flatten()[normal(50_000, seed=5).argsort()].view(500, 100)
    assert np.array_equal(quantiles(weights, 2000), quantiles(other, 2000))
    assert quantiles(torch.arange(10.0), 5).tolist() == [1, 3, 5, 7, 9]
    assert quantiles(torch.arange(3.0).flip(0), 5).tolist() == [0, 1, 2]


def test_singular_values_norm_and_stable_rank_are_those_of_numpy():
    for weights in (normal(7, 20, seed=1), normal(20, 7, seed=2)):
        expected = np.linalg.svd(weights.numpy(), compute_uv=False)
        assert singular_values(weights).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
        found = structure(weights)
        assert found["spectral_norm"] == pytest.approx(np.linalg.norm(weights.numpy(), 2))
        assert found["stable_rank"] == pytest.approx((weights**2).sum().item() / expected[0] ** 2)
    assert structure(torch.outer(torch.arange(1.0, 5), torch.ones(6)))["stable_rank"] == pytest.approx(1)
    assert structure(torch.eye(6))["stable_rank"] == pytest.approx(6)


@pytest.mark.parametrize(("rows", "columns"), [(200, 800), (800, 200), (300, 300)])
def test_the_edge_is_that_of_marchenko_and_pastur_and_the_largest_value_of_random_matrices_is_there(rows, columns):
    weights = 0.3 * normal(rows, columns, seed=1)
    limit = weights.std().item() * (rows**0.5 + columns**0.5)
    assert limit < edge_of(weights) < 1.05 * limit
    assert 0.95 * limit < singular_values(weights)[0] < edge_of(weights)
    # It moves with the variance of the weights and with nothing else.
    assert edge_of(7 * weights + 1) == pytest.approx(7 * edge_of(weights))


@pytest.mark.parametrize("draw", [torch.randn, lambda *shape, **how: torch.rand(*shape, **how) - 0.3])
@pytest.mark.parametrize(("rows", "columns"), [(16, 25), (10, 256), (60, 60)])
def test_random_matrices_have_no_excess(rows, columns, draw):
    """Whatever their mean: one value in a thousand matrices, of which there are 200."""
    generator = torch.Generator().manual_seed(0)
    drawn = (draw(rows, columns, generator=generator, dtype=torch.float64) for _ in range(200))
    assert sum(structure(each)["spectral_excess"] > 0 for each in drawn) <= 2


@pytest.mark.parametrize(("strength", "seen"), [(0.5, 0), (2.0, 1)])
def test_a_planted_direction_is_found_where_it_is_strong_enough_and_not_below(strength, seen):
    """A rank one matrix whose singular value is so many edges, in noise: it leaves the bulk above (m n)^(1/4)."""
    rows, columns = 60, 150
    noise, edge = normal(rows, columns, seed=1), rows**0.5 + columns**0.5
    left, right = (each / each.norm() for each in (normal(rows, seed=2), normal(columns, seed=3)))
    found = structure(noise + strength * edge * 0.9 * torch.outer(left, right))
    assert found["spectral_excess"] == pytest.approx(seen / rows)


def test_the_law_of_linear_layers_and_convolutions_is_uniform_within_one_over_the_root_of_the_inputs():
    source = source_of()
    laws = laws_of(source, 6, 100_000)
    assert set(laws) == {"0.weight", "4.weight", "6.weight"}
    for name, inputs in (("0.weight", 18), ("4.weight", 192), ("6.weight", 40)):
        bound = inputs**-0.5
        law, size = laws[name].values, source.model.get_parameter(name).numel()
        assert len(law) == laws[name].drawn == 6 * size
        assert stats.kstest(law, stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.001, name
        assert stats.kstest(law, stats.uniform(-1.1 * bound, 2.2 * bound).cdf).pvalue < 0.05, name
        assert laws[name].scale == pytest.approx(bound / 3**0.5, rel=0.1)
        # They are the twins'.
        twins = [matrices_of(source.twin(FIRST_TWIN + draw))[name].flatten() for draw in range(6)]
        assert np.array_equal(law, torch.cat(twins).sort().values.numpy())


def test_of_a_network_there_are_scores_by_layer_and_their_means():
    source = source_of()
    source.model[4].weight.data *= 2
    source.model[6].weight.data[:] = torch.outer(torch.arange(1.0, 11), torch.arange(1.0, 41))
    before = digest(source.model.state_dict())
    scores, artifacts = ask(source.model, source)
    assert digest(source.model.state_dict()) == before
    names = ["0.weight", "4.weight", "6.weight"]
    for measure in ("kolmogorov_smirnov", "spectral_excess", "wasserstein", "stable_rank"):
        mean = np.mean([scores[measure, name, None] for name in names])
        assert scores[measure, None, None] == pytest.approx(mean, rel=1e-5)
    assert scores["deviation_ratio", "4.weight", None] == pytest.approx(2, rel=0.05)
    assert scores["kolmogorov_smirnov", "4.weight", None] == pytest.approx(0.25, abs=0.02)
    assert scores["kolmogorov_smirnov", "0.weight", None] < 0.12
    assert scores["spectral_excess", "6.weight", None] == pytest.approx(0.1)
    assert scores["spectral_excess", "4.weight", None] == 0
    histogram = artifacts["distribution of weights", "4.weight"]
    width = histogram.columns[1] - histogram.columns[0]
    assert (histogram.values.sum(1) * width).tolist() == pytest.approx([1, 1], rel=1e-4)
    spectrum = artifacts["singular values", "6.weight"].values
    assert (spectrum[0] > spectrum[1]).sum() == 1
    assert {stage for _, stage in artifacts} == set(names)


def test_shuffled_weights_pass_as_the_distribution_and_fail_as_the_structure():
    source = source_of()
    layer = source.model[4].weight.data
    layer += 3 * layer.std() * torch.outer(normal(40, seed=1), normal(192, seed=2)).float() * 0.3
    trained, _ = ask(source.model, source)
    assert trained["spectral_excess", "4.weight", None] > 0
    for seed in range(10):
        shuffled, _ = ask(with_order_lost(source.model, seed), source, source.model)
        assert shuffled["spectral_excess", None, None] == 0
        for (measure, stage, step), value in trained.items():
            if measure not in ("spectral_excess", "spectral_norm", "stable_rank"):
                assert shuffled[measure, stage, step] == pytest.approx(value, rel=1e-6), measure
    again, _ = ask(source.twin(0), source, source.model)
    assert again["kolmogorov_smirnov", None, None] < trained["kolmogorov_smirnov", None, None] / 1.5


def test_a_weight_that_is_the_same_everywhere_has_no_shape():
    source = source_of()
    source.model[6].weight.data[:] = 0.01
    data, space = Samples(X, None, ["a", "b"]), InputSpace.undeclared(X)
    found = weight_distribution(source.model, space, data, source=source, reference=source.model)
    unknown = {
        (each.measure, each.stage): [*each.undefined] for each in found if each.__class__ is Score and each.undefined
    }
    assert set(unknown) == {(m, s) for m in ("skewness", "kurtosis") for s in ("6.weight", None)}
    assert ["all weights of a layer are the same"] in unknown.values()


def test_without_a_matrix_that_is_drawn_it_does_not_apply():
    source = source_of(build=lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.PReLU()))
    with pytest.raises(NotApplicableError, match="no layer has a matrix"):
        ask(source.model, source)


def test_a_history_needs_a_recipe_and_is_of_the_trained_network_alone():
    source = source_of()
    with pytest.raises(NotApplicableError, match="no history: the model has no training recipe"):
        ask(source.model, source, history=True)
    scores, _ = ask(source.twin(0), source, source.model, history=True)
    assert all(step is None for *_, step in scores)
    start, end = source.twin(3), source.model
    source.history = lambda: [(0.0, start), (1.0, end)]
    scores, artifacts = ask(source.model, source, history=True)
    for measure in ("kolmogorov_smirnov", "spectral_excess"):
        for stage in ("4.weight", None):
            assert scores[measure, stage, 1.0] == scores[measure, stage, None]
            assert scores[measure, stage, 0.0] == ask(start, source)[0][measure, stage, None]
    course = artifacts["weights during training", None]
    assert course.columns == (0.0, 1.0)
    assert course.values[0, 0].item() == pytest.approx(scores["kolmogorov_smirnov", None, 0.0])


@pytest.mark.slow
def test_p_of_networks_that_were_re_initialized_is_uniform_against_twins_and_against_the_law_itself():
    """Each network against twins of its own, because those that share them are not independent."""
    sampled: dict[str, list[float]] = {}
    for seed in range(300):
        source = source_of(seed)
        matrices = matrices_of(source.twin(0))
        for name, law in laws_of(source, 4, 100_000).items():
            bound = matrices[name].shape[1] ** -0.5
            exact = stats.kstest(matrices[name].flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue
            sampled.setdefault(name, []).append(against_law(matrices[name], law, 100_000)["kolmogorov_smirnov_p"])
            sampled.setdefault(f"{name} exactly", []).append(exact)
    for name, p in sampled.items():
        assert stats.kstest(p, "uniform").pvalue > 0.001, name
        # Both tails, as those of 300 uniform numbers: 15 with a standard deviation of 3.8.
        assert 3 < (np.array(p) < 0.05).sum() < 30, name
        assert 3 < (np.array(p) > 0.95).sum() < 30, name


@pytest.mark.slow
def test_a_trained_network_is_told_from_its_initializer_and_from_shuffled_weights_by_structure_alone(tmp_path):
    study = {
        "name": "weights",
        "data": {"source": "mnist-5k", "samples": 20},
        "models": ["mnist-cnn"],
        "introspections": ["weight_distribution"],
        "metrics": [{"metric": "network_randomization", "stages": 1}],
    }
    results = harness.run(study, tmp_path / "run", device="cpu", views=False)
    assert results.failures.empty
    table = results.table("global")
    whole = table[table["stage"].isna()].set_index("measure")
    assert whole["verdict"].to_dict() == {"spectral_excess": "PASS", "kolmogorov_smirnov": "FAIL"}
    distance = whole.loc["kolmogorov_smirnov"]
    assert "shuffled" in distance["reason"]
    assert distance["reinitialized_effect"] > 10
    assert distance["shuffled"] == pytest.approx(distance["trained"], abs=1e-9)
    assert whole.loc["spectral_excess", "shuffled"] < 0.1 * whole.loc["spectral_excess", "trained"]
