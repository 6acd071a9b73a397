"""Background samples: where they come from, what is said where there are none, and that results depend on them."""

import re

import numpy as np
import pytest
import torch

import harness
from cases import Linear, network
from closed_forms import EXACT, normal
from harness import METHODS, InputError, NotApplicableError
from harness.given import subject_of_tensors
from harness.plan import plan
from harness.progress import silent
from harness.registry import method
from harness.study import choose, load_study
from harness.subjects import subject_of_entry

NONE = "expected_gradients: needs background samples: pass background=, a tensor of them, such as training data"
WEIGHT = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], dtype=torch.float64)


def test_a_background_that_is_given_is_the_one_that_is_used():
    x, level = normal(5, 3), torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 1, 1])
    maps = harness.explain(Linear(WEIGHT).eval(), x, target, method="expected_gradients", background=level)
    torch.testing.assert_close(maps, WEIGHT[target] * (x - level), **EXACT)
    method = {"method": "expected_gradients", "samples": 2}
    metric = {"metric": "occlusion_faithfulness", "fill": "zero"}
    results = harness.evaluate(Linear(WEIGHT).eval(), x, methods=[method], metrics=[metric], background=level)
    assert list(results.cells["status"]) == ["done"]


def test_a_map_does_not_depend_on_the_other_samples_or_on_the_chunk():
    model, x, target = network("functional", torch.float64)
    options = {"method": "expected_gradients", "background": 1 - x, "samples": 3}
    whole = harness.explain(model, x, target, **options)
    torch.testing.assert_close(harness.explain(model, x[:2], target[:2], **options), whole[:2], **EXACT)
    torch.testing.assert_close(harness.explain(model, x, target, chunk=2, **options), whole, **EXACT)


def test_without_background_it_is_not_applicable_and_says_what_to_give():
    model, x, _ = network("table")
    with pytest.raises(NotApplicableError, match=re.escape(NONE)):
        harness.explain(model, x, method="expected_gradients")
    results = harness.evaluate(model, x, methods=["expected_gradients"], metrics=["occlusion_faithfulness"])
    assert list(results.cells["status"]) == ["not_applicable"]
    assert list(results.cells["reason"]) == [NONE]
    assert results.failures.empty


@pytest.mark.parametrize(
    ("background", "message"),
    [
        (torch.zeros(0, 9), "expected background as a tensor of at least one sample"),
        (torch.zeros(2, 8), "expected background samples like those in x, torch.float32 of shape [9] on cpu, got "),
        (torch.zeros(9), "got torch.float32 of shape [] on cpu"),
        (torch.zeros(2, 9).double(), "got torch.float64 of shape [9] on cpu"),
        (torch.full((2, 9), torch.nan), "background holds NaN or infinite values"),
    ],
)
def test_a_background_that_does_not_fit_is_refused(background, message):
    model, x, _ = network("table")
    with pytest.raises(InputError, match=re.escape(message)):
        harness.explain(model, x, method="expected_gradients", background=background)


def keys(model, x, background):
    subject = subject_of_tensors(
        model, x, None, space=None, seed=0, build=None, target="predicted", background=background
    )
    chosen = choose(METHODS, ["gradient", "expected_gradients"], "methods")
    groups = plan([subject], chosen, choose(harness.METRICS, ["occlusion_faithfulness"], "metrics"), 0)
    return [group.tasks[0].cell.key for group in groups]


def test_another_background_is_another_cell_for_who_uses_it_and_for_nobody_else():
    model, x, _ = network("table")
    ones, zeros, none = (keys(model, x, background) for background in (torch.ones(2, 9), torch.zeros(2, 9), None))
    assert keys(model, x, torch.ones(2, 9)) == ones
    assert ones[0] == zeros[0] == none[0]
    assert len({ones[1], zeros[1], none[1]}) == 3


@pytest.mark.parametrize(("train", "level"), [(True, 2.0), (False, 1.0)])
def test_a_study_takes_it_from_the_training_part_or_else_from_the_data_themselves(tmp_path, monkeypatch, train, level):
    arrays = {"x": np.ones((6, 3), "f4"), "y": np.array([0, 1] * 3)}
    if train:
        arrays |= {"train_x": np.full((40, 3), 2.0, "f4"), "train_y": np.array([0, 1] * 20)}
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 2)\n")
    study = {
        "name": "small",
        "data": {"source": "npz:data.npz"},
        "models": [{"name": "mine", "source": "file:net.py:build", "weights": "random"}],
        "methods": ["expected_gradients"],
        "metrics": ["occlusion_faithfulness"],
    }
    monkeypatch.chdir(tmp_path)
    resolved = load_study(study)
    subject = subject_of_entry(resolved.models[0], resolved, device=torch.device("cpu"), samples=None, progress=silent)
    maps = plan([subject], resolved.methods[:1], [], 0)[0].case(seed=0, chunk=64).maps
    expected = subject.source.model.weight[subject.target] * (1 - level)
    torch.testing.assert_close(maps, expected.detach())


def test_a_method_that_takes_a_background_must_say_that_it_needs_one():
    def forgetful(model, x, target, *, background):
        return x

    with pytest.raises(TypeError, match="forgetful: needs=\\(\\), but an option 'background' says otherwise"):
        method(family="test")(forgetful)
