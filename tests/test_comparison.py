"""Maps made ready for comparison: the same as the measures on raw maps, moved or not, and every NaN with its reason."""

import pytest
import torch
from sample_maps import generator, normal, tied
from scipy import stats

from harness.metrics.comparison import MEASURES, Measure, compare, ready, shifted
from harness.metrics.preprocessing import min_max, percentile_clip
from harness.metrics.similarity import cosine, pearson, spearman, top_k
from harness.metrics.structure import hog, ssim
from harness.types import NotApplicableError

ALL: tuple[Measure, ...] = ("spearman", "pearson", "cosine", "ssim", "hog", "top_k")
SHAPES = {"image": (6, 3, 12, 17), "large image": (4, 1, 50, 49), "signal": (6, 3, 11), "table": (6, 13)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def compared(a, b, measures=ALL, **labels):
    """Scores by measure and sign."""
    first, second = ready(a, "trained network", measures), ready(b, "compared network", measures)
    return {(score.measure, score.sign): score for score in compare(first, second, **labels)}


def values_of(scores):
    return {name: score.values for name, score in scores.items()}


def assert_equal_scores(found, expected, tolerance=0.0):
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=tolerance, equal_nan=True, msg=str(name))


def raw_similarities(a, b):
    """Every measure on raw maps, one after the other."""
    views = {"signed": (a, b), "absolute": (a.abs(), b.abs())}
    views = {sign: [m.sum(1) if m.ndim > 2 else m for m in pair] for sign, pair in views.items()}
    plain = {"spearman": spearman, "pearson": pearson, "cosine": cosine, "top_k": top_k}
    found = {(name, sign): measure(*pair) for name, measure in plain.items() for sign, pair in views.items()}
    axes = a.shape[2:]
    if axes and min(axes) >= 11:
        found["ssim", "absolute"] = ssim(*map(percentile_clip, views["absolute"]), data_range=1.0)
    if len(axes) == 2 and min(axes) >= 12:
        found["hog", "signed"] = hog(*map(min_max, views["signed"]))
    found["spearman", "up_to_sign"] = found["spearman", "signed"].abs()
    return found


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_made_ready_has_the_similarities_of_the_raw_maps(shape, dtype):
    a, b = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    assert_equal_scores(values_of(compared(a, b)), raw_similarities(a, b))


@each_shape
def test_equal_maps_give_exactly_one_in_every_measure(shape):
    for maps in (normal(*shape, dtype=torch.float32), tied(*shape)):
        for name, score in compared(maps, maps.clone()).items():
            assert (score.values == 1).all(), name


def test_views_and_labels_are_those_of_the_protocol():
    a, b = normal(4, 3, 16, 16), normal(4, 3, 16, 16, seed=1)
    scores = list(compare(ready(a, "a"), ready(b, "b"), role="floor_shift", draw=2))
    assert [(s.measure, s.channels, s.sign, s.normalization) for s in scores] == [
        ("spearman", "sum", "signed", "none"),
        ("spearman", "sum", "up_to_sign", "none"),
        ("hog", "sum", "signed", "min_max"),
        ("spearman", "abs_sum", "absolute", "none"),
        ("ssim", "abs_sum", "absolute", "percentile_clip"),
    ]
    assert {(score.role, score.draw) for score in scores} == {("floor_shift", 2)}
    assert set(MEASURES) == {score.measure for score in scores}


@pytest.mark.parametrize(
    ("shape", "measures"),
    [
        ((4, 3, 12, 12), {"spearman", "ssim", "hog"}),
        ((4, 3, 11, 30), {"spearman", "ssim"}),
        ((4, 3, 10, 30), {"spearman"}),
        ((4, 3, 11), {"spearman", "ssim"}),
        ((4, 3, 10), {"spearman"}),
        ((4, 40), {"spearman"}),
    ],
)
def test_what_does_not_apply_to_a_shape_is_left_out(shape, measures):
    assert {measure for measure, _ in compared(normal(*shape), normal(*shape, seed=1), MEASURES)} == measures


def test_only_the_wanted_measures_are_computed():
    a, b = normal(4, 3, 16, 16), normal(4, 3, 16, 16, seed=1)
    for measure in ALL:
        assert {name for name, _ in compared(a, b, (measure,))} == {measure}


