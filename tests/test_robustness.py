"""Robustness: closed forms on linear models, and a literal twin and captum on the neighbours that the model saw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.metrics import sensitivity_max
from sample_maps import normal
from torch import nn

from cases import Linear, case_of, network, rows, values
from harness import METRICS
from harness.case import Explainer, Labelled
from harness.entries import Method, OptionError
from harness.space import InputSpace
from harness.types import NotApplicableError

MEASURES = {
    "max_sensitivity": "max_sensitivity",
    "average_sensitivity": "max_sensitivity",
    "unscaled_max_sensitivity": "max_sensitivity",
    "unscaled_average_sensitivity": "max_sensitivity",
    "local_lipschitz": "local_lipschitz",
    "relative_input_stability": "relative_stability",
    "relative_output_stability": "relative_stability",
}
METRIC_NAMES = tuple(dict.fromkeys(MEASURES.values()))
UNDECLARED = InputSpace("table")


def found(case, measure, **options):
    return values(rows(case, MEASURES[measure], **options), measure)


def linear_case(method, shape=(2, 5, 6), n=5, weight=None, **options):
    weight = normal(4, *shape, seed=4) if weight is None else weight
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return case_of(Linear(weight.flatten(1)), x, torch.arange(n) % len(weight), method, **options)


def network_case(name, method, **options):
    """Samples of which the prediction is not always the target."""
    model, x, target = network(name, torch.float64)
    return case_of(model, x, target, method, **options)


def explained(case, function, **claims):
    """The same case with maps by any function of model, samples and target."""
    return replace(case, explainer=Explainer(Method("test", function, "test", 1, (), **claims), {}))


def watched(case, neighbours, radius):
    """The neighbours of each sample as the model saw them last: [neighbours, n, ...]."""
    case.maps  # noqa: B018
    seen = []
    handle = case.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    rows(case, "max_sensitivity", neighbours=neighbours, radius=radius)
    handle.remove()
    return torch.cat(seen)[-neighbours * len(case.x) :].view(neighbours, *case.x.shape)


def literal(case, near):
    """Every measure of each sample, by loops over single neighbours; the map of each is made in a batch of its own."""
    maps = [case.explain(x=each) for each in near]
    logits = [case.logits(each) for each in near]
    table = {measure: [] for measure in ("prediction_unchanged", *MEASURES)}
    ours = case.logits(case.x)
    for i in range(len(case.x)):
        a, h, x = (each[i].flatten().numpy() for each in (case.maps, ours, case.x))
        kept = [k for k in range(len(near)) if np.argmax(logits[k][i].numpy()) == np.argmax(h)]
        moved = [np.linalg.norm(maps[k][i].flatten().numpy() - a) for k in kept]
        inputs = [np.linalg.norm(near[k][i].flatten().numpy() - x) for k in kept]
        outputs = [np.linalg.norm(logits[k][i].numpy() - h) for k in kept]
        size = np.linalg.norm(a)
        table["prediction_unchanged"].append(len(kept) / len(near))
        table["max_sensitivity"].append(max(moved) / size)
        table["average_sensitivity"].append(np.mean(moved) / size)
        table["unscaled_max_sensitivity"].append(max(moved))
        table["unscaled_average_sensitivity"].append(np.mean(moved))
        table["local_lipschitz"].append(max(m / d for m, d in zip(moved, inputs, strict=True)))
        relative = [m / size / (d / np.linalg.norm(x)) for m, d in zip(moved, inputs, strict=True)]
        table["relative_input_stability"].append(max(relative))
        relative = [m / size / (d / np.linalg.norm(h)) for m, d in zip(moved, outputs, strict=True)]
        table["relative_output_stability"].append(max(relative))
    return table


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 11), (9,)])
def test_the_gradient_of_a_linear_model_does_not_change_at_all(shape):
    case = linear_case("gradient", shape)
    for measure in MEASURES:
        assert (found(case, measure) == 0).all()


def test_the_slope_of_input_x_gradient_lies_between_the_weights():
    case = linear_case("input_x_gradient")
    slopes = found(case, "local_lipschitz", neighbours=30)
    weights = case.model.weight.detach().abs()[case.target]
    near = watched(linear_case("input_x_gradient"), 30, 0.02) - case.x
    expected = [
        max(float((w * d).norm() / d.norm()) for d in near[:, i].flatten(1)) for i, w in enumerate(weights.unbind())
    ]
    assert slopes.tolist() == pytest.approx(expected, rel=1e-9)
    assert (weights.amin(1) < slopes).all()
    assert (slopes < weights.amax(1)).all()


@pytest.mark.parametrize("scale", [0.3, 7.0])
def test_weights_of_one_size_make_every_slope_that_size_and_the_map_as_steep_as_the_input(scale):
    case = linear_case("input_x_gradient", weight=scale * normal(4, 2, 5, 6).sign())
    np.testing.assert_allclose(found(case, "local_lipschitz"), scale, rtol=1e-9)
    np.testing.assert_allclose(found(case, "relative_input_stability"), 1, rtol=1e-9)


def test_a_map_that_is_proportional_to_the_output_changes_by_the_same_part():
    case = explained(
        linear_case("gradient"), lambda model, x, target: torch.ones_like(x) * model(x).norm(dim=1)[:, None, None, None]
    )
    below = found(case, "relative_output_stability", neighbours=20)
    assert (below <= 1 + 1e-9).all()
    single = linear_case("input_x_gradient", (1,), weight=normal(3, 1))
    np.testing.assert_allclose(found(single, "relative_output_stability"), 1, rtol=1e-9)


@pytest.mark.parametrize("method", ["input_x_gradient", ("smoothgrad", {"samples": 3}), "grad_cam", "input_magnitude"])
@pytest.mark.parametrize(("name", "radius"), [("gelu", 1.0), ("tanh", 1.0), ("signal", 0.6)])
def test_a_slow_literal_twin_agrees(name, radius, method):
    case = network_case(name, method)
    near = watched(network_case(name, "gradient"), 9, radius)
    expected = literal(case, near)
    assert 0 < min(expected["prediction_unchanged"]) < 1
    for metric in METRIC_NAMES:
        frame = rows(case, metric, neighbours=9, radius=radius)
        for measure in frame["measure"].unique():
            assert values(frame, measure).tolist() == pytest.approx(expected[measure], rel=1e-9), measure


def test_a_slow_literal_twin_agrees_on_a_table():
    case = network_case("table", "input_x_gradient", space=UNDECLARED)
    expected = literal(case, watched(network_case("table", "gradient", space=UNDECLARED), 12, 0.1))
    for measure in MEASURES:
        assert found(case, measure, neighbours=12, radius=0.1).tolist() == pytest.approx(expected[measure], rel=1e-9)


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient"])
def test_captum_agrees_on_the_same_neighbours(method):
    case = network_case("gelu", method)
    near = watched(network_case("gelu", "gradient"), 8, 0.01)
    frame = rows(case, "max_sensitivity", neighbours=8, radius=0.01)
    assert (values(frame, "prediction_unchanged") == 1).all()
    ours = near.transpose(0, 1).flatten(0, 1)

    def explain(inputs, target):
        repeated = (inputs[0] if isinstance(inputs, tuple) else inputs).unflatten(0, (len(case.x), -1))
        with torch.enable_grad():
            maps = [case.explain(x=each) for each in repeated.unbind(1)]
        return (torch.stack(maps, 1).flatten(0, 1),)

    expected = sensitivity_max(explain, case.x, lambda inputs: ours, n_perturb_samples=8, target=case.target)
    torch.testing.assert_close(values(frame, "max_sensitivity"), expected, rtol=1e-9, atol=0)


class Step(nn.Module):
    """Another class on either side of a threshold in the first feature; the outputs are steep within each."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        x = x.flatten(1)
        above = (x[:, :1] > self.threshold).to(x)
        return torch.cat([above * 10, (1 - above) * 10], 1) + 0.1 * x.sum(1, keepdim=True)


