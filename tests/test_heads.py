"""Heads in closed form; and the key of a cell tells apart all that makes of the same weights another function."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from test_models import CPU, NET, loaded, study_folder, study_of
from torch import nn

import harness
from cases import Linear, network, relu_mlp
from harness import InputError, heads
from harness.plan import plan
from harness.progress import silent
from harness.study import StudyError, load_study
from harness.subjects import subject_of_entry


@pytest.fixture
def folder(tmp_path):
    return study_folder(tmp_path)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class Pixelwise(nn.Module):
    """f_c(x)_p = sum_k w_ck x_kp + b_c at every position p, as a dictionary if one is asked for."""

    def __init__(self, weight, bias, key=""):
        super().__init__()
        self.weight, self.bias, self.key = nn.Parameter(weight), nn.Parameter(bias), key

    def forward(self, x):
        logits = torch.einsum("ck,nk...->nc...", self.weight, x) + self.bias.view(-1, *(1,) * (x.ndim - 2))
        return {self.key: logits} if self.key else logits


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "out"])
@pytest.mark.parametrize("positions", [(4, 5), (7,)])
@pytest.mark.parametrize("masked", [False, True])
def test_segmentation_is_the_mean_over_the_mask(key, positions, masked):
    weight, bias, x = normal(3, 2), normal(3, seed=1), normal(6, 2, *positions, seed=2)
    mask = torch.rand(positions, generator=generator()) > 0.5 if masked else torch.ones(positions, dtype=torch.bool)
    assert 0 < mask.sum() < mask.numel() or not masked
    model = heads.Segmentation(Pixelwise(weight, bias, key), mask if masked else None).eval()
    here = x[:, :, mask]  # [n, channels, positions in the mask]
    slow = torch.stack(
        [sum((weight * here[n, :, p]).sum(1) + bias for p in range(here.shape[2])) / here.shape[2] for n in range(6)]
    )
    torch.testing.assert_close(model(x), slow, rtol=1e-12, atol=1e-12)
    target = torch.arange(6) % 3
    maps = harness.explain(model, x, target, method="gradient")
    wanted = weight[target].view(6, 2, *(1,) * len(positions)) * mask / mask.sum()
    torch.testing.assert_close(maps, wanted, rtol=1e-12, atol=1e-15)


def test_segmentation_takes_what_torchvision_returns():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    model.eval()
    x = torch.rand(2, 3, 48, 40)
    with torch.no_grad():
        logits = model(x)["out"]
        assert logits.shape == (2, 4, 48, 40)
        torch.testing.assert_close(heads.Segmentation(model).eval()(x), logits.mean((2, 3)))
    maps = harness.explain(heads.Segmentation(model).eval(), x, method="gradient")
    assert maps.shape == x.shape
    assert maps.abs().sum() > 0


@pytest.mark.parametrize("outputs", [0, 1, 3])
def test_regression_is_the_number_and_its_negative(outputs):
    weight, bias, x = normal(max(outputs, 1), 8), normal(max(outputs, 1), seed=1), normal(5, 2, 4, seed=2)
    bare = Linear(weight, bias) if outputs else nn.Sequential(Linear(weight, bias), nn.Flatten(0))
    row = max(outputs - 1, 0)
    model = heads.Regression(bare, row).eval()
    y = x.flatten(1) @ weight[row] + bias[row]
    torch.testing.assert_close(model(x), torch.stack([y, -y], 1), rtol=1e-12, atol=1e-12)
    sign = torch.where(y >= 0, 1.0, -1.0).double()
    assert len(sign.unique()) == 2  # both occur
    for target, factor in ((0, torch.ones(5).double()), (1, -torch.ones(5).double()), ("predicted", sign)):
        maps = harness.explain(model, x, target, method="gradient")
        wanted = factor.view(5, 1, 1) * weight[row].view(1, 2, 4)
        torch.testing.assert_close(maps, wanted, rtol=1e-12, atol=1e-12)


def test_multi_label_is_half_a_logit_of_either_sign():
    weight, bias, x = normal(4, 9), normal(4, seed=1), normal(6, 9, seed=2)
    model = heads.MultiLabel(Linear(weight, bias), label=3).eval()
    z = x @ weight[3] + bias[3]
    torch.testing.assert_close(model(x), torch.stack([-z / 2, z / 2], 1), rtol=1e-12, atol=1e-12)
    for target in (0, 1):
        maps = harness.explain(model, x, target, method="gradient")
        wanted = (target - 0.5) * weight[3].expand(6, 9)
        torch.testing.assert_close(maps, wanted, rtol=1e-12, atol=1e-15)
    assert model(x).argmax(1).tolist() == (z > 0).long().tolist()


def test_the_softmax_of_multi_label_is_the_sigmoid():
    z = torch.cat([torch.linspace(-700, 700, 4001, dtype=torch.float64), torch.tensor([0.0, 1e-300, -1e-9])])[:, None]
    probabilities = heads.MultiLabel(nn.Identity()).eval()(z).softmax(1)
    torch.testing.assert_close(probabilities[:, 1], z[:, 0].sigmoid(), rtol=1e-14, atol=0)
    torch.testing.assert_close(probabilities[:, 0], (-z[:, 0]).sigmoid(), rtol=1e-14, atol=0)


WRAPPED = {
    "none": lambda model: model,
    "multi_label": lambda model: heads.MultiLabel(model, 2),
    "regression": lambda model: heads.Regression(model, 2),
}


@pytest.mark.parametrize("head", WRAPPED)
def test_input_x_gradient_without_biases_is_complete_under_a_head(head):
    model, x = WRAPPED[head](relu_mlp()).eval(), normal(30, 20)
    results = harness.evaluate(model, x, methods=["input_x_gradient"], metrics=["completeness"])
    residual = results.records[results.records["measure"] == "relative_residual"]["value"]
    assert len(residual) == 30
    assert residual.max() < 1e-12
    biased = WRAPPED[head](relu_mlp(bias=1.0)).eval()
    results = harness.evaluate(biased, x, methods=["input_x_gradient"], metrics=["completeness"])
    assert results.records[results.records["measure"] == "relative_residual"]["value"].median() > 0.01


def test_rules_see_through_a_head():
    model, x, _ = network("modules", torch.float64)
    head = heads.MultiLabel(model, 2).eval()
    for method in ("guided_backprop", "deconvnet", "grad_cam", "integrated_gradients"):
        bare, wrapped = (harness.explain(m, x, t, method=method) for m, t in ((model, 2), (head, 1)))
        torch.testing.assert_close(wrapped, bare / 2, rtol=1e-10, atol=1e-14)
        assert bare.abs().sum() > 0


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            heads.MultiLabel(nn.Flatten(), 5),
            (2, 5),
            r"head MultiLabel: expected an output .* k > 5, got \[2, 5\]",
        ),
        (heads.MultiLabel(nn.Flatten(), -1), (2, 5), r"expected an output \[n, k\] with k > -1"),
        (heads.Regression(nn.Identity()), (2, 5, 3), r"Regression: expected an output \[n, k\] .*got \[2, 5, 3\]"),
        (heads.Regression(Pixelwise(torch.eye(2), torch.ones(2), "out")), (2, 2, 3), "got dict"),
        (
            heads.Segmentation(nn.Flatten()),
            (2, 5, 3),
            r"Segmentation: expected .*\[n, classes, \*positions\], got",
        ),
        (heads.Segmentation(Pixelwise(torch.eye(2), torch.ones(2), "logits")), (2, 2, 3), "got NoneType"),
    ],
)
def test_an_output_that_a_head_cannot_take_is_told(model, x, message):
    with pytest.raises(InputError, match=message):
        harness.explain(model.eval(), torch.rand(x), method="gradient")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("multilabel", "unknown head 'multilabel'; did you mean multi_label"),
        ({"head": "regresion"}, "unknown head 'regresion'; did you mean regression"),
        ({"label": 3}, "unknown head ''; known: multi_label, regression, segmentation"),
        ({"head": "multi_label", "lable": 3}, "multi_label has no option lable=3; did you mean label"),
        ({"head": "multi_label", "label": "3"}, "multi_label has no option label='3'"),
        ({"head": "segmentation", "mask": "m.npy"}, "segmentation has no option mask='m.npy'"),
    ],
)
def test_an_unknown_head_or_option_is_named(folder, head, message):
    with pytest.raises(StudyError, match=message):
        load_study(study_of(folder, {"source": "file:net.py:build", "weights": "random", "head": head}))


def test_a_label_out_of_range_is_an_input_error_before_anything_is_computed(folder):
    model = {"source": "file:net.py:build", "weights": "random", "head": {"head": "multi_label", "label": 3}}
    with pytest.raises(InputError, match=r"MultiLabel: expected an output \[n, k\] with k > 3, got \[12, 3\]"):
        harness.run(study_of(folder, model), folder / "run")
    assert not (folder / "run" / "cells").exists()


def test_a_head_keeps_the_mode_and_comes_off_again():
    model = relu_mlp().train()
    for mode in (True, False):
        for name in heads.HEADS:
            wrapped = heads.with_head(model.train(mode), name, {})
            assert wrapped.training is mode
            assert heads.without_head(wrapped) is model
    assert heads.with_head(model, "", {}) is heads.without_head(model) is model


def test_a_study_explains_the_label_that_its_head_names(folder):
    models = [
        {"name": f"label{label}", "source": "file:net.py:build", "weights": "random", "head": head}
        for label, head in enumerate([{"head": "multi_label", "label": label} for label in range(3)] + ["regression"])
    ]
    x = np.load(folder / "data.npz")["x"]
    np.savez(folder / "unlabelled.npz", x=x)
    study = study_of(folder, *models, methods=["input_x_gradient"], target=1, data="npz:unlabelled.npz")
    results = harness.run(study, folder / "run")
    assert results.failures.empty
    assert len(set(results.cells["key"])) == 4  # the same weights, four functions
    bare = loaded(folder, {**models[0], "head": ""})
    x = torch.from_numpy(x)
    for label, model in enumerate(models[:3]):
        source = loaded(folder, model)
        torch.testing.assert_close(source.model(x)[:, 1], bare.model(x)[:, label] / 2)
        assert source.note == "twins by constructor"
        torch.testing.assert_close(source.twin(0)(x)[:, 1], heads.without_head(source.twin(0))(x)[:, label] / 2)
        assert len(source.blocks) == 2


# --- the key of a cell -----------------------------------------------------------------------------------------------

LAYERS = "from torch import nn\n\nclass Act(nn.Module):\n    def forward(self, x):\n        return x.{}\n"
IMPORTS = NET.replace("def build():", "from layers import Act\n\ndef build():").replace("nn.ReLU()", "Act()")
NEXT = "from pathlib import Path\nHERE = Path(__file__).parent\n{}\n" + NET.replace("nn.ReLU()", "{}")
LATE = IMPORTS.replace("from layers import Act\n\ndef build():", "def build():\n    from layers import Act")


def state_of_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).state_dict()


def test_files_in_two_folders_import_each_their_own_neighbours(folder):
    for name, function in (("a", "tanh()"), ("b", "sigmoid()")):
        (folder / name / "parts").mkdir(parents=True)
        (folder / name / "layers.py").write_text("from parts.act import Act\n")
        (folder / name / "parts" / "act.py").write_text(LAYERS.format(function))
        (folder / name / "net.py").write_text(IMPORTS)
        (folder / name / "late.py").write_text(LATE)
    torch.save(state_of_net(), folder / "w")
    x = torch.rand(2, 4, 6, 6) - 0.5
    for file in ("net", "late"):
        for name, wanted in (("a", x.tanh()), ("b", x.sigmoid()), ("a", x.tanh())):
            model = loaded(folder, {"source": f"file:{name}/{file}.py:build", "weights": "w"})
            for each in (model.model, model.twin(0)):
                torch.testing.assert_close(each[1](x), wanted, rtol=0, atol=0)


def key_of(study):
    """The key of a study's first cell."""
    resolved = load_study(study)
    subject = subject_of_entry(resolved.models[0], resolved, device=CPU, samples=None, progress=silent)
    (group, *_) = plan([subject], resolved.methods, resolved.metrics, 0)
    return group.tasks[0].cell.key


