"""Masks of the data reach the oracle, and controls that do not apply are left out where the study did not name them."""

import numpy as np
import pytest
import torch

import harness
from cases import network
from harness import InputError
from harness.catalogue import DATA
from harness.given import _masks

NET = """
import torch
from torch import nn


def pictures():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 3))


def tables():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def study_of(folder, kind, **arrays):
    (folder / "net.py").write_text(NET)
    np.savez(folder / "data.npz", **arrays)
    return {
        "name": "masked",
        "models": [{"source": f"file:{folder}/net.py:{kind}", "weights": "random"}],
        "data": {"source": f"npz:{folder}/data.npz", "mean": [0.0], "std": [1.0]},
        "methods": ["gradient"],
        "metrics": ["occlusion_faithfulness"],
    }


def arrays(*shape, seed=0):
    return np.random.default_rng(seed).random((4, *shape), dtype=np.float32)


def test_the_oracle_runs_where_the_data_have_masks_and_is_left_out_where_not(tmp_path):
    x, masks = arrays(1, 8, 8), arrays(8, 8, seed=1) > 0.7
    results = harness.run(study_of(tmp_path, "pictures", x=x, masks=masks), tmp_path / "with")
    status = results.cells.set_index("method")["status"]
    assert status["oracle"] == "done"
    assert {"random", "sobel", "center_gaussian", "parameter_noise"} <= set(status.index)
    results = harness.run(study_of(tmp_path, "pictures", x=x), tmp_path / "without")
    assert "oracle" not in set(results.cells["method"])


def test_controls_for_pictures_are_left_out_on_tables_unless_the_study_names_them(tmp_path):
    study = study_of(tmp_path, "tables", x=arrays(5))
    assert set(harness.run(study, tmp_path / "added").cells["method"]) == {
        "gradient",
        "random",
        "input_magnitude",
        "constant",
        "parameter_noise",
    }
    named = harness.run({**study, "methods": ["gradient", "sobel"]}, tmp_path / "named").cells.set_index("method")
    assert named.loc["sobel", "status"] == "not_applicable"
    assert named.loc["sobel", "reason"] == "sobel: needs images, got a table"


def test_other_masks_make_another_cell(tmp_path):
    x, keys = arrays(1, 8, 8), []
    for seed in (1, 2):
        study = study_of(tmp_path, "pictures", x=x, masks=arrays(8, 8, seed=seed) > 0.5)
        cells = harness.run(study, tmp_path / f"run{seed}").cells.set_index("method")["key"]
        keys.append((cells["oracle"], cells["gradient"]))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9), (5,)])
def test_an_archive_gives_masks_of_one_channel(tmp_path, shape):
    x, masks = arrays(*shape), arrays(*shape[1:], seed=1) if len(shape) > 1 else arrays(*shape, seed=1)
    np.savez(tmp_path / "data.npz", x=x, masks=(masks - 0.5).clip(0))
    data = DATA["npz"].load("data.npz", DATA["npz"].resolve({}), base=tmp_path)
    expected = torch.from_numpy((masks > 0.5).astype(np.float32))[[2, 0]]
    assert torch.equal(data.masks([2, 0]), expected[:, None] if len(shape) > 1 else expected)


def test_masks_of_another_shape_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=arrays(1, 8, 8), masks=arrays(8, 7))
    with pytest.raises(InputError, match=r"expected masks of shape \[4, 8, 8\], got \[4, 8, 7\]"):
        DATA["npz"].load("data.npz", DATA["npz"].resolve({}), base=tmp_path)


def test_masks_can_be_given_in_python():
    model, x, _ = network("functional")
    masks = (x[:, :1] > 0.5).to(x.dtype)
    assert torch.equal(harness.explain(model, x, method="oracle", masks=masks), masks)
    results = harness.evaluate(model, x, methods=["oracle"], metrics=["occlusion_faithfulness"], masks=masks, chunk=2)
    assert list(results.cells["status"]) == ["done"]
    without = harness.evaluate(model, x, methods=["oracle"], metrics=["occlusion_faithfulness"])
    assert list(without.cells["reason"]) == ["oracle: the data say of no sample where the truth lies"]
    with pytest.raises(InputError, match=r"expected masks of shape \[5, 1, 12, 12\], got \[5, 2, 12, 12\]"):
        harness.explain(model, x, method="oracle", masks=x)


def test_masks_that_say_of_some_place_nothing_are_refused():
    model, x, _ = network("functional")
    masks = (x[:, :1] > 0.5).to(x.dtype)
    for value in (torch.nan, torch.inf):
        masks[2, 0, 3, 3] = value
        with pytest.raises(InputError, match="masks hold NaN or infinite values: expected 1 where the truth lies"):
            harness.evaluate(model, x, methods=["oracle"], metrics=["roc_auc"], masks=masks)
    # Past the checks of types, which only tests make.
    with pytest.raises(InputError, match=r"expected masks as a tensor of shape \[5, 1, 12, 12\], got ndarray"):
        _masks(masks.numpy(), x)
    assert _masks(masks.isnan(), x).dtype == torch.bool
