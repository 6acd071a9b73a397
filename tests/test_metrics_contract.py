"""What every metric promises: the same numbers whatever the chunk, and nothing left behind in the model or the maps."""

import numpy as np
import pytest
import torch

import harness
from cases import case_of, network, rows, with_truth
from harness import METRICS
from harness.digests import digest
from harness.entries import GLOBAL

OURS = sorted(
    name
    for name, entry in METRICS.items()
    if entry.function.__module__.startswith("harness.")
    and not {"partner", "recipe"} & set(entry.needs)
    and entry.family != GLOBAL  # those of introspections are in test_introspections
)
SMALL = {
    "parameter_randomization": {"full_draws": 2, "cascade_draws": 1},
    "smooth_parameter_randomization": {"samples": 2},
    # Patches, and many subsets: what a pixel costs here is hardly above rounding, which then swaps ranks.
    "sensitivity_n": {"sizes": 3, "subsets": 50, "patch": 3},
    "completeness_convergence": {"steps": [2, 5]},
}
NUMERICS = [("float64", 1e-9), pytest.param("float32", 1e-3, marks=pytest.mark.slow)]


def case_for(name, chunk, dtype=torch.float64, device="cpu"):
    model, x, _ = network("functional", dtype, n=12)
    model, x = model.to(device), x.to(device)
    claims = "claim" in METRICS[name].needs
    method = ("integrated_gradients", {"steps": 4, "baseline": "grey"}) if claims else "gradient"
    target = torch.arange(12, device=device) % 2
    case = case_of(model, x, target, method, build=lambda: network("functional", dtype)[0].to(device), chunk=chunk)
    return with_truth(case)


def options_of(name):
    known = METRICS[name].options
    options = {key: value for key, value in SMALL.get(name, {}).items() if key in known}
    own = known["fill"].default if "fill" in known else None
    return options | ({"fill": own if isinstance(own, str) else "grey"} if "fill" in known else {})


def compared(one, other, tolerance):
    """The same rows, and values that agree for at least 99 % of them."""
    labels = [column for column in one.columns if column not in ("value", "reason")]
    assert one[labels].equals(other[labels])
    first, second = (frame["value"].to_numpy() for frame in (one, other))
    close = np.isclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert close.mean() >= (1 if tolerance < 1e-6 else 0.99)
    assert abs(np.nanmean(first) - np.nanmean(second)) <= tolerance * max(1, abs(np.nanmean(first)))


@pytest.mark.parametrize(("dtype", "tolerance"), NUMERICS)
@pytest.mark.parametrize("name", OURS)
def test_the_chunk_changes_nothing_that_counts(name, dtype, tolerance):
    frames = [rows(case_for(name, chunk, getattr(torch, dtype)), name, **options_of(name)) for chunk in (64, 5)]
    compared(*frames, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_twice_the_same_is_bit_identical(name):
    once, again = (rows(case_for(name, 7, torch.float32), name, **options_of(name)) for _ in range(2))
    assert once.equals(again)


if torch.cuda.is_available():

    @pytest.mark.parametrize("name", OURS)
    def test_cuda_agrees_with_the_cpu_in_double(name):
        frames = [rows(case_for(name, 64, torch.float64, where), name, **options_of(name)) for where in ("cpu", "cuda")]
        compared(*frames, 1e-9)


def test_every_headline_reaches_the_table():
    model, x, _ = network("functional", torch.float32, n=12)
    space = harness.InputSpace("image", mean=(0.0, 0.0), std=(1.0, 1.0))
    metrics = [{"metric": name, **options_of(name)} for name in OURS]
    results = harness.evaluate(
        model,
        x,
        [row % 2 for row in range(12)],
        methods=["input_x_gradient", {"method": "integrated_gradients", "steps": 4}],
        metrics=metrics,
        space=space,
        target="label",
        masks=(x[:, :1] > x.mean()).float(),
    )
    assert results.failures.empty
    headlines = results.table("headlines")
    # Parts come with data sources only.
    for name in (each for each in OURS if "parts" not in METRICS[each].needs):
        rows_of_metric = headlines[(headlines["metric"] == name) & (headlines["status"] == "done")]
        assert len(rows_of_metric), name
        assert rows_of_metric["value"].notna().any(), name


@pytest.mark.parametrize("name", OURS)
def test_model_samples_and_maps_are_left_as_they_were(name):
    case = case_for(name, 64)
    maps, state, x = case.maps.clone(), digest(dict(case.model.state_dict())), case.x.clone()
    rows(case, name, **options_of(name))
    assert torch.equal(case.maps, maps)
    assert torch.equal(case.x, x)
    assert digest(dict(case.model.state_dict())) == state
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module.training