def step_case(x, function=lambda model, x, target: torch.where(x[:, :1] > 0.5, x, 100 * x)):
    """Maps that are a hundred times as large where the other class is predicted."""
    return explained(case_of(Step(0.5), x, torch.zeros(len(x), dtype=torch.int64), "gradient"), function)


def test_neighbours_of_another_prediction_are_left_out():
    x = torch.full((4, 3), 0.9, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.51, 0.502, 0.9, 0.1])
    near = watched(step_case(x), 25, 0.02)
    case, expected = step_case(x), literal(step_case(x), near)
    share = ((near[..., 0] > 0.5) == (x[:, 0] > 0.5)).double().mean(0)
    assert 0.5 < share[0] < 0.95
    assert 0.3 < share[1] < 0.8
    assert share[2:].tolist() == [1, 1]
    for metric in METRIC_NAMES:
        frame = rows(case, metric, neighbours=25)
        assert values(frame, "prediction_unchanged").tolist() == pytest.approx(share.tolist())
        for measure in frame["measure"].unique():
            assert values(frame, measure).tolist() == pytest.approx(expected[measure], rel=1e-9)
    assert (found(case, "max_sensitivity", neighbours=25) < 0.03).all()


class Knows(nn.Module):
    """One class for the given samples, another one for all others."""

    def __init__(self, x):
        super().__init__()
        self.known = x.clone()

    def forward(self, x):
        known = (x[:, None] == self.known).flatten(2).all(2).any(1, keepdim=True).to(x)
        return torch.cat([known, 0.5 - 0 * known], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def reasons_of(frame, measure):
    return [None if reason != reason else reason for reason in frame.loc[frame["measure"] == measure, "reason"]]


def test_where_every_neighbour_is_another_class_nothing_is_left():
    x = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = case_of(Knows(x[:2]), x, torch.zeros(3, dtype=torch.int64), "input_magnitude")
    lost = "no neighbour keeps the prediction"
    for measure, metric in MEASURES.items():
        frame = rows(case, metric)
        assert values(frame, "prediction_unchanged").tolist() == [0, 0, 1]
        silent = "no neighbour changes the output" if measure == "relative_output_stability" else None
        assert reasons_of(frame, measure) == [lost, lost, silent]


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_size_of_the_chunks_does_not_matter(chunk):
    small, large = (network_case("functional", ("smoothgrad", {"samples": 3}), chunk=each) for each in (chunk, 64))
    for metric in METRIC_NAMES:
        one, other = (rows(case, metric, neighbours=4, radius=0.3)["value"] for case in (small, large))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=0)


