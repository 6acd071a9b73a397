"""Rankings: by hand, against scipy, and against published critical values."""

import numpy as np
import pytest
from scipy import stats

from harness.statistics import cliques, kendall_w, nemenyi, places, ranks_of


def test_the_highest_score_is_first_and_ties_share():
    np.testing.assert_array_equal(ranks_of(np.array([[1.0, 3, 2], [5, 5, 1]])), [[3, 1, 2], [1.5, 1.5, 3]])


@pytest.mark.parametrize("ties", [False, True])
def test_w_is_friedmans_statistic_over_its_largest_value(ties):
    scores = np.random.default_rng(0).normal(size=(12, 5)) + np.arange(5) / 3
    scores = scores.round(0) if ties else scores
    friedman = stats.friedmanchisquare(*scores.T).statistic
    assert kendall_w(ranks_of(scores)) == pytest.approx(friedman / (12 * (5 - 1)))


def test_w_is_one_where_all_agree_zero_where_two_are_opposed_and_unknown_without_an_order():
    agreed = np.tile([1.0, 2, 3], (4, 1))
    assert kendall_w(agreed) == 1
    assert kendall_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == 0
    assert np.isnan(kendall_w(np.full((4, 3), 2.0)))
    assert np.isnan(kendall_w(agreed[:1]))


# Demsar (2006), table 5 (a).
@pytest.mark.parametrize(("items", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_the_published_one(items, q):
    assert nemenyi(items, 14) == pytest.approx(q * np.sqrt(items * (items + 1) / (6 * 14)), rel=1e-3)


def test_places_are_sure_where_methods_differ_and_shared_where_they_do_not():
    generator = np.random.default_rng(0)
    common = generator.normal(size=200)
    far = np.stack([common + 1, common, common - 1]) + 0.1 * generator.normal(size=(3, 200))
    assert [(p.rank, p.low, p.high, p.best) for p in places(far)] == [(1, 1, 1, 1), (2, 2, 2, 0), (3, 3, 3, 0)]
    twins = places(np.stack([common, common, common - 1]))
    assert [(p.rank, p.best) for p in twins] == [(1.5, 0.5), (1.5, 0.5), (3, 0)]
    near = places(np.stack([common, common + 0.5 * generator.permutation(np.linspace(-1, 1.1, 200))]))
    assert {(p.low, p.high) for p in near} == {(1, 2)}
    assert sum(p.best for p in near) == pytest.approx(1)
    assert all(0.02 < p.best < 0.98 for p in near)


def test_the_chance_to_be_best_is_that_of_the_normal_distribution():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(2, 400))
    apart = scores[0] - scores[1]
    expected = stats.norm.cdf(apart.mean() / (apart.std() / 20))
    assert places(scores)[0].best == pytest.approx(expected, abs=0.04)


def test_cliques_are_the_longest_runs_of_which_no_two_are_told_apart():
    ranks = np.array([3.0, 1.0, 2.0, 4.0])
    apart = np.zeros((4, 4), dtype=bool)

    def told_apart(*pairs):
        found = apart.copy()
        for one, other in pairs:
            found[one, other] = found[other, one] = True
        return found

    assert cliques(ranks, apart) == [[1, 2, 0, 3]]
    assert cliques(ranks, told_apart((1, 0), (1, 3))) == [[1, 2], [2, 0, 3]]
    assert cliques(ranks, ~np.eye(4, dtype=bool)) == []
    # Two ends that are told apart break the run, although neighbours are not.
    assert cliques(ranks, told_apart((1, 3))) == [[1, 2, 0], [2, 0, 3]]