def test_maps_made_ready_for_different_measures_or_shapes_are_not_compared():
    a, b = ready(normal(4, 1, 16, 16), "a", ("pearson",)), ready(normal(4, 1, 16, 16), "b", ("cosine",))
    with pytest.raises(ValueError, match=r"made ready for .*'pearson'.*, got .*'cosine'"):
        list(compare(a, b))
    with pytest.raises(ValueError, match=r"expected maps \(16, 16\) .* got \(16, 17\)"):
        list(compare(a, ready(normal(4, 1, 16, 17), "b", ("pearson",))))


def test_a_pair_with_a_degenerate_map_is_nan_and_has_one_reason():
    a, b = normal(5, 2, 12, 12), normal(5, 2, 12, 12, seed=1)
    a[1], b[1], b[2], a[3] = 0, torch.nan, 0, torch.inf
    clean = compared(a[[0, 4]], b[[0, 4]])
    for name, score in compared(a, b).items():
        assert {reason: where.nonzero().flatten().tolist() for reason, where in score.undefined.items()} == {
            "constant map (trained network)": [1],
            "constant map (compared network)": [2],
            "not finite (trained network)": [3],
        }
        assert score.values.isnan().tolist() == [False, True, True, True, False]
        torch.testing.assert_close(score.values[[0, 4]], clean[name].values, rtol=0, atol=1e-14)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_broken_value_is_enough(value):
    a = normal(3, 1, 14, 14)
    a[1, 0, 5, 6] = value
    for score in compared(a, normal(3, 1, 14, 14, seed=1)).values():
        assert {reason: where.tolist() for reason, where in score.undefined.items()} == {
            "not finite (trained network)": [False, True, False]
        }
        assert score.values.isnan().tolist() == [False, True, False]


def test_a_map_without_gradients_has_no_hog_and_everything_else():
    checkerboard = (torch.arange(14)[:, None] + torch.arange(14)).remainder(2).double()
    a, b = normal(2, 1, 14, 14), normal(2, 1, 14, 14, seed=1)
    b[1, 0] = checkerboard
    scores = compared(a, b)
    score = scores.pop(("hog", "signed"))
    assert {reason: where.tolist() for reason, where in score.undefined.items()} == {
        "constant HOG descriptor (compared network)": [False, True]
    }
    assert score.values.isnan().tolist() == [False, True]
    assert all(not other.undefined and not other.values.isnan().any() for other in scores.values())


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shifting_what_is_ready_is_making_ready_what_is_shifted(shape, dtype):
    a, b = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    words = torch.rand(len(b), max(len(shape) - 2, 1), generator=generator(), dtype=torch.float64)
    moved = ready(b, "compared network", ALL).shifted(words)
    found = {(s.measure, s.sign): s.values for s in compare(ready(a, "trained network", ALL), moved)}
    # Means and sums of squares are those of another order of the same values.
    assert_equal_scores(found, values_of(compared(a, shifted(b, words))), tolerance=1e-13)
    spearmans = [name for name in found if name[0] == "spearman"]
    assert all(torch.equal(found[name], raw_similarities(a, shifted(b, words))[name]) for name in spearmans)


def test_shifting_keeps_the_reasons_that_stay_true():
    b = normal(3, 1, 13, 13)
    b[0], b[2] = 0, torch.nan
    # Alternating rows have no gradient but where an odd number of them meets itself: at the seam of the torus.
    b[1, 0] = torch.tensor([0.0, 1.0]).repeat(7)[:13].double()[:, None]
    moved = ready(b, "b", ALL).shifted(torch.full((3, 2), 0.5, dtype=torch.float64))
    for part in moved.parts:
        reasons = {reason: where.tolist() for reason, where in part.undefined.items()}
        assert reasons["constant map (b)"] == [True, False, False]
        assert reasons["not finite (b)"] == [False, False, True]
    other = ready(normal(3, 1, 13, 13, seed=1), "a", ("hog",))
    before = next(compare(other, ready(b, "b", ("hog",))))
    after = next(compare(other, ready(b, "b", ("hog",)).shifted(torch.full((3, 2), 0.5, dtype=torch.float64))))
    assert before.undefined["constant HOG descriptor (b)"].tolist() == [False, True, False]
    assert set(after.undefined) == {"constant map (b)", "not finite (b)"}
    assert after.values.isnan().tolist() == [True, False, True]