def test_what_ignores_its_input_is_robust_even_noise_and_what_is_seeded_by_it_is_not():
    for method in ("constant", "random", "center_gaussian"):
        case = network_case("functional", method)
        for measure in MEASURES:
            assert (found(case, measure) == 0).all()
    seeded = found(network_case("functional", "parameter_noise"), "average_sensitivity")
    np.testing.assert_allclose(seeded, 2**0.5, rtol=0.1)
    case = network_case("functional", "random")
    fresh = (case.explain(call=1) - case.maps).flatten(1).norm(dim=1) / case.maps.flatten(1).norm(dim=1)
    assert (fresh > 1).all()


def test_neighbours_fill_the_box_and_stay_inside_the_valid_range():
    space = InputSpace("image", (0.5, 0.4, 0.3), (0.5, 0.25, 0.1), (0.0, 0.0, -1.0), (1.0, 2.0, 1.0))
    x = torch.zeros(4, 3, 20, 20, dtype=torch.float64)
    low, high = space.bounds(x)
    x[1], x[2], x[3] = high, 2 * high, 2 * low
    case = case_of(Linear(normal(2, 1200)), x, torch.zeros(4, dtype=torch.int64), "gradient", space=space)
    near = watched(case, 30, 0.05) - x
    for channel, width in enumerate((1 / 0.5, 2 / 0.25, 2 / 0.1)):
        inside, corner, above, below = near[:, :, channel].transpose(0, 1).flatten(1) / (0.05 * width)
        for quantity, expected, spread in ((inside, 0, 3**-0.5), (inside.square(), 1 / 3, (4 / 45) ** 0.5)):
            assert abs(float(quantity.mean()) - expected) < 4.5 * spread / inside.numel() ** 0.5
        assert 0.99 < float(inside.abs().max()) <= 1
        assert float(corner.max()) <= 1e-9
        assert abs(float((corner < -1e-9).double().mean()) - 0.5) < 4.5 * 0.5 / inside.numel() ** 0.5
        for inwards in (-above, below):
            assert float(inwards.min()) >= -1e-9
            assert 0.99 < float(inwards.max()) <= 1 + 1e-9
    flat = near[:, 0].flatten(1)
    across = torch.corrcoef(flat) - torch.eye(30, dtype=torch.float64)
    assert across.abs().max() < 5.5 / 1200**0.5


