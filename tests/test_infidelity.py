"""Infidelity: closed forms on linear models, a literal twin on what the model saw, and captum on the same noise."""

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from scipy.optimize import minimize_scalar

from cases import Linear, case_of, network, rows, values
from harness.space import InputSpace

LAWS = ("squares", "squares_of_gradients", "gaussian")
every_law = pytest.mark.parametrize("law", LAWS)
MEASURES = ("infidelity", "scaled_infidelity", "relative_infidelity", "best_scale")


def linear_case(shape, law, n=5, sign=1.0):
    """A linear model with the exact maps for the law: contributions to what squares of grey change, or weights."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    x = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    target = torch.arange(n) % 4
    maps = weight[target] * ((x - 0.5) if law == "squares" else 1)
    return case_of(Linear(weight.flatten(1)), x, target, sign * maps)


def random_maps(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def watched(case, *, samples, **options):
    """The rows, and the perturbed versions of each sample: [samples, n, ...], in the order in which they were seen."""
    seen = []
    handle = case.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    frame = rows(case, "infidelity", samples=samples, **options)
    handle.remove()
    images = torch.cat(seen)
    untouched = torch.stack([(images == x).flatten(1).all(1) for x in case.x]).any(0)
    first = int(untouched[: len(case.x)].all()) * len(case.x)
    perturbed = images[first:] if first else images[: -len(case.x)]
    return frame, perturbed.view(samples, *case.x.shape)


def terms(case, law, perturbed):
    """I^T a and the drop of each perturbation, by loops."""
    pairs = []
    for sample, x in enumerate(case.x):
        mine = []
        for image in perturbed[:, sample]:
            changed = x - image
            a = case.maps[sample].expand_as(x)
            if law == "squares":
                where = changed != 0
                inside = where.any(0) if x.ndim > 1 else where
                said = float(case.maps[sample][..., inside].sum())
            else:
                said = float((changed * a).sum())
            with torch.no_grad():
                drop = float((case.model(x[None]) - case.model(image[None]))[0, case.target[sample]])
            mine.append((said, drop))
        pairs.append(np.array(mine).T)
    return pairs


@every_law
@pytest.mark.parametrize("shape", [(2, 9, 9), (1, 8, 11), (2, 24), (9,)])
def test_exact_maps_of_a_linear_model_have_0_and_a_best_scale_of_1(law, shape):
    frame = rows(linear_case(shape, law), "infidelity", fill="grey", perturbation=law, samples=30)
    for measure, expected in zip(MEASURES, (0.0, 0.0, 0.0, 1.0), strict=True):
        wanted = torch.full((5,), expected, dtype=torch.float64)
        torch.testing.assert_close(values(frame, measure), wanted, rtol=0, atol=1e-10)
    assert set(frame["normalization"]) == {"contributions" if law == "squares" else "gradients"}


@every_law
def test_reversed_maps_have_four_times_the_variance_and_a_best_scale_of_minus_1(law):
    case = linear_case((2, 9, 9), law, sign=-1.0)
    frame, perturbed = watched(case, fill="grey", perturbation=law, samples=30)
    for sample, (said, drops) in enumerate(terms(case, law, perturbed)):
        assert said == pytest.approx(-drops, abs=1e-10)
        assert values(frame, "infidelity")[sample].item() == pytest.approx(4 * np.mean(drops**2))
    torch.testing.assert_close(values(frame, "best_scale"), -torch.ones(5, dtype=torch.float64))
    # The best scale would make it exact, but it points the wrong way: as good as no map.
    torch.testing.assert_close(values(frame, "scaled_infidelity"), torch.zeros(5, dtype=torch.float64))
    assert (values(frame, "relative_infidelity") == 1).all()


@every_law
def test_exact_maps_are_better_than_noisy_ones_and_those_than_none(law):
    exact = linear_case((2, 9, 9), law)
    noisy = case_of(exact.model, exact.x, exact.target, exact.maps + 0.3 * random_maps(exact.maps.shape))
    unrelated = case_of(exact.model, exact.x, exact.target, random_maps(exact.maps.shape))
    found = [
        values(rows(case, "infidelity", fill="grey", perturbation=law), "relative_infidelity").mean().item()
        for case in (exact, noisy, unrelated)
    ]
    assert found[0] < 1e-20 < found[1] < found[2] - 0.1


@every_law
@pytest.mark.parametrize("name", ["functional", "signal", "table"])
def test_a_slow_literal_twin_agrees(law, name):
    model, x, target = network(name, torch.float64)
    case = case_of(model, x, target, random_maps(x.shape))
    frame, perturbed = watched(case, fill="black", perturbation=law, samples=25)
    for sample, (said, drops) in enumerate(terms(case, law, perturbed)):
        raw = np.mean((said - drops) ** 2)
        [beta], [left], *_ = np.linalg.lstsq(said[:, None], drops, rcond=None)
        best = minimize_scalar(lambda scale, said=said, drops=drops: np.mean((scale * said - drops) ** 2))
        assert best.fun == pytest.approx(left / 25, rel=1e-9)
        expected = (raw, left / 25, left / np.sum(drops**2) if beta > 0 else 1, beta)
        found = [values(frame, measure)[sample].item() for measure in MEASURES]
        assert found == pytest.approx(expected, rel=1e-9)
        assert best.x == pytest.approx(beta, rel=1e-4, abs=1e-8)
        assert 0 <= found[2] <= 1


@every_law
@pytest.mark.parametrize("normalize", [False, True])
def test_captum_agrees_on_the_same_perturbations(law, normalize):
    model, x, target = network("functional", torch.float64)
    case = case_of(model, x, target, random_maps(x.shape))
    frame, perturbed = watched(case, fill="black", perturbation=law, samples=20)

    def perturb(inputs):
        # Captum repeats each sample as often as it perturbs it, and squares of contributions are masks to it.
        ours = perturbed.transpose(0, 1).flatten(0, 1)
        changed = inputs - ours
        mask = (changed != 0).any(1, keepdim=True).expand_as(changed).double()
        return mask if law == "squares" else changed, ours

    expected = captum_infidelity(model, perturb, x, case.maps, target=target, n_perturb_samples=20, normalize=normalize)
    found = values(frame, "scaled_infidelity" if normalize else "infidelity")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@every_law
@pytest.mark.parametrize("factor", [-2.0, 10.0])
def test_scale_enters_the_raw_value_quadratically_and_the_others_not_at_all(law, factor):
    model, x, target = network("functional", torch.float64)
    maps = random_maps(x.shape)
    zero, once, minus, scaled = (
        rows(case_of(model, x, target, each * maps), "infidelity", fill="black", perturbation=law, samples=20)
        for each in (0.0, 1.0, -1.0, factor)
    )
    torch.testing.assert_close(
        values(scaled, "scaled_infidelity"), values(once, "scaled_infidelity"), rtol=1e-9, atol=0
    )
    same = once if factor > 0 else minus
    torch.testing.assert_close(values(scaled, "relative_infidelity"), values(same, "relative_infidelity"))
    one_way = (values(once, "relative_infidelity") == 1) | (values(minus, "relative_infidelity") == 1)
    assert one_way.all()
    torch.testing.assert_close(values(scaled, "best_scale") * factor, values(once, "best_scale"))
    at_zero, at_one, at_minus, found = (values(frame, "infidelity") for frame in (zero, once, minus, scaled))
    square, slope = (at_one + at_minus) / 2 - at_zero, (at_one - at_minus) / 2
    assert (square > 0).all()
    torch.testing.assert_close(found, square * factor**2 + slope * factor + at_zero)


@pytest.mark.parametrize(("shape", "side", "expected"), [((2, 9, 9), 3, 3), ((1, 8, 15), 0, 2), ((2, 4, 4), 0, 1)])
def test_squares_lie_inside_the_picture_and_reach_every_corner(shape, side, expected):
    case = linear_case(shape, "squares")
    _, perturbed = watched(case, fill="black", samples=1500, side=side)
    changed = (perturbed != case.x).any(2)
    assert (perturbed[changed[:, :, None].expand_as(perturbed)] == 0).all()
    rooms = [size - expected + 1 for size in shape[1:]]
    for sample in range(2):
        corners = {}
        for where in changed[:, sample].numpy():
            places = np.argwhere(where)
            assert len(places) == expected**2
            assert np.ptp(places, axis=0).tolist() == [expected - 1, expected - 1]
            corner = tuple(places.min(0))
            corners[corner] = corners.get(corner, 0) + 1
        total = rooms[0] * rooms[1]
        assert len(corners) == total
        mean = 1500 / total
        assert max(abs(count - mean) for count in corners.values()) < 5 * mean**0.5
    assert not torch.equal(changed[:, 0], changed[:, 1])


def test_a_side_beyond_the_picture_takes_the_whole_of_it():
    case = linear_case((2, 4, 6), "squares")
    _, perturbed = watched(case, fill="black", samples=40, side=5)
    assert ((perturbed == 0).flatten(2).sum(2) == 2 * 4 * 5).all()
    _, perturbed = watched(linear_case((2, 4, 6), "squares"), fill="black", samples=3, side=9)
    assert (perturbed == 0).all()


def test_stretches_of_a_signal_and_halves_of_the_features_of_a_table():
    _, perturbed = watched(linear_case((2, 30), "squares"), fill="black", samples=400)
    where = (perturbed == 0).all(2)[:, 0].numpy()
    assert {int(each.sum()) for each in where} == {4}
    assert {int(np.argmax(each)) for each in where} == set(range(27))
    assert all(np.ptp(np.flatnonzero(each)) == 3 for each in where)
    _, perturbed = watched(linear_case((9,), "squares"), fill="black", samples=2000)
    gone = (perturbed == 0)[:, 0].double()
    assert (gone.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 2000**0.5
    correlations = torch.corrcoef(gone.T) - torch.eye(9, dtype=torch.float64)
    assert correlations.abs().max() < 4.5 / 2000**0.5


def test_noise_has_the_deviation_in_units_of_the_valid_range_and_is_keyed_by_sample():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 20 * 20, generator=generator, dtype=torch.float64)
    x = torch.rand(3, 3, 20, 20, generator=generator, dtype=torch.float64)
    space = InputSpace("image", (0.5, 0.4, 0.3), (0.5, 0.25, 0.1), (0.0, 0.0, -1.0), (1.0, 2.0, 1.0))
    target = torch.zeros(3, dtype=torch.int64)

    def noise(rows_of, ids, deviation=0.2):
        case = case_of(Linear(weight), x[rows_of], target[rows_of], x[rows_of], space=space, samples=ids)
        law = {"perturbation": "gaussian", "deviation": deviation}
        return watched(case, fill="black", samples=30, **law)[1] - x[rows_of]

    found = noise([0, 1, 2], ["a", "b", "c"])
    for channel, width in enumerate((1 / 0.5, 2 / 0.25, 2 / 0.1)):
        here = found[:, :, channel]
        assert float(here.std()) == pytest.approx(0.2 * width, rel=4.5 / (2 * here.numel()) ** 0.5)
        assert abs(float(here.mean())) < 4.5 * 0.2 * width / here.numel() ** 0.5
    flat = found.flatten(2)
    across = torch.corrcoef(flat.transpose(0, 1).reshape(90, -1)) - torch.eye(90, dtype=torch.float64)
    assert across.abs().max() < 5.5 / 1200**0.5
    torch.testing.assert_close(noise([2, 0], ["c", "a"]), found[:, [2, 0]], rtol=0, atol=1e-12)
    torch.testing.assert_close(noise([0, 1, 2], ["a", "b", "c"], 0.1) * 2, found, rtol=0, atol=1e-12)


def test_where_no_range_is_declared_noise_takes_that_of_each_sample():
    model, x, target = network("table", torch.float64)
    x = x * torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0]).double()[:, None]
    case = case_of(model, x, target, torch.ones_like(x), space=InputSpace("table"))
    _, perturbed = watched(case, fill="zero", perturbation="gaussian", samples=300, deviation=0.3)
    widths = x.amax(1) - x.amin(1)
    torch.testing.assert_close((perturbed - x).std((0, 2)), 0.3 * widths, rtol=4.5 / 5400**0.5, atol=0)


@every_law
def test_a_map_of_one_channel_counts_once_for_contributions_and_for_every_channel_as_a_gradient(law):
    model, x, target = network("functional", torch.float64)
    maps = random_maps((len(x), 1, 12, 12))
    other = torch.cat([maps, torch.zeros_like(maps)], 1) if law == "squares" else maps.expand_as(x).clone()
    single, both = (
        rows(case_of(model, x, target, each), "infidelity", fill="black", perturbation=law, samples=20)
        for each in (maps, other)
    )
    np.testing.assert_allclose(single["value"], both["value"], rtol=1e-10, atol=0)


@every_law
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_size_of_the_chunks_does_not_matter(law, chunk):
    model, x, target = network("modules", torch.float64)
    small, large = (
        rows(
            case_of(model, x, target, random_maps(x.shape), chunk=each),
            "infidelity",
            fill="blur",
            perturbation=law,
            samples=10,
        )
        for each in (chunk, 64)
    )
    np.testing.assert_allclose(small["value"], large["value"], rtol=1e-9, atol=1e-12)


def test_perturbations_are_the_same_for_all_methods_and_go_through_the_model_once():
    first = linear_case((2, 9, 9), "squares")
    rows(first, "infidelity", fill="grey", samples=20)
    assert first.passes.forward == 5 * (1 + 20)
    second = case_of(first.model, first.x, first.target, random_maps(first.x.shape))
    second.source = first.source
    shared = rows(second, "infidelity", fill="grey", samples=20)
    rows(second, "infidelity", fill="grey", samples=20, perturbation="squares_of_gradients")
    assert second.passes.forward == 0
    apart = case_of(first.model, first.x, first.target, second.maps)
    assert shared.equals(rows(apart, "infidelity", fill="grey", samples=20))


def test_what_is_shared_between_laws_fills_and_sides_is_not_mixed_up():
    model, x, target = network("functional", torch.float64)
    shared = case_of(model, x, target, "gradient")
    given = {"fill": "black", "samples": 8}
    changes = [{"perturbation": law} for law in LAWS] + [{"fill": "white"}, {"side": 4}, {"samples": 9}]
    changes.append({"perturbation": "gaussian", "deviation": 0.5})
    for change in changes:
        fresh = rows(case_of(model, x, target, "gradient"), "infidelity", **given | change)
        assert rows(shared, "infidelity", **given | change).equals(fresh)


def reasons_of(frame, measure):
    return [None if reason != reason else reason for reason in frame.loc[frame["measure"] == measure, "reason"]]


@every_law
def test_what_has_no_infidelity_is_undefined_with_its_reason(law):
    case = linear_case((2, 9, 9), law)
    maps = case.maps.clone()
    maps[0] = torch.nan
    maps[1, 0, 4, 4] = torch.inf
    maps[2] = 0.0
    frame = rows(case_of(case.model, case.x, case.target, maps), "infidelity", fill="grey", perturbation=law)
    assert reasons_of(frame, "infidelity") == ["not finite", "not finite", None, None, None]
    for measure in MEASURES[1:]:
        silent = "the map says 0 of every perturbation"
        assert reasons_of(frame, measure) == ["not finite", "not finite", silent, None, None]
    constant = Linear(torch.zeros(4, 2 * 81, dtype=torch.float64), torch.arange(4.0).double())
    frame = rows(case_of(constant, case.x, case.target, case.maps), "infidelity", fill="grey", perturbation=law)
    for measure in MEASURES:
        assert reasons_of(frame, measure) == ["no perturbation changes the output"] * 5


def test_a_map_that_says_0_has_the_mean_square_of_what_is_lost():
    case = linear_case((2, 9, 9), "squares")
    case = case_of(case.model, case.x, case.target, torch.zeros_like(case.x))
    frame, perturbed = watched(case, fill="grey", samples=12)
    expected = [np.mean(drops**2) for _, drops in terms(case, "squares", perturbed)]
    assert values(frame, "infidelity").tolist() == pytest.approx(expected)
