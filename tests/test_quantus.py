"""Where quantus 0.6 measures something else than its name says, and who is right: a linear model decides."""

import numpy as np
import pytest
import quantus
import torch

from cases import Linear, case_of, rows, values

SIDE, CHANNELS, N = 6, 3, 5
PIXELS = SIDE**2
RAW = {"abs": False, "normalise": False, "disable_warnings": True}


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def linear():
    """A linear model of colour images, the samples, and the exact map: what each value contributes."""
    weight = seeded(2, CHANNELS * PIXELS, seed=1) - 0.3
    x = seeded(N, CHANNELS, SIDE, SIDE, seed=2)
    return weight, x, weight[0].view(1, CHANNELS, SIDE, SIDE) * x


def theirs(metric, weight, x, maps, target=0):
    arrays = {"x_batch": x.float().numpy(), "a_batch": maps.float().numpy()}
    y = np.full(len(x), target)
    return metric(model=Linear(weight).float().eval(), y_batch=y, device="cpu", softmax=False, **arrays)


def ours(name, weight, x, maps, **options):
    return rows(case_of(Linear(weight).eval(), x, torch.zeros(len(x), dtype=torch.int64), maps), name, **options)


def test_completeness_of_theirs_compares_floats_for_equality(linear):
    weight, x, exact = linear
    verdicts = theirs(quantus.Completeness(perturb_baseline=0.0, **RAW), weight, x, exact)
    assert not all(verdicts), "refused for the rounding of a float32 sum"
    frame = ours("completeness", weight, x, ("input_x_gradient", {}))
    assert values(frame, "relative_residual").max() < 1e-12


def test_sensitivity_n_of_theirs_is_one_number_over_images(linear):
    weight, x, exact = linear
    metric = quantus.SensitivityN(n_max_percentage=0.8, features_in_step=18, perturb_baseline=0.0, **RAW)
    assert len(theirs(metric, weight, x, exact)) == 1, "a correlation over the samples of a batch, not over subsets"
    frame = ours("sensitivity_n", weight, x, exact, fill="black", sizes=4)
    assert values(frame, "mean_pearson").tolist() == pytest.approx([1.0] * N, abs=1e-9)
    # A map that says nothing of this sample's pixels but has the right total for each image.
    level = exact.flatten(1).mean(1).view(-1, 1, 1, 1).expand_as(exact) + 1e-3 * (seeded(*x.shape, seed=3) - 0.5)
    assert abs(values(ours("sensitivity_n", weight, x, level, fill="black"), "mean_pearson")).max() < 0.5


def test_faithfulness_correlation_agrees_on_what_is_exact(linear):
    weight, x, exact = linear
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=60, subset_size=10, perturb_baseline=0.0, return_aggregate=False, **RAW
    )
    assert theirs(metric, weight, x, exact) == pytest.approx([1.0] * N, abs=1e-5)
    frame = ours("faithfulness_correlation", weight, x, exact, fill="black")
    assert values(frame, "pearson").tolist() == pytest.approx([1.0] * N, abs=1e-9)


def test_pixel_flipping_of_theirs_fills_black_with_the_minimum_and_has_no_beginning(linear):
    weight, x, exact = linear
    metric = quantus.PixelFlipping(
        features_in_step=PIXELS, perturb_baseline="black", return_auc_per_sample=False, **RAW
    )
    curves = np.array(theirs(metric, weight, x, exact))
    assert curves.shape == (N, CHANNELS), "three steps of scalars, and no untouched sample"
    smallest = x.flatten(1).amin(1) * weight[0].sum()
    assert curves[:, -1].tolist() == pytest.approx(smallest.tolist(), rel=1e-4)
    frame = ours("pixel_flipping", weight, x, exact, fill="black", steps=3)
    untouched = (weight[0] * x.flatten(1)).sum(1)
    assert values(frame, "logit", mode="most_first", step=0.0).tolist() == pytest.approx(untouched.tolist())
    assert values(frame, "logit", mode="most_first", step=1.0).tolist() == [0.0] * N


def test_monotonicity_of_theirs_is_true_of_a_model_that_falls(linear):
    _, x, _ = linear
    signs = torch.where(seeded(1, CHANNELS, SIDE, SIDE, seed=5) > 0.5, 1.0, -1.0).double()
    weight, maps = torch.stack([signs.flatten(), -signs.flatten()]), signs * x
    metric = quantus.Monotonicity(features_in_step=3, perturb_baseline=0.0, **{**RAW, "abs": True})
    assert all(theirs(metric, weight, x, maps)), "the baseline is replaced by the baseline, so nothing ever changes"
    frame = ours("monotonicity", weight, x, maps, fill="black", steps=PIXELS)
    assert values(frame, "monotonic", mode="most_first").tolist() == [0.0] * N


def test_infidelity_of_theirs_is_not_zero_for_the_exact_map(linear):
    weight, x, exact = linear
    metric = quantus.Infidelity(perturb_baseline=0.0, perturb_patch_sizes=[2], n_perturb_samples=4, **RAW)
    assert min(theirs(metric, weight, x, exact)) > 1, "patches pile up, and contributions are multiplied by the input"
    frame = ours("infidelity", weight, x, exact, fill="black", side=2)
    assert values(frame, "infidelity").max() < 1e-20


def test_road_of_theirs_takes_places_in_all_channels_for_places_in_the_picture(linear):
    weight, x, exact = linear
    seen = []

    def record(arr, indices, **_):
        seen.append(np.asarray(indices))
        return arr

    theirs(quantus.ROAD(percentages=[50], noise=0.0, perturb_func=record, **RAW), weight, x, exact)
    assert max(indices.max() for indices in seen) >= PIXELS, "there is no such pixel"
    with pytest.raises(IndexError):
        theirs(quantus.ROAD(percentages=[50], noise=0.0, **RAW), weight, x, exact)
    frame = ours("road", weight, x, exact, fill="black", fractions=[0.5])
    most = exact.sum(1).flatten(1).argsort(1, descending=True)[:, : PIXELS // 2]
    left = x.flatten(2).scatter(2, most[:, None].expand(-1, CHANNELS, -1), 0.0).flatten(1)
    expected = (weight[0] * left).sum(1)
    assert values(frame, "logit", mode="most_first", step=0.5).tolist() == pytest.approx(expected.tolist())