def test_where_no_range_is_declared_that_of_each_sample_serves_and_nothing_stops():
    x = torch.rand(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([[1.0], [50.0]]).double()
    case = case_of(Linear(normal(2, 300)), x, torch.zeros(2, dtype=torch.int64), "gradient", space=UNDECLARED)
    near = watched(case, 20, 0.1)
    widths = x.amax(1) - x.amin(1)
    np.testing.assert_allclose((near - x).abs().amax((0, 2)), 0.1 * widths, rtol=0.01)
    assert (near.amax((0, 2)) > x.amax(1)).all()


def test_neighbours_are_keyed_by_sample_the_same_for_all_methods_and_more_of_them_only_add():
    case = network_case("functional", "gradient")
    near = watched(case, 6, 0.02)
    other = case_of(case.model, case.x[[3, 1]], case.target[[3, 1]], "gradient", samples=["s3", "s1"])
    torch.testing.assert_close(watched(other, 6, 0.02), near[:, [3, 1]], rtol=0, atol=0)
    torch.testing.assert_close(watched(network_case("functional", "gradient"), 3, 0.02), near[:3], rtol=0, atol=0)
    few, many = (found(network_case("functional", "gradient"), "max_sensitivity", neighbours=k) for k in (3, 30))
    assert (few <= many).all()
    assert (few < many).any()


def test_maps_are_made_once_for_all_metrics_and_outputs_once_for_all_methods():
    first = network_case("functional", "gradient")
    first.maps  # noqa: B018
    before = first.passes.forward
    rows(first, "relative_stability", neighbours=7)
    assert first.passes.forward - before == 5 * (7 + 1 + 7)
    assert first.passes.backward == 5 * (1 + 7)
    rows(first, "max_sensitivity", neighbours=7)
    rows(first, "local_lipschitz", neighbours=7)
    assert first.passes.forward - before == 5 * (7 + 1 + 7)
    second = network_case("functional", "input_x_gradient")
    second.source = first.source
    shared = rows(second, "relative_stability", neighbours=7)
    assert second.passes.forward == second.passes.backward == 5 * (1 + 7)
    assert shared.equals(rows(network_case("functional", "input_x_gradient"), "relative_stability", neighbours=7))


def test_only_distances_are_kept_and_a_case_made_from_another_begins_anew():
    case = network_case("functional", "gradient")
    rows(case, "max_sensitivity", neighbours=3)
    assert list(case.kept)
    for kept in case.kept.values():
        assert kept.maps.absolute.shape == kept.inputs.absolute.shape == (5, 3)
    other = replace(case, explainer=network_case("functional", "input_x_gradient").explainer)
    assert other.kept == {}
    assert case.on(Labelled(case.x[:2], case.target[:2], ["a", "b"])).kept == {}


def test_what_is_kept_is_not_mixed_up():
    kept = network_case("functional", "gradient")
    for options in ({"neighbours": 4}, {"neighbours": 3}, {"neighbours": 3, "radius": 0.1}):
        fresh = network_case("functional", "gradient")
        for metric in METRIC_NAMES:
            assert rows(kept, metric, **options).equals(rows(fresh, metric, **options))


@pytest.mark.parametrize("factor", [-4.0, 1e-3])
def test_the_scale_of_the_map_enters_only_where_it_is_said(factor):
    case = network_case("functional", "input_x_gradient")
    function = case.explainer.method.function
    scaled = explained(case, lambda model, x, target: factor * function(model, x, target))
    for measure in MEASURES:
        expected = abs(factor) if measure.startswith(("unscaled", "local")) else 1
        torch.testing.assert_close(found(scaled, measure), expected * found(case, measure), rtol=1e-9, atol=0)


def test_the_scale_of_logits_does_not_count():
    one, ten = (linear_case("input_magnitude", weight=scale * normal(4, 2, 5, 6)) for scale in (1, 10))
    for measure in MEASURES:
        torch.testing.assert_close(found(one, measure), found(ten, measure), rtol=1e-9, atol=0)


def test_a_map_that_rises_faster_is_less_stable_by_all_of_them():
    case = linear_case("gradient")
    flat, steep = (explained(case, lambda model, x, target, power=power: x.abs() ** power) for power in (1, 5))
    for measure in ("max_sensitivity", "average_sensitivity", "relative_input_stability", "relative_output_stability"):
        assert (found(steep, measure) > 2 * found(flat, measure)).all()


def test_maps_of_zeros_and_maps_that_are_not_finite_have_a_reason():
    case = linear_case("gradient", n=5)

    def broken(model, x, target):
        maps = x.clone()
        untouched = bool((x == case.x).all())
        maps[0] = torch.nan
        maps[1, 0, 0, 0] = torch.inf
        maps[2] = 0.0
        if not untouched:
            maps[3, 0, 1, 1] = torch.nan
        return maps

    zero = "the map is zero everywhere"
    case = explained(case, broken)
    for measure, metric in MEASURES.items():
        frame = rows(case, metric)
        unscaled = measure.startswith(("unscaled", "local"))
        expected = ["not finite", "not finite", None if unscaled else zero, "not finite (neighbour)", None]
        assert reasons_of(frame, measure) == expected
        if unscaled:
            assert values(frame, measure)[2] == 0
        assert values(frame, "prediction_unchanged").isfinite().all()


def test_a_neighbour_that_does_not_count_may_have_any_map():
    x = torch.full((1, 3), 0.9, dtype=torch.float64)
    x[:, 0] = 0.51
    case = step_case(x, lambda model, x, target: torch.where(x[:, :1] > 0.5, x, torch.nan))
    for measure in MEASURES:
        assert found(case, measure, neighbours=25).isfinite().all()


def test_a_sample_without_another_neighbour_has_a_reason():
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] = 0.3
    case = case_of(Linear(normal(2, 4)), x, torch.zeros(2, dtype=torch.int64), "input_magnitude", space=UNDECLARED)
    for measure, metric in MEASURES.items():
        assert reasons_of(rows(case, metric), measure) == ["no neighbour differs from the sample", None]


