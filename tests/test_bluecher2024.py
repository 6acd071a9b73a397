"""The rules for Bluecher et al. on simulated areas, both ways, and rank agreement against scipy."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from harness.claims import judge
from harness.evidence import TODAY, evidence_of
from harness.reproductions.bluecher2024 import REPRODUCTION, agreement, draw_rankings, setups
from made_rows import N, areas, results_of

METHODS = ("good", "fair", "poor", "random")
SETUPS = [f"pixel_flipping[fill={fill},patch={patch}]" for fill in ("black", "blur") for patch in (1, 2, 4)]


def evidence(quality, shift, noise=0.02, n=N, flip=False):
    """Areas by setup; `shift` spoils both orders alike, so that the gain is free of it; `flip` spoils the gain."""
    generator = np.random.default_rng(0)
    made = {}
    for setup in SETUPS:
        spoilt = dict(zip(METHODS, shift * generator.permutation(len(METHODS)), strict=True))
        other = dict(zip(METHODS, shift * generator.permutation(len(METHODS)), strict=True))
        for method in METHODS:
            value = 0.5 + quality[method] / 2
            most = 1 - value + spoilt[method] + noise * generator.normal(size=n)
            least = value + (other if flip else spoilt)[method] + noise * generator.normal(size=n)
            made[method, setup] = areas(most, least)
    return evidence_of(results_of(made), [TODAY])[0]


QUALITY = {"good": 0.6, "fair": 0.4, "poor": 0.2, "random": 0.0}


def outcomes(**how):
    table = judge(REPRODUCTION.claims, [evidence(**{"quality": QUALITY, "shift": 0.3, **how})])
    return table.set_index("claim")["outcome"].to_dict()


def test_in_the_world_of_the_paper_every_claim_is_reproduced():
    assert outcomes() == {"B-1": "reproduced", "B-2": "reproduced", "B-3": "reproduced"}


def test_a_gain_that_depends_on_the_setup_is_no_more_stable():
    assert outcomes(shift=3.0, flip=True)["B-1"] != "reproduced"


def test_where_no_setup_spoils_a_ranking_the_gain_is_no_more_stable_and_the_orders_agree():
    found = outcomes(shift=0.0)
    assert found["B-1"] != "reproduced"
    assert found["B-2"] == "not reproduced"


def test_a_method_behind_the_random_map_is_told():
    assert outcomes(quality={**QUALITY, "poor": -0.2})["B-3"] == "not reproduced"


def test_a_handful_of_samples_tells_nothing():
    assert set(outcomes(n=9).values()) == {"not testable"}


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_the_mean_kendall_tau_of_all_pairs_of_setups(seed):
    values = np.random.default_rng(seed).normal(size=(4, 7, 3))
    means = values.mean(2)
    expected = np.mean([kendalltau(a, b).statistic for a, b in combinations(means, 2)])
    assert agreement(values) == pytest.approx(expected)


def test_the_same_ranking_everywhere_agrees_by_one_and_its_reverse_by_minus_one():
    ranks = np.arange(5.0)[:, None]
    assert agreement(np.stack([ranks, ranks * 2 + 1, ranks**3])) == 1
    assert agreement(np.stack([ranks, -ranks])) == -1


def test_scores_are_higher_for_better_and_leave_out_samples_without_an_order():
    given = evidence(QUALITY, 0.0)
    methods, found, lacks = setups(given)
    assert methods == list(METHODS)
    assert not lacks
    for each in found.values():
        assert each.shape == (len(SETUPS), len(METHODS), N)
        assert (np.diff(each.mean(2), axis=1) < 0).all()
    assert found["gain"] == pytest.approx(found["least_first"] + found["most_first"])


def test_the_rankings_are_drawn_and_a_study_without_setups_draws_nothing():
    assert len(draw_rankings(evidence(QUALITY, 0.3)).axes) == 4
    assert draw_rankings(evidence_of(results_of({("m", "zero_fraction"): []}), [TODAY])[0]) is None


def test_a_method_that_failed_is_left_out_and_too_few_orders_tell_nothing():
    generator = np.random.default_rng(0)
    made = {(m, setup): areas(*generator.random((2, N))) for m in METHODS for setup in SETUPS}
    failed = {("poor", SETUPS[1]): ("failed", "")}
    assert setups(evidence_of(results_of(made, statuses=failed), [TODAY])[0])[0] == ["good", "fair", "random"]
    (one,) = (evidence_of(results_of({("m", SETUPS[0]): areas([0.1], [0.2])}), [TODAY]),)
    assert "1 of 1 samples have maps with an order by every method, at least 10" in setups(one[0])[2]
