"""eMPRT and sMPRT: against literal re-implementations, and what they are known to miss."""

import numpy as np
import pytest
import torch

from cases import Functional, case_of, network, rows, values
from harness.catalogue import METRICS
from harness.entries import OptionError
from harness.metrics.randomization_descriptors import histogram_entropy


@pytest.mark.parametrize("bins", [2, 10, 100])
def test_the_entropy_is_that_of_numpys_histogram(bins):
    maps = torch.randn(5, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[1] = maps[1].exp()
    expected = []
    for each in maps.flatten(1).numpy():
        share = np.histogram(each, bins)[0] / each.size
        expected.append(-sum(p * np.log(p) for p in share if p > 0))
    torch.testing.assert_close(histogram_entropy(maps, bins), torch.tensor(expected, dtype=torch.float64))


def test_the_entropy_of_equally_filled_bins_is_their_logarithm_and_one_outlier_takes_nearly_all_of_it():
    even = torch.arange(100, dtype=torch.float64).view(1, 10, 10)
    assert float(histogram_entropy(even, 100)) == pytest.approx(np.log(100))
    outlier = even.clone()
    outlier[0, 0, 0] = 1e6
    assert float(histogram_entropy(outlier, 100)) < 0.1


def case(method, n=12, side=14):
    model, _, target = network("functional", n=n)
    x = torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(0))
    return case_of(model, x, target, method, build=Functional)


def test_noise_neither_rises_nor_falls_and_what_ignores_the_model_stays_exactly():
    frame = rows(case("random", n=40, side=24), "efficient_parameter_randomization", full_draws=4)
    rise = values(frame, "entropy_rise")
    assert abs(rise.mean()) < 4 * rise.std() / len(rise) ** 0.5
    assert (values(rows(case("sobel"), "efficient_parameter_randomization"), "entropy_rise") == 0).all()


def test_the_rise_is_relative_to_the_trained_networks_map():
    frame = rows(case("gradient"), "efficient_parameter_randomization", full_draws=1, bins=20)
    given = case("gradient")
    from harness.metrics.cascade import Randomization, full

    stage = full(given, 0, Randomization())
    entropies = [histogram_entropy(maps.sum(1), 20) for maps in (given.maps, given.explain(stage.model))]
    torch.testing.assert_close(values(frame, "entropy"), entropies[0])
    torch.testing.assert_close(values(frame, "entropy_rise"), (entropies[1] - entropies[0]) / entropies[0])


@pytest.mark.parametrize("metric", ["efficient_parameter_randomization", "smooth_parameter_randomization"])
def test_a_constant_map_has_neither(metric):
    options = {"samples": 2} if metric.startswith("smooth") else {}
    frame = rows(case("constant"), metric, **options)
    assert frame["value"].isna().all()
    assert set(frame["reason"]) <= {"constant map (trained network)", "constant map (compared network)"}


def test_smooth_maps_are_means_over_noisy_inputs():
    given = case("gradient", n=3)
    frame = rows(given, "smooth_parameter_randomization", samples=4, noise=0.3)
    draws = given.draws("smooth_parameter_randomization")
    spread = (given.x.flatten(1).amax(1) - given.x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    from harness.metrics.cascade import Randomization, full
    from harness.metrics.similarity import spearman

    def smoothed(model):
        inputs = [given.x + 0.3 * spread * draws.normal(2, 14, 14, draw=i).float() for i in range(4)]
        return torch.stack([given.explain(model, x) for x in inputs]).mean(0)

    maps = [smoothed(model).sum(1) for model in (given.model, full(given, 0, Randomization()).model)]
    torch.testing.assert_close(values(frame, "spearman", mode="full", sign="signed"), spearman(*maps))
    assert set(frame["mode"]) == {"bottom_up", "full"}


@pytest.mark.parametrize(("method", "one"), [("sobel", True), ("random", False)])
def test_what_ignores_everything_stays_and_fresh_noise_does_not(method, one):
    similar = values(rows(case(method), "smooth_parameter_randomization", samples=3), "spearman", sign="signed")
    # The mean of an edge detector over noisy inputs is the same at every stage, because the noise is.
    assert bool((similar == 1).all()) == one
    assert one or abs(float(similar.mean())) < 0.1


def test_one_bin_has_no_entropy_and_noise_no_negative_spread():
    for metric, option, value in (("efficient", "bins", 1), ("smooth", "noise", -0.1)):
        with pytest.raises(OptionError, match=f"'{option}' expects .* greater than or equal"):
            METRICS[f"{metric}_parameter_randomization"].resolve({option: value})


def test_the_noise_has_the_range_of_its_own_sample_and_not_of_the_batch():
    whole, part = case("gradient", n=4), case("gradient", n=4)
    whole.x[0] *= 100
    part.x, part.target, part.samples = whole.x[2:], whole.target[2:], whole.samples[2:]
    part.source.calibration = whole.source.calibration = whole.x[1:]
    first, second = (rows(each, "smooth_parameter_randomization", samples=3) for each in (whole, part))
    first = first[first["sample"].isin(part.samples)]
    torch.testing.assert_close(torch.tensor(first["value"].to_numpy()), torch.tensor(second["value"].to_numpy()))


@pytest.mark.parametrize("metric", ["efficient_parameter_randomization", "smooth_parameter_randomization"])
def test_statistics_of_batch_norms_follow_the_policy(metric):
    options = {"samples": 2} if metric.startswith("smooth") else {}
    found = [
        rows(case("gradient", n=3), metric, batch_norm=policy, **options)["value"] for policy in ("keep", "recalibrate")
    ]
    assert not found[0].equals(found[1])


def test_maps_whose_channels_cancel_or_that_are_constant_on_one_side_have_no_entropy():
    maps = torch.randn(3, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    for method, channels, reason in (("gradient", (1, -1), "trained"), ("constant", (1, 1), "compared")):
        given = case(method, n=3)
        given.__dict__["maps"] = maps[:, :1] * torch.tensor(channels).view(1, 2, 1, 1)
        frame = rows(given, "efficient_parameter_randomization", full_draws=1)
        rise = frame[frame["measure"] == "entropy_rise"]
        assert rise["value"].isna().all()
        assert set(rise["reason"]) == {f"constant map ({reason} network)"}


def test_a_stochastic_method_has_new_noise_for_every_noisy_input_of_every_network(monkeypatch):
    given, calls = case("gradient", n=2), []
    explain = given.explain

    def noted(*arguments, call):
        calls.append(call)
        return explain(*arguments, call=call)

    monkeypatch.setattr(given, "explain", noted)
    rows(given, "smooth_parameter_randomization", samples=3, cascade_draws=2)
    assert len(calls) == len(set(calls)) == 3 * (1 + 2 * len(given.source.blocks))
