"""Whether a network uses what was planted: asked of the same samples whatever a study takes, with classes or not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import harness
from harness.data import BrokenSampleError
from harness.data.evidence import evidence
from harness.models.analytic import evidence_additive, evidence_linear
from harness.planted import doubt
from harness.progress import silent
from harness.study import load_study
from harness.subjects import subject_of_entry
from harness.words import conclusion

NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 5))
"""

PREDICTED = (lambda logits, _: logits.argmax(1), lambda x: x)


@pytest.mark.parametrize("samples", [8, 16, 32, 64, 128])
def test_whether_a_network_uses_what_was_planted_does_not_depend_on_the_samples_of_the_study(samples):
    """Of the first ones 8, 32 and 64 would do, and 16 and 128 not."""
    data = {"source": "evidence", "truth": "spots", "samples": samples}
    model = {"name": "net", "source": "evidence-linear", "data": data}
    resolved = load_study({"name": "gate", "models": [model], "methods": ["gradient"], "metrics": ["roc_auc"]})
    with pytest.warns(UserWarning, match="in 8.% of 256 samples, needs 90%"):
        found = subject_of_entry(
            resolved.models[0], resolved, device=torch.device("cpu"), samples=None, progress=silent
        )
    assert len(found.rows) == samples
    assert found.no_truth


def test_no_more_is_read_than_is_asked():
    rows, data = [], evidence()

    def read(row):
        rows.append(row)
        return data.read(row)

    assert doubt(evidence_additive().build((), 0), replace(data, read=read), *PREDICTED) == ""
    assert len(set(rows)) == len(rows) == 256
    # From all over the data, not their beginning, which may be of one class.
    assert max(rows) > 900


def test_samples_that_cannot_be_exchanged_are_left_out_and_if_none_can_nothing_is_trusted():
    data, model = evidence(), evidence_linear().build((), 0)

    def broken(row):
        raise BrokenSampleError(f"no file {row}")

    def odd(row):
        return data.planted.other_rest(row) if row % 2 else broken(row)

    some, none = (
        doubt(model, replace(data, planted=replace(data.planted, other_rest=read)), *PREDICTED)
        for read in (odd, broken)
    )
    assert re.search(r"in 8\d% of 1\d\d samples", some)
    assert re.fullmatch(r"whether the model uses what was planted cannot be asked: no file \d+", none)


def left_half_study(tmp_path, x, **arrays):
    np.savez(tmp_path / "data.npz", x=x, **arrays)
    (tmp_path / "net.py").write_text(NET)
    data = {"source": f"masked:npz:{tmp_path / 'data.npz'}"}
    model = {"name": "net", "source": f"file:{tmp_path / 'net.py'}:build", "weights": "random", "data": data}
    return {"name": "left", "models": [model], "methods": ["gradient"], "metrics": ["relevance_mass"]}


@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize("samples", [1, 30])
def test_a_network_that_sees_all_of_samples_without_classes_is_found_out(tmp_path, labels, samples):
    x = np.random.default_rng(0).random((samples, 1, 12, 12), dtype=np.float32)
    arrays = {} if labels is None else {"y": np.full(samples, labels)}
    reason = "does not use what was planted" if samples > 1 else "one sample, and no other to exchange halves with"
    with pytest.warns(UserWarning, match=reason):
        results = harness.run(left_half_study(tmp_path, x, **arrays), tmp_path / "run")
    assert set(results.table("headlines")["reason"].str.contains(reason)) == {True}
    # Else nothing in the outcome says why nothing was graded.
    said = conclusion(results)
    assert reason in said["look at"]
    assert said["held"] == "nothing was tested that can hold"
