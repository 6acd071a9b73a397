"""The random logit test: maps of other classes, drawn as promised, against closed forms on a linear model."""

import pytest
import torch

from cases import Functional, Linear, case_of, network, rows, values
from harness.metrics.comparison import shifted
from harness.metrics.random_logit import another_class

CLASSES = 6


def linear(weight, method="gradient", n=8):
    x = torch.randn(n, weight.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = Linear(weight).eval()
    return case_of(model, x, model(x).argmax(1), method)


def test_every_other_class_is_drawn_as_often_and_the_explained_one_never():
    case = linear(torch.eye(CLASSES, dtype=torch.float64))
    words = torch.linspace(0.001, 0.999, 5000, dtype=torch.float64)
    for explained in range(CLASSES):
        drawn = another_class(torch.full((5000,), explained), words, CLASSES)
        counts = drawn.bincount(minlength=CLASSES)
        assert counts[explained] == 0
        assert (counts[torch.arange(CLASSES) != explained] - 1000).abs().max() <= 5
    assert len(case.x) == 8


def test_on_a_linear_model_similarities_are_those_of_the_rows_of_its_weight():
    """Rows with known cosines: w_0 and w_1 opposite, w_2 orthogonal to both."""
    a, b = torch.linalg.qr(torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    case = linear(torch.stack([a, -a, b]))
    case.target = torch.zeros(len(case.x), dtype=torch.int64)
    frame = rows(case, "random_logit", measures=["cosine"], class_draws=20)
    signed = values(frame, "cosine", role="test", mode="random", sign="signed")
    assert {round(v, 9) + 0.0 for v in signed.tolist()} == {-1.0, 0.0}
    absolute = values(frame, "cosine", role="test", mode="random", sign="absolute")
    between = float((a.abs() * b.abs()).sum())
    assert {round(v, 9) for v in absolute.tolist()} == {1.0, round(between, 9)}


def test_the_runner_up_and_the_least_likely_class_are_those_of_the_logits():
    weight = torch.randn(CLASSES, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = linear(weight)
    order = case.model(case.x).argsort(1)
    frame = rows(case, "random_logit", measures=["cosine"], class_draws=1)
    for mode, other in (("runner_up", order[:, -2]), ("least_likely", order[:, 0])):
        expected = torch.cosine_similarity(weight[case.target], weight[other])
        torch.testing.assert_close(values(frame, "cosine", mode=mode, sign="signed"), expected)


@pytest.mark.parametrize("explained", range(3))
def test_the_runner_up_and_the_least_likely_are_never_the_explained_class(explained):
    weight = torch.eye(3, 9, dtype=torch.float64)
    case = linear(weight)
    case.target = torch.full((len(case.x),), explained)
    frame = rows(case, "random_logit", measures=["cosine"], class_draws=3)
    # Unit vectors: the map of another class is orthogonal, that of the same one would be equal.
    assert (values(frame, "cosine", role="test", sign="signed").abs() < 1e-12).all()


def test_two_classes_on_one_feature_are_opposite_and_only_signed_maps_say_so():
    w = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frame = rows(linear(torch.stack([w, -w])), "random_logit", class_draws=2, measures=["spearman"])
    assert (values(frame, "spearman", role="test", sign="signed") == -1).all()
    assert (values(frame, "spearman", role="test", sign="absolute") == 1).all()


@pytest.mark.parametrize("method", ["sobel", "input_magnitude", "center_gaussian", "parameter_noise"])
def test_what_ignores_the_class_is_exactly_one_under_every_measure(method):
    model, _, target = network("functional")
    x = torch.rand(len(target), 2, 24, 24, generator=torch.Generator().manual_seed(0))
    frame = rows(case_of(model, x, target, method, build=Functional), "random_logit", class_draws=3)
    tested = frame[frame["role"] == "test"]
    assert set(tested["measure"]) == {"spearman", "ssim", "hog"}
    assert (tested["value"] == 1).all()
    assert (values(frame, "spearman", role="floor_shift") < 0.95).all()


def test_draws_differ_by_sample_and_draw_and_do_not_depend_on_the_batch():
    weight = torch.randn(CLASSES, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = linear(weight)
    part = case_of(whole.model, whole.x[2:5], whole.target[2:5], "gradient", samples=whole.samples[2:5])
    options = {"class_draws": 4, "measures": ["cosine"]}
    first, second = rows(whole, "random_logit", **options), rows(part, "random_logit", **options)
    first = first[first["sample"].isin(part.samples)]
    torch.testing.assert_close(torch.tensor(first["value"].to_numpy()), torch.tensor(second["value"].to_numpy()))
    drawn = values(rows(whole, "random_logit", **options), "cosine", mode="random", role="test", sign="signed")
    assert len(drawn.view(4, -1).unique(dim=0)) == 4


def test_a_stochastic_method_has_new_noise_in_every_draw_and_mode_and_for_the_second_call():
    model, x, target = network("functional")
    case = case_of(model, x, target, "random", build=Functional)
    frame = rows(case, "random_logit", class_draws=3, measures=["pearson"])
    frame = frame[(frame["sign"] == "signed") & (frame["role"] != "floor_shift")]
    assert len(frame) == len(x) * (1 + 3 + 2)
    assert frame["value"].nunique() == len(frame)
    assert (frame["value"] < 1).all()


def test_the_floor_is_the_map_of_the_other_class_moved_by_the_draws_own_offset():
    weight = torch.randn(CLASSES, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = linear(weight)
    frame = rows(case, "random_logit", measures=["cosine"], class_draws=3)
    for draw in range(3):
        words = case.draws("random_logit", "class").uniform(1, draw=draw)[:, 0]
        other = weight[another_class(case.target, words, CLASSES)]
        moved = shifted(other, case.draws("random_logit", "shift").uniform(1, draw=draw))
        expected = torch.cosine_similarity(weight[case.target], moved)
        found = values(frame, "cosine", role="floor_shift", sign="signed", draw=draw)
        torch.testing.assert_close(found, expected)
