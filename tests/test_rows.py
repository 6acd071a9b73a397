"""Rows: one for each sample and score, in fixed columns, and no score that contradicts itself becomes one."""

import re

import pandas as pd
import pyarrow as pa
import pytest
import torch

from harness.rows import CELL_LABELS, LABELS, RECORDS, rows_of
from harness.types import Score

SAMPLES = ("s0", "s1", "s2")
TARGET = torch.tensor([4, 7, 1])
NAN = float("nan")

TEXT = pa.dictionary(pa.int64(), pa.string())
COLUMNS = {
    "sample": TEXT,
    "target": pa.int64(),
    **dict.fromkeys(("measure", "channels", "sign", "normalization", "role", "mode", "stage"), TEXT),
    "stage_index": pa.int64(),
    "step": pa.float64(),
    "draw": pa.int64(),
    "value": pa.float64(),
    "reason": TEXT,
}


def per_sample(*values, undefined=None, **fields):
    return Score("spearman", torch.tensor(values), undefined or {}, **fields)


def mask(*marks):
    return torch.tensor(marks)


FULL = [
    per_sample(0.5, NAN, -1.0, undefined={"constant map": mask(False, True, False)}, sign="signed", draw=0),
    Score(
        "ssim",
        torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64),
        channels="abs_sum",
        sign="absolute",
        normalization="percentile_clip",
        role="floor_shift",
        mode="top_down",
        stage="conv1",
        stage_index=3,
        step=0.125,
        draw=9,
    ),
    Score("passes", torch.tensor(12.0)),
    Score("accuracy", torch.tensor(NAN), {"no labels": torch.tensor(True)}, stage="all"),
]


def listed(table):
    return table.to_pylist()


def same(actual, expected):
    assert actual.schema == expected.schema
    pd.testing.assert_frame_equal(actual.to_pandas(), expected.to_pandas(), check_exact=True)


def test_columns_have_one_order_and_one_type():
    table = rows_of(FULL, SAMPLES, TARGET)
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == COLUMNS
    assert tuple(table.column_names) == tuple(COLUMNS)


def test_the_columns_are_those_of_the_records_without_the_labels_of_the_cell():
    assert tuple(c for c in RECORDS if c not in LABELS + CELL_LABELS) == tuple(COLUMNS)
    assert (
        *("study", "run", "cell", "model", "model_seed", "dataset", "sample", "target", "method", "metric"),
        *("measure", "channels", "sign", "normalization", "role", "mode", "stage", "stage_index", "step", "draw"),
        *("value", "reason"),
    ) == RECORDS


def test_one_row_for_each_sample_and_score_and_one_without_a_sample_for_the_model():
    rows = listed(rows_of(FULL, SAMPLES, TARGET))
    places = [(row["measure"], row["sample"], row["target"]) for row in rows]
    assert places == [
        *(("spearman", sample, target) for sample, target in zip(SAMPLES, TARGET.tolist(), strict=True)),
        *(("ssim", sample, target) for sample, target in zip(SAMPLES, TARGET.tolist(), strict=True)),
        ("passes", None, None),
        ("accuracy", None, None),
    ]


def test_every_field_of_a_score_reaches_its_rows():
    rows = listed(rows_of(FULL, SAMPLES, TARGET))
    assert rows[4] == {
        "sample": "s1",
        "target": 7,
        "measure": "ssim",
        "channels": "abs_sum",
        "sign": "absolute",
        "normalization": "percentile_clip",
        "role": "floor_shift",
        "mode": "top_down",
        "stage": "conv1",
        "stage_index": 3,
        "step": 0.125,
        "draw": 9,
        "value": 0.5,
        "reason": None,
    }
    bare = {name: None for name in COLUMNS} | {"measure": "passes", "role": "test", "value": 12.0}
    assert rows[6] == bare


def test_what_is_undefined_is_nan_with_its_reason():
    rows = listed(rows_of(FULL, SAMPLES, TARGET))
    assert [row["reason"] for row in rows] == [None, "constant map", *[None] * 5, "no labels"]
    assert [row["value"] != row["value"] for row in rows] == [row["reason"] is not None for row in rows]
    # NaN is a value with a reason; null would be a value that is not there.
    assert rows_of(FULL, SAMPLES, TARGET)["value"].null_count == 0