def test_what_is_divided_by_may_be_zero():
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] = 0
    ones = explained(
        case_of(Linear(normal(2, 9)), x, torch.zeros(2, dtype=torch.int64), "gradient"), lambda m, x, t: x + 1
    )
    frame = rows(ones, "relative_stability")
    assert reasons_of(frame, "relative_input_stability") == ["the input is zero everywhere", None]
    assert reasons_of(frame, "relative_output_stability") == ["the output is zero", None]
    assert found(ones, "max_sensitivity").isfinite().all()
    for bias, reason in ((0.0, "the output is zero"), (1.0, "no neighbour changes the output")):
        model = Linear(torch.zeros(2, 9, dtype=torch.float64), torch.full((2,), bias, dtype=torch.float64))
        case = case_of(model, x[1:], torch.zeros(1, dtype=torch.int64), "input_magnitude")
        assert reasons_of(rows(case, "relative_stability"), "relative_output_stability") == [reason]


def test_outputs_that_are_not_finite_have_a_reason():
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)

    class Explodes(Linear):
        def forward(self, x):
            return super().forward(x) / (x[:, :1] < 2).to(x)

    x[0, 0] = 3
    case = case_of(Explodes(weight), x, torch.zeros(2, dtype=torch.int64), "input_magnitude", space=UNDECLARED)
    frame = rows(case, "relative_stability")
    assert reasons_of(frame, "relative_output_stability") == ["not finite (output)", None]
    assert reasons_of(frame, "relative_input_stability") == [None, None]


@pytest.mark.parametrize("metric", METRIC_NAMES)
def test_maps_that_were_made_elsewhere_are_not_asked_for_other_samples(metric):
    case = explained(linear_case("gradient"), lambda model, x, target: x, fixed=True)
    with pytest.raises(NotApplicableError, match="made elsewhere"):
        rows(case, metric)
    assert case.passes.forward == 0


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("options", [{"neighbours": 0}, {"radius": 0.0}, {"radius": -0.1}])
def test_options_that_make_no_neighbours_are_refused(metric, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        METRICS[metric].resolve(options)


def test_they_only_describe():
    for name in METRIC_NAMES:
        assert METRICS[name].direction is None
        assert METRICS[name].family == "robustness"
        assert MEASURES[METRICS[name].headline] == name