KEYS = f"""
import os, sys
import torch
from harness.plan import plan
from harness.progress import silent
from harness.study import (load_study)
from harness.subjects import subject_of_entry
CPU = torch.device("cpu")
{inspect.getsource(key_of)}
for study in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:  # a process of its own for each, without importing everything again
        print(key_of(study), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_the_key_of_a_cell_holds_the_code_that_makes_the_network(folder):
    act, calls = LAYERS.format("relu()"), LAYERS.replace("\n\n", "\nfrom parts.maths import f\n\n").format("apply(f)")
    calls = calls.replace("x.apply(f)", "f(x)")
    files = {"net.py": IMPORTS, "layers.py": "from parts import act\nAct = act.Act\n", "parts/act.py": calls}
    files |= {"parts/maths.py": "def f(x): return x.relu()"}
    late = {"net.py": LATE, "layers.py": act}
    path = "import sys; sys.path.append(str(HERE / 'above'))\nfrom far.layers import Act"
    above = {"net.py": NEXT.format(path, "Act()"), "above/far/__init__.py": "", "above/far/layers.py": act}
    text = {"net.py": NEXT.format("", "nn.Softplus(float((HERE / 'beta').read_text()))"), "beta": "1"}
    changed = {
        "base": files,
        "the same": {**files, "other.py": "x = 1", "notes.txt": "nothing"},
        "its file": {**files, "net.py": f"{IMPORTS}\n# a change"},
        "a neighbour's neighbour": {**files, "parts/maths.py": "def f(x): return x.sigmoid()"},
        "late": late,
        "a late neighbour": {**late, "layers.py": LAYERS.format("sigmoid()")},
        "above": above,
        "a package elsewhere": {**above, "above/far/layers.py": LAYERS.format("sigmoid()")},
        "text": text,
        "a setting from no Python file": {**text, "beta": "2"},
    }
    torch.save(state_of_net(), folder / "w")
    studies = []
    for name, contents in changed.items():
        for file, content in contents.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(content)
        (folder / name / "data.npz").symlink_to(folder / "data.npz")
        (folder / name / "w.pt").symlink_to(folder / "w")
        model = {"source": "file:net.py:build", "weights": "w.pt"}
        studies.append(study_of(folder / name, model, target=1))
    done = subprocess.run([sys.executable, "-c", KEYS, *studies], capture_output=True, text=True, timeout=100)
    keys = dict(zip(changed, done.stdout.split(), strict=True))
    assert keys["base"] == keys["the same"], done.stderr
    assert len(set(keys.values())) == len(keys) - 1