@each_shape
def test_rolled_compares_each_sample_with_the_one_before(shape):
    a, b = normal(*shape), normal(*shape, seed=1)
    b[2] = 0
    found = {
        (s.measure, s.sign): s
        for s in compare(ready(a, "trained network", ALL), ready(b, "compared network", ALL).rolled())
    }
    assert_equal_scores(values_of(found), values_of(compared(a, b.roll(1, 0))), tolerance=1e-14)
    for score in found.values():
        assert list(score.undefined) == ["constant map (compared network)"]
        assert score.undefined["constant map (compared network)"].nonzero().flatten().tolist() == [3 % len(a)]


def test_a_batch_of_one_has_no_other_sample():
    maps = ready(normal(1, 1, 14, 14), "a", ALL)
    scores = list(compare(maps, maps.rolled()))
    assert len(scores) == 11
    for score in scores:
        assert score.values.isnan().all()
        assert {reason: where.tolist() for reason, where in score.undefined.items()} == {"no other sample": [True]}


SHIFTS = {"image": (6, 3, 5, 7), "signal": (6, 3, 11), "table": (6, 13)}


def axes_of(shape):
    return range(2 if len(shape) > 2 else 1, len(shape))


@pytest.mark.parametrize("shape", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("seed", range(5))
def test_shifted_is_a_roll_on_the_torus_by_the_samples_own_offset(shape, seed):
    maps, axes = normal(*shape), list(axes_of(shape))
    words = torch.rand(len(maps), len(axes), generator=generator(seed), dtype=torch.float64)
    moved = shifted(maps, words)
    for sample, word in enumerate(words):
        offsets = [1 + int(w * (shape[axis] - 1)) for w, axis in zip(word.tolist(), axes, strict=True)]
        rolled = maps[sample].roll(offsets, [axis - 1 for axis in axes])
        assert torch.equal(moved[sample], rolled)
    assert torch.equal(moved.flatten(1).sort(1).values, maps.flatten(1).sort(1).values)


@pytest.mark.parametrize("shape", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("word", [2.0**-33, 0.5, 1 - 2.0**-33, 1.0])
def test_no_word_leaves_any_axis_where_it_is(shape, word):
    # A word just below one is one in float32.
    axes = list(axes_of(shape))
    for axis in axes:
        line = torch.arange(shape[axis], dtype=torch.float64)
        maps = line.view(-1, *(1,) * (len(shape) - 1 - axis)).expand(shape)
        for dtype in (torch.float32, torch.float64):
            moved = shifted(maps, torch.full((len(maps), len(axes)), word, dtype=dtype))
            assert (moved != maps).all()


@pytest.mark.parametrize("size", [2, 5])
def test_offsets_are_uniform_over_all_but_zero(size):
    words = torch.rand(20_000, 1, generator=generator(), dtype=torch.float64)
    moved = shifted(torch.eye(size, dtype=torch.float64)[:1].expand(20_000, -1), words)
    counts = moved.sum(0)
    assert float(counts[0]) == 0
    assert size == 2 or stats.chisquare(counts[1:].numpy()).pvalue > 0.01


@pytest.mark.parametrize(
    ("shape", "measures"), [((4, 9), ["ssim", "hog"]), ((4, 2, 10), ["ssim"]), ((4, 1, 11, 11), ["hog"])]
)
def test_maps_that_nothing_applies_to_are_not_applicable_and_not_an_empty_result(shape, measures):
    with pytest.raises(
        NotApplicableError, match=f"{', '.join(measures)}: nothing to compare maps .*: ssim needs 11 .*12"
    ):
        ready(normal(*shape), "a", measures)


def test_a_map_that_only_changes_its_sign_as_a_whole_is_the_same_up_to_sign():
    maps = normal(5, 3, 16, 16)
    flipped = maps * torch.tensor([1.0, -1, 1, -1, -1]).view(-1, 1, 1, 1)
    scores = compared(maps, flipped)
    assert scores["spearman", "signed"].values.tolist() == [1, -1, 1, -1, -1]
    assert scores["spearman", "up_to_sign"].values.tolist() == [1] * 5
    other = compared(maps, normal(5, 3, 16, 16, seed=1))
    assert (other["spearman", "up_to_sign"].values < 0.3).all()
