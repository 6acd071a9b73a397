"""Trained networks against ones that have learnt nothing: effects, permutation p, and the verdicts they lead to."""

from dataclasses import replace

import numpy as np
import pytest

from harness.statistics import against
from harness.words import conclusion, statements
from made_rows import cascades, learning, networks, results_of

NULL = [0.08, 0.09, 0.1, 0.11, 0.12, 0.08, 0.09, 0.1, 0.11, 0.12]
SAME = [24.0 * (1 + 1e-7 * shift) for shift in (-3, -2, -1, 0, 0, 1, 2, 3, 1, -1)]


def table(*made, compares=None, name="global", **thresholds):
    """The table of one introspection with these scores."""
    scores = [score for scores in made for score in scores]
    info = learning(**(compares or {"accuracy": "higher"}))
    run = results_of({("probe", "network_randomization"): scores}, more={"probe": info})
    return replace(run, thresholds=replace(run.thresholds, **thresholds)).table(name)


def verdict(*made, **options):
    row = table(*made, **options).iloc[0]
    return row["verdict"], row["reason"]


def test_effect_and_p_have_the_closed_form():
    found = against(5.0, np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.mean == 2.5
    assert found.deviation == pytest.approx(np.sqrt(5 / 3))
    assert found.effect == pytest.approx(2.5 / np.sqrt(5 / 3))
    assert found.p == pytest.approx(1 / 5)
    assert found.draws == 4
    assert against(2.5, np.array([1.0, 2.0, 3.0, 4.0])).p == pytest.approx(3 / 5)
    assert against(3.0, np.array([1.0, 2.0, 3.0, 4.0])).p == pytest.approx(3 / 5)  # what is equal speaks against it


def test_of_a_measure_that_is_to_be_lower_signs_turn():
    null = np.array([1.0, 2.0, 3.0, 4.0])
    assert against(0.0, null, lower=True).effect == pytest.approx(-against(0.0, null).effect)
    assert against(0.0, null, lower=True).p == pytest.approx(1 / 5)
    assert against(0.0, null).p == 1
    mirrored = against(5.0, 5.0 - null)
    assert (against(0.0, null, lower=True).effect, against(0.0, null, lower=True).p) == (mirrored.effect, mirrored.p)


def test_draws_without_a_value_do_not_count():
    with_gaps = against(5.0, np.array([1.0, np.nan, 2.0, 3.0, np.nan, 4.0]))
    assert with_gaps == against(5.0, np.array([1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(against(np.nan, np.array([1.0, 2.0])).p)
    assert np.isnan(against(1.0, np.array([np.nan])).p)
    assert against(1.0, np.array([np.nan])).draws == 0


def test_p_is_uniform_where_the_trained_network_is_one_of_the_others():
    draws = np.random.default_rng(0).normal(size=(4000, 11))
    found = np.array([against(float(each[0]), each[1:]).p for each in draws])
    levels = np.arange(1, 12) / 11
    shares = np.array([(found <= level + 1e-9).mean() for level in levels])
    # Four standard errors of a share of 4000.
    assert np.abs(shares - levels).max() < 4 * 0.5 / np.sqrt(4000)
    passing = np.mean([against(float(each[0]), each[1:]).apart for each in draws])
    assert passing <= 1 / 11 + 4 * np.sqrt(1 / 11 * 10 / 11 / 4000)


def test_what_differs_by_rounding_only_is_equal():
    for value in (24.0, 24.0 * (1 + 5e-7), 24.0 * (1 - 5e-7)):
        for lower in (False, True):
            found = against(value, np.array(SAME), lower=lower)
            assert (found.p, found.effect, found.deviation) == (1, 0, 0)
            assert found.alike
            assert not found.apart
    # A difference beyond rounding is one, also from networks that do not differ.
    found = against(24.1, np.array(SAME))
    assert (found.p, found.deviation) == (1 / 11, 0)
    assert np.isnan(found.effect)
    assert found.apart
    assert against(24.1, np.array(SAME), lower=True).alike
    # And so is a spread that is small, but none of rounding.
    assert against(24.01, 24 + 1e-4 * np.arange(10)).effect > 10


def test_beyond_every_other_network_passes():
    assert verdict(networks(0.98, NULL, NULL)) == ("PASS", "")
    assert verdict(networks(0.02, NULL, NULL), compares={"accuracy": "lower"}) == ("PASS", "")
    assert verdict(networks(24.1, SAME, SAME)) == ("PASS", "")


def test_what_random_networks_have_too_fails_and_the_reason_says_which():
    for trained in (0.1, 0.075):  # like the others, and below them by less than their spread
        said, reason = verdict(networks(trained, NULL, NULL))
        assert said == "FAIL"
        assert reason == "nothing tells it from re-initialized networks and networks with shuffled weights"
    assert verdict(networks(24.0, NULL, SAME)) == ("FAIL", "nothing tells it from networks with shuffled weights")
    assert verdict(networks(24.0, SAME, NULL)) == ("FAIL", "nothing tells it from re-initialized networks")
    assert verdict(networks(0.98, NULL, NULL), compares={"accuracy": "lower"})[0] == "FAIL"


def test_a_clear_difference_to_the_wrong_side_fails_and_is_not_called_the_same():
    both = "re-initialized networks and networks with shuffled weights"
    high, low = [each + 1 for each in NULL], [each - 1 for each in NULL]
    assert verdict(networks(0.02, NULL, NULL)) == ("FAIL", f"it is on the wrong side of {both}")
    assert verdict(networks(0.9, NULL, high)) == (
        "FAIL",
        "it is on the wrong side of networks with shuffled weights",
    )
    assert verdict(networks(0.1, low, low), compares={"accuracy": "lower"})[1] == f"it is on the wrong side of {both}"
    assert verdict(networks(23.9, SAME, SAME))[1] == f"it is on the wrong side of {both}"
    # Of the two reasons to fail, that nothing tells it apart comes first.
    assert verdict(networks(0.1, NULL, high))[1] == "nothing tells it from re-initialized networks"


def test_between_the_two_it_is_inconclusive():
    beyond_all_but_near = max(NULL) + 0.005
    said, reason = verdict(networks(beyond_all_but_near, NULL, NULL))
    assert (said, reason[:21]) == ("INCONCLUSIVE", "not clearly apart fro")
    assert verdict(networks(0.98, NULL, [*NULL[:-1], 2.0]))[0] == "INCONCLUSIVE"
    said, reason = verdict(networks(0.98, NULL[:9], NULL))
    assert (said, reason) == ("INCONCLUSIVE", "9 networks of a kind are too few: at least 10")
    assert verdict(networks(0.98, NULL[:9], NULL), draws=9)[0] == "PASS"


def test_of_what_says_nothing_of_any_network_there_is_no_verdict():
    assert verdict(networks(np.nan, [np.nan] * 10, [np.nan] * 10)) == ("", "unknown")


def test_without_a_number_or_with_another_one_when_asked_again_it_is_invalid():
    assert verdict(networks(np.nan, NULL, NULL)) == ("INVALID", "unknown")
    said, reason = verdict(networks(0.98, [np.nan] * 10, NULL))
    assert (said, reason) == ("INVALID", "unknown")
    said, reason = verdict(networks(0.98, NULL, NULL, again=0.4))
    assert said == "INVALID"
    assert reason == "asked again it says 0.4 instead of 0.98: as far as from random networks"
    assert verdict(networks(0.98, NULL, NULL, again=0.9))[0] == "PASS"


@pytest.mark.parametrize(
    ("others", "word"), [(0.1, "PASS"), (0.19, "PASS"), (0.3, "INCONCLUSIVE"), (0.5, "INCONCLUSIVE"), (0.6, "FAIL")]
)
def test_likeness_is_judged_by_its_level(others, word):
    alike = {"accuracy": "alike"}
    assert verdict(networks(1, [others] * 10, [0.0] * 10), compares=alike)[0] == word
    said, reason = verdict(networks(1, [0.0] * 10, [others] * 10), compares=alike)
    assert said == word
    assert reason == ("" if word == "PASS" else f"networks with shuffled weights show {others:.2f} of the same")
    row = table(networks(1, [others] * 10, [0.0] * 10), compares=alike).iloc[0]
    assert row[["reinitialized_effect", "reinitialized_p", "shuffled_effect", "shuffled_p"]].isna().all()


def test_thresholds_of_likeness_are_those_of_similarity():
    scores = lambda: networks(1, [0.3] * 10, [0.3] * 10)  # noqa: E731
    assert verdict(scores(), compares={"accuracy": "alike"}, pass_below=0.4)[0] == "PASS"
    assert verdict(scores(), compares={"accuracy": "alike"}, fail_above=0.25)[0] == "FAIL"


def test_each_measure_and_layer_has_a_row_of_its_own():
    found = table(
        networks(0.98, NULL, NULL, stages=(0.5, 0.1)),
        networks(0.98, NULL, NULL, stage="layer1"),
        networks(0.1, NULL, NULL, stage="layer0"),
        networks(24.0, NULL, SAME, measure="norm"),
        compares={"accuracy": "higher", "norm": "higher"},
    )
    shown = found[["measure", "stage", "verdict"]].fillna("").to_numpy().tolist()
    assert shown == [
        ["accuracy", "", "PASS"],
        ["accuracy", "layer1", "PASS"],
        ["accuracy", "layer0", "FAIL"],
        ["norm", "", "FAIL"],
    ]
    row = found.iloc[0]
    assert row["trained"] == 0.98
    assert row["reinitialized"] == pytest.approx(np.mean(NULL))
    assert row["shuffled_deviation"] == pytest.approx(np.std(NULL, ddof=1))
    assert row["reinitialized_effect"] == pytest.approx((0.98 - np.mean(NULL)) / np.std(NULL, ddof=1))
    assert row["shuffled_p"] == pytest.approx(1 / 11)


def test_stages_of_randomization_are_a_table_and_no_verdict():
    found = table(networks(0.98, NULL, NULL, stages=(0.5, 0.1)), name="partly_random")
    assert found[["stage", "stage_index", "value"]].to_numpy().tolist() == [["block1", 1, 0.5], ["block2", 2, 0.1]]


def test_the_headline_is_that_of_the_whole_network():
    found = table(networks(0.98, NULL, NULL), networks(0.3, NULL, NULL, stage="layer1"), name="headlines")
    assert found["value"].tolist() == [0.98]
    board = table(networks(0.98, NULL, NULL), networks(0.1, NULL, NULL, stage="layer1"), name="leaderboard")
    assert board["network_randomization"].tolist()[1:] == ["0.98 PASS"]


def made(**kinds):
    """A run of introspections, each with these scores of `accuracy`."""
    run = {(name, "network_randomization"): list(scores) for name, scores in kinds.items()}
    return results_of(run, more={name: learning(accuracy="higher") for name in kinds})


def test_what_is_said_of_introspections():
    run = made(
        good=networks(0.98, NULL, NULL),
        scale=networks(24.0, NULL, SAME),
        nothing=networks(0.1, NULL, NULL),
        wrong=networks(0.02, NULL, NULL),
        few=networks(0.98, NULL[:3], NULL),
        unknown=networks(np.nan, NULL, NULL),
    )
    said = statements(run)
    assert said["held"] == ["what it shows is not there in networks that have learnt nothing: good (accuracy)"]
    assert said["did not hold"] == [
        "it shows the same of networks with shuffled weights: scale (accuracy)",
        "it shows the same of re-initialized networks and networks with shuffled weights: nothing (accuracy)",
        "it is on the wrong side of re-initialized networks and networks with shuffled weights: wrong (accuracy)",
    ]
    assert said["look at"] == [
        "invalid by network_randomization, unknown: unknown (accuracy)",
        "inconclusive by network_randomization, 3 networks of a kind are too few: at least 10: few (accuracy)",
    ]


def test_descriptors_of_maps_are_missed_only_where_there_are_maps():
    assert "descriptors" not in conclusion(made(good=networks(0.98, NULL, NULL)))["look at"]


def test_introspections_are_no_methods():
    scores = {
        ("gradient", "parameter_randomization"): list(cascades({"signed": [0.1] * 4})),
        ("probe", "network_randomization"): list(networks(0.98, NULL, NULL)),
    }
    run = results_of(scores, more={"probe": learning(accuracy="higher")})
    assert run.introspections == ["probe"]
    assert set(run.table("rankings").get("method", [])) <= {"gradient"}
    assert set(run.table("verdicts")["method"]) == {"gradient"}
    assert set(run.table("global")["method"]) == {"probe"}
    glance = run.table("glance").set_index("method")
    assert glance.loc["probe", "network_randomization"] == "PASS"
    assert run.table("cascade")["method"].unique().tolist() == ["gradient"]