def test_samples_may_have_different_reasons_and_scores_may_share_one():
    scores = [
        per_sample(NAN, NAN, 1.0, undefined={"a": mask(True, False, False), "b": mask(False, True, False)}),
        per_sample(2.0, NAN, NAN, undefined={"b": mask(False, False, True), "a": mask(False, True, False)}, draw=1),
    ]
    reasons = [row["reason"] for row in listed(rows_of(scores, SAMPLES, TARGET))]
    assert reasons == ["a", "b", None, None, "a", "b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_are_kept_to_the_last_bit_and_detached(dtype):
    values = (torch.arange(3) / 3).to(dtype).requires_grad_()
    table = rows_of([Score("residual", values)], SAMPLES, TARGET)
    assert table["value"].to_pylist() == values.tolist()


def test_scores_may_come_from_a_generator():
    same(rows_of(iter(FULL), SAMPLES, TARGET), rows_of(FULL, SAMPLES, TARGET))


def test_a_block_of_one_sample_keeps_its_sample():
    one = [Score("spearman", torch.tensor([0.5])), Score("passes", torch.tensor(3.0))]
    rows = listed(rows_of(one, ["only"], torch.tensor([2])))
    assert [(row["sample"], row["target"], row["value"]) for row in rows] == [("only", 2, 0.5), (None, None, 3.0)]


def test_no_scores_give_an_empty_table_that_joins_a_full_one():
    full, empty = rows_of(FULL, SAMPLES, TARGET), rows_of([], SAMPLES, TARGET)
    assert len(empty) == 0
    assert empty.schema == full.schema
    same(pa.concat_tables([empty, full]), full)
    same(pa.concat_tables([full, empty]), full)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), (1,)])
def test_a_score_of_the_wrong_shape_is_refused(shape):
    message = f"score 'ssim' (ceiling_rerun): expected values of shape [3] or [], got {list(shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        rows_of([*FULL, Score("ssim", torch.zeros(shape), role="ceiling_rerun")], SAMPLES, TARGET)


BAD = {
    "is infinite": [
        per_sample(0.0, 1.0, float("inf")),
        per_sample(0.0, 1.0, -float("inf")),
        per_sample(0.0, 1.0, float("inf"), undefined={"too large": mask(False, False, True)}),
    ],
    "is NaN without a reason": [
        per_sample(0.0, 1.0, NAN),
        per_sample(NAN, 1.0, NAN, undefined={"constant map": mask(True, False, False)}),
    ],
    "has a reason but a value": [
        per_sample(0.0, 1.0, 2.0, undefined={"constant map": mask(False, False, True)}),
        per_sample(NAN, 1.0, 2.0, undefined={"constant map": mask(True, False, True)}),
    ],
}


@pytest.mark.parametrize(("problem", "score"), [(problem, score) for problem, bad in BAD.items() for score in bad])
def test_a_score_that_contradicts_itself_is_refused_by_measure_and_sample(problem, score):
    with pytest.raises(ValueError, match=rf"score 'spearman' \(test\): the value of sample 's2' {problem}"):
        rows_of([*FULL, score, *FULL], SAMPLES, TARGET)


def test_a_sample_with_two_reasons_is_refused_by_measure_and_sample():
    undefined = {"constant map": mask(False, True, True), "not finite": mask(True, True, False)}
    with pytest.raises(
        ValueError, match=r"score 'spearman' \(test\): the value of sample 's1' has two reasons, one is 'not finite'"
    ):
        rows_of([*FULL, per_sample(NAN, NAN, NAN, undefined=undefined)], SAMPLES, TARGET)


def test_a_reason_of_another_shape_than_its_values_is_refused():
    score = per_sample(NAN, 1.0, 2.0)
    score.undefined["constant map"] = mask(True)
    with pytest.raises(ValueError, match=r"score 'spearman' \(test\): the reason 'constant map' has another shape"):
        rows_of([score], SAMPLES, TARGET)


@pytest.mark.parametrize(
    ("value", "undefined", "problem"),
    [
        (float("inf"), {}, "is infinite"),
        (NAN, {}, "is NaN without a reason"),
        (1.0, {"no labels": torch.tensor(True)}, "has a reason but a value"),
    ],
)
def test_a_bad_score_about_the_model_is_refused_by_measure(value, undefined, problem):
    with pytest.raises(ValueError, match=rf"score 'accuracy' \(test\): .*of the model {problem}"):
        rows_of([*FULL, Score("accuracy", torch.tensor(value), undefined)], SAMPLES, TARGET)


def test_the_message_says_which_of_many_equal_measures_it_is():
    score = per_sample(0.0, NAN, 0.0, role="floor_random", mode="full", stage="all", step=0.5, draw=7)
    with pytest.raises(ValueError, match=r"score 'spearman' \(floor_random, full, all, 0\.5, 7\): the value of sample"):
        rows_of([score], SAMPLES, TARGET)


def test_a_score_yielded_twice_is_refused():
    with pytest.raises(ValueError, match=r"score 'spearman' \(test\) was yielded twice"):
        rows_of([per_sample(1.0, 2.0, 3.0), per_sample(1.0, 2.0, 3.0)], SAMPLES, TARGET)
