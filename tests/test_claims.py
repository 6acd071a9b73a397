"""Claims on rows made for them: what holds is reproduced, what does not is not, and too little is not testable."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness.claim_figures import draw_stages
from harness.claim_tables import changes, counts, page_of, wide
from harness.claims import Claim, Finding, above, below, every, judge, more, near, several
from harness.evidence import Protocol, Reading, evidence_of
from harness.latex import latex
from harness.statistics import mean_interval
from harness.types import Score
from made_rows import N, around, cascades, edges, labels, results_of

RAW, SHARE = Protocol("raw", above_chance=False), Protocol("share")


def values(value, spread=0.02, n=N, draws=1):
    return np.stack([around(value, seed, spread, n).numpy() for seed in range(draws)], 1)


def evidence(made, protocol=SHARE, **how):
    return evidence_of(results_of(made, **how), [protocol])[0]


@pytest.mark.parametrize(
    ("value", "spread", "n", "holds"),
    [
        (0.6, 0.02, N, True),
        (0.4, 0.02, N, False),
        (0.5, 0.02, N, None),
        (0.6, 1.0, N, None),
        (0.9, 0.02, 1, None),
    ],
)
def test_a_bound_is_told_only_if_all_of_the_interval_is_on_one_side(value, spread, n, holds):
    reading = Reading("q", values(value, spread, n))
    assert above(reading, 0.5).holds is holds
    assert below(reading, 0.5).holds is (None if holds is None else not holds)
    assert str(reading) in above(reading, 0.5).said


def test_a_reading_that_is_lacking_tells_nothing_and_says_why():
    lacking, there = Reading("q", lacks="no such method"), Reading("p", values(0.9))
    for found in (
        above(lacking, 0.5),
        below(lacking, 0.5),
        near(lacking, 0.5, 0.1),
        more(lacking, there, 0.1),
        more(there, lacking, 0.1),
    ):
        assert found.holds is None
        assert "no such method" in found.said


def test_a_comparison_is_in_pairs():
    common = np.random.default_rng(0).normal(0, 5, (N, 3))
    first, second = Reading("a", common + values(0.5, draws=3)), Reading("b", common)
    assert more(first, second, 0.2).holds is True
    assert more(first, second, 0.8).holds is False
    assert more(second, first, 0.2).holds is False
    # Alone, neither is known to within several units.
    assert above(first, 0.0).holds is None
    assert more(first, Reading("c", values(0.0)[:5]), 0.2).holds is None


def test_near_needs_the_whole_interval_inside():
    tight, wide_one = Reading("q", values(0.98, 0.001)), Reading("q", values(0.98, 0.2))
    assert near(tight, 0.98, 0.02).holds is True
    assert near(tight, 0.9, 0.02).holds is False
    assert near(tight, 1.1, 0.02).holds is False
    assert near(wide_one, 0.98, 0.02).holds is None


@pytest.mark.parametrize("found", list(itertools.product([True, False, None], repeat=3)))
def test_every_and_several_are_three_valued(found):
    findings = [Finding(holds, f"{index}") for index, holds in enumerate(found)]
    told = False if False in found else None if None in found else True
    assert every(findings).holds is told
    for least in (1, 2, 3):
        # What is unknown may turn out either way.
        outcomes = {
            sum(world) >= least
            for world in itertools.product(*[[True, False] if holds is None else [holds] for holds in found])
        }
        assert several(findings, least).holds is (outcomes.pop() if len(outcomes) == 1 else None)
    assert set(every(findings).said.split("; ")) == {"0", "1", "2"}


def test_nothing_said_is_nothing_found():
    assert every([]).holds is None
    assert several([], 1).holds is False


def test_similarity_is_read_as_it_is_or_as_the_share_above_chance():
    made = {("m", "parameter_randomization"): cascades({"signed": (0.8, 0.6)}, chance=0.2, ceiling=0.9)}
    raw, share = evidence_of(results_of(made), [RAW, SHARE])
    where = {"mode": "top_down", "stage": "fc"}
    assert raw.left("m", "signed", **where).interval.value == pytest.approx(0.8, abs=0.01)
    assert share.left("m", "signed", **where).interval.value == pytest.approx((0.8 - 0.2) / (0.9 - 0.2), abs=0.01)
    assert share.left("m", "signed").interval.value == pytest.approx((0.6 - 0.2) / (0.9 - 0.2), abs=0.01)
    assert share.similarity("m", "signed").interval.value == pytest.approx(0.6, abs=0.01)
    assert share.stages("m") == ["fc", "conv3"]
    # As papers do it: over samples only.
    assert raw.left("m", "signed").values.shape == (N, 1)
    assert share.left("m", "signed").values.shape == (N, 10)


@pytest.mark.parametrize(("correlation", "lacks"), [(0.95, "the output hardly changed (correlation 0.95)"), (0.2, "")])
def test_a_stage_at_which_the_output_stays_tells_nothing_of_the_share(correlation, lacks):
    where = {"mode": "top_down", "stage": "fc", "stage_index": 1}
    output = [Score("output_pearson", around(correlation, draw, 0.001), draw=draw, **where) for draw in range(3)]
    made = {("m", "parameter_randomization"): [*cascades({"signed": (0.8, 0.6)}), *output]}
    raw, share = evidence_of(results_of(made), [RAW, SHARE])
    at_the_stage = {"mode": "top_down", "stage": "fc"}
    assert share.left("m", "signed", **at_the_stage).lacks == lacks
    assert not raw.left("m", "signed", **at_the_stage).lacks
    assert not share.left("m", "signed").lacks


def test_a_method_applies_unless_the_study_says_otherwise():
    made = {(method, "parameter_randomization"): cascades({"signed": (0.8, 0.6)}) for method in ("a", "b", "c")}
    statuses = {
        ("b", "parameter_randomization"): ("not_applicable", "no"),
        ("c", "parameter_randomization"): ("failed", ""),
    }
    given = evidence(made, statuses=statuses)
    assert given.applying(("d", "c", "b", "a")) == ["c", "a"]
    assert given.left("c", "signed").lacks.startswith("failed")
    assert given.upper_half("a") == ["fc"]


def test_labels_are_read_between_two_networks_on_noise_and_two_on_the_truth():
    made = {("m", "label_randomization"): labels({"signed": 0.5}, floor=0.2, ceiling=0.8)}
    assert evidence(made).left("m", "signed", "label_randomization").interval.value == pytest.approx(0.5, abs=0.02)
    alike = {("m", "label_randomization"): labels({"signed": 0.5}, floor=0.5, ceiling=0.52)}
    assert "nothing to lie between" in evidence(alike).left("m", "signed", "label_randomization").lacks


def test_edges_are_read_above_shifted_edges():
    made = {("m", "edge_similarity"): edges(0.7)}
    assert evidence(made).left("m", "absolute", "edge_similarity").interval.value == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    ("method", "view", "statuses", "said"),
    [
        ("other", "signed", {}, "no other with parameter_randomization in this study"),
        ("m", "ssim", {}, "ssim does not apply to these maps"),
        ("m", "signed", {("m", "parameter_randomization"): ("not_applicable", "no layer with positions")}, "no layer"),
    ],
)
def test_what_is_not_there_is_lacking_with_its_reason(method, view, statuses, said):
    made = {("m", "parameter_randomization"): cascades({"signed": (0.8, 0.1)})}
    assert said in evidence(made, statuses=statuses).left(method, view).lacks


def test_undefined_comparisons_are_lacking_from_a_tenth_on():
    def partly(share):
        for score in cascades({"signed": (0.8, 0.1)}):
            where = score.values.new_zeros(N, dtype=bool)
            where[: round(share * N)] = score.role == "test"
            told = {"constant map": where} if where.any() else {}
            yield score.__class__(
                **{**vars(score), "values": score.values.masked_fill(where, np.nan), "undefined": told}
            )

    few, many = (
        evidence({("m", "parameter_randomization"): partly(share)}).left("m", "signed") for share in (0.05, 0.2)
    )
    assert not few.lacks
    assert many.lacks == "20% undefined (constant map)"


def test_protocols_read_their_own_metrics():
    made = {
        ("m", "parameter_randomization"): cascades({"signed": (0.9, 0.1)}),
        ("m", "original_parameter_randomization"): cascades({"signed": (0.3, 0.2)}),
    }
    claim = Claim("X", "words", "source", "below {most:g}", stage_below, {"most": 0.5}, "f-{model}.png")
    protocols = [Protocol("original", "original_", above_chance=False), Protocol("today")]
    table = judge([claim], evidence_of(results_of(made), protocols))
    assert list(table["outcome"]) == ["reproduced", "not reproduced"]
    assert list(table["rule"]) == ["below 0.5"] * 2
    assert list(table["figure"]) == ["f-net.png"] * 2
    assert wide(table)["net"].item() == "reproduced → not reproduced"
    assert changes(table)[["claim", "model"]].to_dict("records") == [{"claim": "X", "model": "net"}]
    assert changes(table)["today"].item().startswith("not reproduced: m signed, random to fc 0.9")


def stage_below(evidence, most):
    return below(evidence.left("m", "signed", mode="top_down", stage="fc"), most)


def made_table():
    rows = [
        {"claim": claim, "words": f"about {claim}", "model": model, "protocol": protocol, "outcome": outcome}
        for claim, model, protocol, outcome in [
            ("B", "one", "then", "reproduced"),
            ("B", "two", "then", "reproduced"),
            ("B", "one", "now", "reproduced"),
            ("B", "two", "now", "not reproduced"),
            ("A", "one", "then", "not testable"),
            ("A", "two", "then", "reproduced"),
            ("A", "one", "now", "not reproduced"),
            ("A", "two", "now", "reproduced"),
        ]
    ]
    return pd.DataFrame(rows).assign(numbers="0.5 [0.4, 0.6]", rule="r", source="s", figure="f.png")


def test_the_wide_table_keeps_the_order_of_claims_models_and_protocols():
    table = wide(made_table())
    assert list(table.columns) == ["claim", "words", "one", "two"]
    assert list(table["claim"]) == ["B", "A"]
    assert list(table["one"]) == ["reproduced", "not testable → not reproduced"]
    assert list(table["two"]) == ["reproduced → not reproduced", "reproduced"]
    assert list(changes(made_table())["claim"]) == ["B", "A"]
    found = counts(made_table()).set_index(["model", "protocol"])
    assert found.loc[("one", "now")].to_dict() == {"reproduced": 1, "not testable": 0, "not reproduced": 1}


def test_the_page_has_rule_numbers_and_figure_of_each_claim():
    page = page_of(made_table(), "A paper")
    for claim in ("A", "B"):
        assert f"### {claim}: about {claim}" in page
    assert "0.5 [0.4, 0.6]" in page
    assert "[f.png](figures/f.png)" in page
    same = made_table().query("protocol == 'now'")
    assert "Where the protocol decides" not in page_of(same, "A paper")


def test_latex_has_the_rules_of_booktabs_and_escapes():
    text = latex(pd.DataFrame({"a_b": ["50 % & more → ±"], "c": ["{x}"]}))
    assert text.splitlines() == [
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"a\_b & c \\",
        r"\midrule",
        r"50 \% \& more $\rightarrow$ $\pm$ & \{x\} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_shares_interval_is_that_of_the_survival():
    """The claims and the table of verdicts read the same rows alike."""
    results = results_of({("m", "parameter_randomization"): cascades({"signed": (0.8, 0.3)}, chance=0.1)})
    row = results.table("verdicts").iloc[0]
    reading = evidence_of(results, [SHARE])[0].left("m", "signed")
    assert reading.interval.value == pytest.approx(row["survival"], abs=1e-3)
    assert mean_interval(reading.values).low == pytest.approx(row["low"], abs=0.01)


def test_a_method_that_has_numbers_by_one_protocol_only_is_drawn():
    def broken():
        for score in cascades({"signed": (0.8, 0.6)}):
            where = score.values.new_ones(N, dtype=bool)
            yield replace(score, values=score.values * np.nan, undefined={"not finite": where})

    made = {
        ("m", "original_parameter_randomization"): broken(),
        ("m", "parameter_randomization"): cascades({"signed": (0.8, 0.6)}),
        ("n", "original_parameter_randomization"): cascades({"signed": (0.8, 0.6)}),
        ("n", "parameter_randomization"): cascades({"signed": (0.8, 0.6)}),
    }
    protocols = [Protocol("original", "original_", above_chance=False), Protocol("today")]
    figure = draw_stages(evidence_of(results_of(made), protocols))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["n", "m"]
