"""Views of the randomization tests on rows made for it: each says what is in the rows, in both directions."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from harness import Results
from harness.figures import write_figures
from harness.plan import Cell
from harness.rows import rows_of
from harness.statistics import Thresholds
from harness.store import Memory, Part
from harness.text import markdown
from harness.types import Score
from harness.verdicts import curve, in_error, sensitivity
from harness.words import conclusion, problems

N = 40
STAGES = ("fc", "conv2", "conv1")
SIGNED = {"channels": "sum", "sign": "signed", "normalization": "none"}


def around(value, seed, spread=0.02):
    generator = torch.Generator().manual_seed(seed)
    return value + spread * torch.randn(N, generator=generator, dtype=torch.float64)


def randomization(survives=0.0, stages=(0.9, 0.2, 0.0), mode="top_down", ceiling=1.0, random=0.0, draws=10):
    """What `parameter_randomization` yields for a method of which this much survives, in full and at each stage."""
    yield Score("spearman", around(ceiling, 0, 0.0), role="ceiling_rerun", stage="trained", stage_index=0, **SIGNED)
    for draw in range(draws):
        where = {"mode": "full", "stage": "all", "stage_index": 3, "draw": draw, **SIGNED}
        yield Score("spearman", around(survives, draw), **where)
        yield Score("spearman", around(0.0, 50 + draw), role="floor_shift", **where)
        if draw:
            yield Score("spearman", around(random, 100 + draw), role="floor_random", **where)
        yield Score("output_pearson", around(0.1, 150 + draw), mode="full", stage="all", stage_index=3, draw=draw)
    for draw, (index, left) in itertools.product(range(3), enumerate(stages, 1)):
        where = {"mode": mode, "stage": STAGES[index - 1], "stage_index": index, "draw": draw, **SIGNED}
        undefined = torch.full((N,), bool(np.isnan(left)))
        yield Score(
            "spearman", around(left, 200 + draw), {"constant map": undefined} if undefined.any() else {}, **where
        )


def labels(similarity=0.3, floor=0.1, ceiling=0.5):
    """What `label_randomization` yields."""
    roles = {"test": similarity, "floor_random": floor, "ceiling_retrain": ceiling, "floor_shift": 0.0}
    for seed, (role, value) in enumerate(roles.items()):
        missing = torch.full((N,), bool(np.isnan(value)))
        reason = {"invalid: the partner memorized 80 %": missing} if missing.any() else {}
        yield Score("spearman", around(value, seed, 0.0 if role != "test" else 0.02), reason, role=role, **SIGNED)


def classes(similarity=1.0):
    """What `random_logit` yields."""
    yield Score("spearman", around(1.0, 0, 0.0), role="ceiling_rerun", **SIGNED)
    for draw in range(10):
        yield Score("spearman", around(similarity, draw), mode="random", draw=draw, **SIGNED)
        yield Score("spearman", around(0.0, 50 + draw), mode="random", role="floor_shift", draw=draw, **SIGNED)
    yield Score("spearman", around(0.5, 7), mode="runner_up", **SIGNED)


def results_of(scores, function="parameter_randomization", expected=None, thresholds=None):
    """Results of one metric; `scores` by method."""
    store, cells = Memory(), []
    for method, made in scores.items():
        cell = Cell(f"{method}-{function}", "net", 0, "data", method, function, 0)
        info = {
            "status": "done",
            "reason": "",
            "method_family": "gradient" if not expected else "control",
            "method_expected": {function: expected} if expected else {},
            "metric_function": function,
            "metric_version": 1,
            "direction": "higher",
            "headline": "spearman",
            "summary_statistic": "mean",
            **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward", "seconds", "maps_seconds"), 1),
        }
        rows = rows_of(made, [f"s{i:02}" for i in range(N)], torch.zeros(N, dtype=torch.long))
        store.put(cell, Part(rows, info))
        cells.append(cell)
    study = {"study": {"name": "made"}, "run": "made"}
    return Results(study, tuple(cells), store, *([thresholds] if thresholds else []))


def sensitive(**made):
    return results_of({"m": randomization(**made)}).table("sensitivity")["sensitive"].item()


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((0.1, 0.0, 0.0), "from fc on, stage 1 of 3"),
        ((0.9, 0.2, 0.0), "from conv2 on, stage 2 of 3"),
        ((1.0, 1.0, 0.1), "from conv1 on, stage 3 of 3"),
        ((1.0, 1.0, 1.0), "to none of 3 stages"),
        ((np.nan, 0.2, 0.1), "from conv2 on, stage 2 of 3; unknown at fc"),
    ],
)
def test_a_cascade_says_from_which_stage_on_it_is_noticed(stages, said):
    assert sensitive(stages=stages) == said


def test_blocks_that_are_randomized_alone_are_listed():
    said = sensitive(stages=(0.1, 0.9, 0.2), mode="independent")
    assert said == "to 2 of 3 blocks alone: fc, conv1"


def test_sensitivity_is_measured_above_chance_and_below_the_ceiling():
    """0.4 is much of a ceiling of 0.6 and little of a ceiling of 1."""
    assert sensitive(stages=(0.4, 0.4, 0.4)) == "from fc on, stage 1 of 3"
    assert sensitive(stages=(0.4, 0.4, 0.4), ceiling=0.6) == "to none of 3 stages"
    assert sensitive(stages=(0.0, 0.0, 0.0), ceiling=0.2).startswith("unknown")


def test_a_stage_has_no_verdict():
    results = results_of({"m": randomization()})
    assert len(results.table("verdicts")) == 1
    assert set(results.table("cascade")["stage"]) == set(STAGES)


@pytest.mark.parametrize(
    ("survives", "random", "word"),
    [(0.0, 0.0, "PASS"), (0.35, 0.0, "INCONCLUSIVE"), (0.8, 0.1, "FAIL"), (0, 0.99, "FAIL")],
)
def test_the_curve_says_the_verdict_at_the_thresholds_that_are_used(survives, random, word):
    results = results_of({"m": randomization(survives, random=random)})
    judged, at = results.table("verdicts").iloc[0], results.table("thresholds").iloc[0]
    assert judged["verdict"] == word
    if word in ("PASS", "FAIL"):
        assert at["0.20" if word == "PASS" else "0.50"] == word
    else:
        assert at["0.20"] == "FAIL"
        assert at["0.50"] == "PASS"


def test_the_curve_changes_where_the_limits_of_the_interval_are():
    results = results_of({"m": randomization(0.33)})
    judged, at = results.table("verdicts").iloc[0], results.table("thresholds").iloc[0]
    for place in (f"{0.05 * step:.2f}" for step in range(1, 20)):
        beyond = [
            word
            for word, sure in (("PASS", judged["high"] < float(place)), ("FAIL", judged["low"] > float(place)))
            if sure
        ]
        assert at[place] == (beyond[0] if beyond else "INCONCLUSIVE")


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ({"ceiling": 0.1}, "INVALID"),
        ({"ceiling": 0.1, "random": 0.1}, "INVALID"),
        ({"draws": 4}, "INCONCLUSIVE"),
        ({"draws": 4, "random": 0.99}, "FAIL"),
    ],
)
def test_what_cannot_be_judged_cannot_be_judged_at_any_threshold(made, word):
    results = results_of({"m": randomization(**made)})
    assert results.table("verdicts")["verdict"].item() == word
    assert set(results.table("thresholds").iloc[0][-19:]) == {word}


def test_other_thresholds_make_other_verdicts_of_the_same_rows():
    scores = list(randomization(0.3))
    words = [
        results_of({"m": scores}, thresholds=Thresholds(pass_below=below, fail_above=above))
        .table("verdicts")["verdict"]
        .item()
        for below, above in ((0.2, 0.5), (0.4, 0.5), (0.1, 0.2))
    ]
    assert words == ["INCONCLUSIVE", "PASS", "FAIL"]


def test_the_expected_number_of_false_verdicts_counts_those_that_can_be_taken():
    results = results_of(
        {f"m{index}": randomization(0.1 * index) for index in range(8)} | {"noise": randomization(ceiling=0)}
    )
    judged = results.table("verdicts")
    assert (judged["verdict"] == "INVALID").sum() == 1
    assert in_error(judged) == "of 8 verdicts at most 0.2 are expected to be false by chance"
    assert in_error(judged) in conclusion(results)["look at"]
    assert in_error(judged[judged["verdict"] == "INVALID"]) == ""
    assert (judged["chance"].dropna() <= 0.025).all()


@pytest.mark.parametrize(("similarity", "left"), [(0.1, 0.0), (0.3, 0.5), (0.5, 1.0), (0.9, 2.0)])
def test_label_randomization_is_placed_between_its_levels_without_a_verdict(similarity, left):
    row = results_of({"m": labels(similarity)}, "label_randomization").table("verdicts").iloc[0]
    assert row["survival"] == pytest.approx(left, abs=0.03)
    assert row["low"] < row["survival"] < row["high"]
    assert row["verdict"] == ""
    assert row["reason"] == "one pair of networks: no verdict, interval over samples"


def test_an_invalid_partner_leaves_its_reason_and_no_number():
    row = results_of({"m": labels(np.nan)}, "label_randomization").table("verdicts").iloc[0]
    assert (row["reason"], row["verdict"]) == ("invalid: the partner memorized 80 %", "")
    assert np.isnan(row["survival"])


def test_levels_that_do_not_differ_place_nothing():
    row = results_of({"m": labels(0.3, floor=0.5, ceiling=0.5)}, "label_randomization").table("verdicts").iloc[0]
    assert np.isnan(row["survival"])
    assert row["reason"].endswith("agree by 0.00 more than two trained on permuted ones: nothing to lie between")


@pytest.mark.parametrize(("similarity", "word"), [(0.05, "PASS"), (0.99, "FAIL")])
def test_random_logits_are_judged_by_the_random_class_and_not_by_the_runner_up(similarity, word):
    results = results_of({"m": classes(similarity)}, "random_logit")
    (row,) = results.table("verdicts").to_dict("records")
    assert row["verdict"] == word
    assert row["survival"] == pytest.approx(similarity, abs=0.03)
    said = conclusion(results)["held" if word == "PASS" else "did not hold"]
    assert said == (
        "the map depends on the class: m" if word == "PASS" else "the map stays whatever class is explained: m"
    )


@pytest.mark.parametrize("function", ["parameter_randomization", "random_logit"])
def test_a_control_that_comes_out_wrong_is_said_and_ends_in_exit_code_1(function):
    scores = randomization(0.0) if function == "parameter_randomization" else classes(0.0)
    broken = results_of({"sobel": scores}, function, expected="FAIL")
    assert problems(broken)[0].startswith("BROKEN CONTROL: sobel is PASS, must be FAIL")
    scores = randomization(1.0, random=1.0) if function == "parameter_randomization" else classes(1.0)
    assert problems(results_of({"sobel": scores}, function, expected="FAIL")) == []


def test_empty_tables_stay_empty():
    empty = pd.DataFrame()
    assert curve(empty).empty
    assert sensitivity(empty).empty
    assert in_error(empty) == ""
    assert markdown(results_of({}).table("verdicts")) == "|  |\n|  |\n"


def test_the_figure_of_survival_is_drawn_for_each_test(tmp_path):
    scores = {"a": randomization(0.0), "b": randomization(0.6), "noise": randomization(ceiling=0.0)}
    names = {path.stem for path in write_figures(results_of(scores), tmp_path)}
    assert names == {f"{name}-net" for name in ("survival-parameter_randomization", "stages", "headlines", "cost")}


def test_a_stage_behind_the_first_one_that_is_not_noticed_is_named():
    assert sensitive(stages=(0.1, 0.9, 0.0)) == "from fc on, stage 1 of 3, but not at conv2"
    assert sensitive(stages=(0.9, 0.1, 0.9)) == "from conv2 on, stage 2 of 3, but not at conv1"


def test_a_headline_that_was_not_among_the_measures_says_so():
    scores = [replace(s, measure="pearson") if s.measure == "spearman" else s for s in randomization()]
    (row,) = results_of({"m": scores}).table("headlines").to_dict("records")
    assert np.isnan(row["value"])
    assert row["reason"] == "spearman is not among the measures"
    (row,) = results_of({"m": randomization()}).table("headlines").to_dict("records")
    assert row["reason"] == ""


@pytest.mark.parametrize("keeps_its_shape", [True, False])
def test_a_map_that_flips_as_a_whole_passes_by_its_sign_alone(keeps_its_shape):
    """As of LRP-z+: relevance takes the sign of the logit, and everywhere at once."""

    def flipping():
        for score in randomization(0.0):
            yield score
            if score.measure != "spearman":
                continue
            level = 0.9 if keeps_its_shape and score.role == "test" else 0.02
            values = score.values if score.role == "ceiling_rerun" else around(level, 300 + (score.draw or 0))
            yield replace(score, values=values, sign="up_to_sign", undefined={})

    results = results_of({"m": flipping()})
    judged = results.table("verdicts").set_index("sign")["verdict"]
    assert judged["signed"] == "PASS"
    assert judged["up_to_sign"] == ("FAIL" if keeps_its_shape else "PASS")
    said = "passes by its sign alone (the shape of the map survives): m"
    assert (said in conclusion(results)["look at"]) == keeps_its_shape
    sensitive = results.table("sensitivity").set_index("sign")["sensitive"]
    assert sensitive["signed"] == "from conv2 on, stage 2 of 3"
    assert sensitive["up_to_sign"] == ("to none of 3 stages" if keeps_its_shape else "from fc on, stage 1 of 3")


def test_the_output_that_counts_is_that_of_the_full_randomization():
    stage = {"mode": "top_down", "stage": "fc", "stage_index": 1}
    unchanged = [Score("output_pearson", around(1.0, draw, 0.0), draw=draw, **stage) for draw in range(3)]
    row = results_of({"m": [*randomization(), *unchanged]}).table("verdicts").iloc[0]
    assert row["verdict"] == "PASS"
    assert row["output_pearson"] == pytest.approx(0.1, abs=0.02)


def test_a_place_between_levels_needs_levels_that_differ_and_a_verdict():
    for made, placed in (({}, True), ({"survives": 0.98, "random": 0.97}, False), ({"ceiling": 0.1}, False)):
        row = results_of({"m": randomization(**made)}).table("verdicts").iloc[0]
        assert np.isnan(row["above_random"]) != placed
    row = results_of({"m": randomization(0.4, random=0.2)}).table("verdicts").iloc[0]
    assert row["above_random"] == pytest.approx(0.25, abs=0.02)


def test_a_stage_is_noticed_if_the_whole_interval_is_below_and_known_up_to_the_share_that_may_be_undefined():
    labels = {"model": "net", "model_seed": 0, "method": "m", "metric": "p", "sign": "signed", "mode": "top_down"}
    stages = [
        {"stage_index": 3, "stage": "c", "survival_low": 0.0, "survival": 0.1, "survival_high": 0.49, "undefined": 0.1},
        {"stage_index": 1, "stage": "a", "survival_low": 0.3, "survival": 0.4, "survival_high": 0.51, "undefined": 0},
        {"stage_index": 2, "stage": "b", "survival_low": 0.0, "survival": 0.1, "survival_high": 0.2, "undefined": 0.11},
    ]
    frame = pd.DataFrame([{**labels, **stage} for stage in stages])
    assert sensitivity(frame)["sensitive"].item() == "from c on, stage 3 of 3; unknown at b"
    lax = Thresholds(fail_above=0.6, degenerate_at_most=0.2)
    assert sensitivity(frame, lax)["sensitive"].item() == "from a on, stage 1 of 3"


def test_label_randomization_has_no_verdict_at_any_threshold():
    assert results_of({"m": labels()}, "label_randomization").table("thresholds").empty


@pytest.mark.parametrize(("similarity", "said"), [(0.45, True), (0.305, False), (0.2, False)])
def test_maps_that_stay_for_permuted_labels_are_worth_a_look_if_the_whole_interval_says_so(similarity, said):
    results = results_of({"m": labels(similarity)}, "label_randomization")
    row = results.table("verdicts").iloc[0]
    assert (row["survival"] > 0.5) == (similarity > 0.3)
    assert (row["low"] > 0.5) == said
    words = "nearly the same for a network that has learnt permuted labels: m"
    assert (words in conclusion(results)["look at"]) == said


def test_an_undecided_control_is_not_broken_and_an_undecided_method_is_named():
    assert problems(results_of({"sobel": randomization(0.35)}, expected="FAIL")) == []
    looked = conclusion(results_of({"m": randomization(0.35)}))["look at"]
    assert "inconclusive by parameter_randomization" in looked
