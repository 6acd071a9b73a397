"""Paired comparisons: against scipy and statsmodels, on closed forms, and how often they err."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.statistics import contrast, holm, rank_biserial, sign_flip, told, wilcoxon

NAN = np.nan


def column(*values):
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize("samples", [2, 5, 9, 13])
def test_sign_flips_are_all_of_them_where_that_is_possible(samples):
    values = np.random.default_rng(samples).normal(0.4, 1, samples)
    exact = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values) == pytest.approx(exact.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_random_sign_flips_come_close(shift):
    values = np.random.default_rng(1).normal(shift, 1, 60)
    normal = stats.ttest_1samp(values, 0).pvalue
    assert sign_flip(values) == pytest.approx(normal, abs=0.02)
    assert sign_flip(values) >= 1 / 8193


def test_a_p_value_is_never_zero_and_one_where_nothing_differs():
    assert sign_flip(np.full(50, 3.0)) == pytest.approx(1 / 8193)
    assert sign_flip(np.full(4, 3.0)) == 2 / 16
    assert sign_flip(np.zeros(50)) == wilcoxon(np.zeros(50)) == 1


def test_ties_of_sums_count_although_they_round():
    # All flips of equal values have sums that are equal in pairs: 0.1 + 0.2 - 0.3 is not 0 in binary.
    assert sign_flip(np.array([0.1, 0.2, 0.3])) == 2 / 8
    assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1


@pytest.mark.parametrize("samples", [6, 40])
def test_wilcoxon_and_rank_biserial_are_those_of_scipy(samples):
    values = np.random.default_rng(2).normal(0.3, 1, samples)
    assert wilcoxon(values) == stats.wilcoxon(values).pvalue
    positive = stats.wilcoxon(values, alternative="greater").statistic
    total = samples * (samples + 1) / 2
    assert rank_biserial(values) == pytest.approx((2 * positive - total) / total)
    assert rank_biserial(np.array([1.0, 2, 0])) == 1
    assert rank_biserial(np.zeros(3)) == 0


def test_holm_is_that_of_statsmodels_and_leaves_unknown_ones_out():
    generator = np.random.default_rng(0)
    for size in (1, 2, 30):
        p = generator.random(size) ** 3
        holed = np.insert(p, [0, size], NAN)
        expected = multipletests(p, method="holm")[1]
        np.testing.assert_allclose(holm(holed), [NAN, *expected, NAN], rtol=1e-12)
    assert len(holm(np.zeros(0))) == 0


def test_a_contrast_by_hand():
    found = contrast(column(1, 2, 3, NAN, 5), column(0, 2, 1, 1, 9))
    assert found.samples == 4
    assert found.difference.value == pytest.approx((1 + 0 + 2 - 4) / 4)
    assert found.median == 0.5
    assert found.superiority == (2 + 0.5) / 4
    assert found.rank_biserial == 0
    nothing = contrast(column(NAN, 1), column(1, NAN))
    assert nothing.samples == 0
    assert np.isnan(nothing.p)
    assert np.isnan(contrast(column(1), column(2)).p)


def test_draws_are_paired_where_there_are_as_many_else_averaged():
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(1, 12))
    first = generator.normal(size=(30, 1)) + drawn
    second = first + 0.1 + 0.01 * generator.normal(size=(30, 12))
    paired = contrast(first, second).difference
    assert paired.high - paired.low < 0.02
    assert contrast(first, second[:, :5]).difference.value == pytest.approx(
        (first.mean(1) - second[:, :5].mean(1)).mean()
    )


@pytest.mark.parametrize("test", ["wilcoxon", "sign_flip"])
def test_what_can_be_said(test):
    generator = np.random.default_rng(0)
    base = generator.normal(size=(80, 1))
    above = contrast(base + 0.5 + 0.2 * generator.normal(size=(80, 1)), base, test)
    assert told(above, above.p) == told(above, above.p, smallest=0.4) == "above"
    assert told(above, above.p, smallest=0.5) == told(above, 0.06) == ""
    assert told(above, above.p, smallest=1.0) == "equivalent"
    below = contrast(base, base + 0.5, test)
    assert told(below, below.p) == "below"


def crossed(generator, samples, draws, shares):
    """Values of two methods that do not differ, on the same samples; the shares are of differences."""
    row, own, rest = np.sqrt(shares)
    size = 2, samples, draws
    values = row * generator.exponential(size=(2, samples, 1)) + rest * generator.exponential(size=size)
    return values + own * generator.standard_normal((2, 1, draws)) + generator.standard_normal((samples, 1))


@pytest.mark.slow
@pytest.mark.parametrize("test", ["wilcoxon", "sign_flip"])
@pytest.mark.parametrize(
    ("samples", "draws", "shares"),
    # One draw does not say how far draws lie apart.
    [
        *((samples, 1, (share, 0, 1 - share)) for samples in (30, 200) for share in (1, 0.3)),
        *((100, draws, shares) for draws in (3, 10) for shares in ((1, 0, 0), (0.4, 0.2, 0.4), (0.05, 0.9, 0.05))),
    ],
)
def test_a_whole_table_errs_in_at_most_one_of_twenty_runs(test, samples, draws, shares):
    """Five methods of which none is better: ten pairs, of which any may be called different by mistake."""
    runs, generator, errors = 150, np.random.default_rng(5), 0
    for _ in range(runs):
        methods = [*crossed(generator, samples, draws, shares), *crossed(generator, samples, draws, shares)]
        common = generator.standard_normal((samples, 1))
        found = [contrast(one + common, other + common, test) for i, one in enumerate(methods) for other in methods[:i]]
        p = holm(np.array([each.p for each in found]))
        errors += any(told(each, q) for each, q in zip(found, p, strict=True))
    assert errors / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


def test_a_difference_that_is_there_is_found():
    generator = np.random.default_rng(5)
    base = generator.standard_normal((100, 1)) + generator.standard_normal((1, 10))
    hits = 0
    for _ in range(50):
        one, other = (base + 0.3 * generator.standard_normal((100, 10)) for _ in range(2))
        each = contrast(one + 0.15, other)
        hits += told(each, 10 * each.p) == "above"
    assert hits >= 48
