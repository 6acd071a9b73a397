"""Functions of the user, maps that exist already, and studies with guests."""

import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from test_guests import BOXED, FLIPPING, assert_close, convolutional, explained, state_of
from torch import nn
from typer.testing import CliRunner

import harness
from harness import InputError
from harness.catalogue import METHODS
from harness.cli import app
from harness.guests.functions import of_callable
from harness.random import Draws
from harness.study import StudyError, choose, load_study

RANDOMIZED = {"metric": "parameter_randomization", "full_draws": 1, "cascade_draws": 1}


# Functions of the user

MINE = """\
import torch

def scaled(model, x, target, *, factor=2.0, layers=(), baseline):
    leaf = x.detach().requires_grad_()
    model(leaf).gather(1, target[:, None]).sum().backward()
    model.train()
    return factor * leaf.grad * (x - baseline)

def plain(model, x, target, *, steps=3):
    return x * steps

unfit = 3
"""

CLAIMED = """\
from harness import method

@method(family="mine", cite="", version=7, conserves="output")
def claimed_in_a_file(model, x, target, *, steps: int = 3):
    return x * steps
"""


def test_a_function_of_a_file_has_its_options_and_leaves_the_model_alone(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    model, x, target = convolutional()
    before = state_of(model)
    with torch.no_grad():
        maps = explained(model, x, target, "file:mine.py:scaled", factor=3.0, baseline="blur")
    baseline = BOXED.fill("blur", x, Draws.of([], "none"))
    assert_close(maps, 3 * harness.explain(model, x, target, method="gradient") * (x - baseline))
    assert state_of(model) == before
    (tmp_path / "claims.py").write_text(CLAIMED)
    entry = {"method": "file:claims.py:claimed_in_a_file", "name": "mine", "steps": [1, 2]}
    labels = {chosen.label: chosen.entry for chosen in choose(METHODS, [entry], "methods")}
    assert [*labels] == ["mine[steps=1]", "mine[steps=2]"]
    assert {(each.version, each.conserves, each.family) for each in labels.values()} == {(7, "output", "mine")}
    with pytest.raises(StudyError, match=r"file:mine.py:scald: mine.py has no function 'scald'; did you mean scaled"):
        choose(METHODS, ["file:mine.py:scald"], "methods")
    with pytest.raises(StudyError, match="has no option 'factr'; did you mean factor"):
        choose(METHODS, [{"method": "file:mine.py:scaled", "factr": 1}], "methods")
    with pytest.raises(StudyError, match="option 'factor' expects float, got 'two'"):
        choose(METHODS, [{"method": "file:mine.py:scaled", "factor": "two"}], "methods")
    with pytest.raises(StudyError, match=r"no file .*gone.py"):
        choose(METHODS, ["file:gone.py:f"], "methods")


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_a_function_does_to_the_model_is_undone(fails):
    model, x, _ = convolutional()
    model.notes = {"mine": 1}
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before = state_of(model)

    def vandal(model, x, target):
        with torch.no_grad():
            model[0].weight.mul_(2)
        model[0].bias.data = torch.zeros(4, dtype=torch.float64)
        model[2].weight.requires_grad_(False)
        model[2].weight.grad.zero_() if model[2].weight.grad is not None else None
        model[5] = nn.Identity()
        model.notes["yours"] = 2
        model.train().register_full_backward_hook(lambda *_: None)
        return 1 / 0 if fails else x

    if fails:
        with pytest.raises(ZeroDivisionError):
            harness.explain(model, x, method=vandal)
    else:
        harness.explain(model, x, method=vandal)
    assert state_of(model) == before


def test_functions_in_python_are_methods():
    model, x, _ = convolutional()

    def raw(model, x, target, steps=1):
        return steps * x

    def twice(model, x, target, *, draws):
        return x * draws.uniform(*x.shape[1:])

    other = partial(raw, steps=5)
    methods = [raw, {"method": raw, "name": "mine", "steps": 3}, {"method": other, "name": "other"}, twice, "gradient"]
    results = harness.evaluate(model, x, methods=methods, metrics=[FLIPPING])
    assert results.failures.empty
    assert list(results.cells["method"]) == ["raw", "mine", "other", "twice", "gradient"]
    assert list(results.cells["maps_forward"]) == [0, 0, 0, 0, 5]
    assert len(set(results.cells["key"])) == 5
    torch.testing.assert_close(harness.explain(model, x, method=raw, steps=3), 3 * x)
    torch.testing.assert_close(harness.explain(model, x, method=other), 5 * x)
    nameless = [lambda model, x, target: x, {"method": lambda model, x, target: -x, "name": "b"}]
    assert len(set(harness.evaluate(model, x, methods=nameless, metrics=[FLIPPING]).cells["key"])) == 2
    assert of_callable(twice).stochastic
    assert of_callable(METHODS["gradient"].function) is METHODS["gradient"]


def test_what_is_no_method_is_refused():
    model, x, _ = convolutional()

    def f(model: nn.Module, *, x):
        return x

    with pytest.raises(StudyError, match=r"a function f\(model, x, target, <options>\), got f\(model, \*, x\)"):
        harness.explain(model, x, method=f)
    with pytest.raises(TypeError, match="<lambda> returned int, expected maps as a tensor"):
        harness.explain(model, x, method=lambda model, x, target: 3)
    with pytest.raises(ValueError, match=r"<lambda> returned maps of shape \[5, 2, 8\], expected \[5, 2, 8, 8\]"):
        harness.explain(model, x, method=lambda model, x, target: x[..., 0])
    with pytest.raises(StudyError, match=r"methods\[0\]: a study has its methods by name: write file:PATH.py:FUNCTION"):
        load_study({**yaml.safe_load(STUDY), "methods": [{"method": f}]})


# Maps that exist


def kept(path, **changes):
    _, x, _ = convolutional()
    arrays = {"maps": x.numpy() ** 2, "ids": np.array([f"sample/{row}" for row in range(5)]), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return {"maps": str(path), "name": "theirs"}


def test_maps_are_tested_where_they_suffice(tmp_path):
    model, x, _ = convolutional()
    with torch.no_grad():
        predicted = model(x).argmax(1).numpy()
    order = np.array([4, 2, 0, 1, 3, 0])
    ids = np.array([f"sample/{row}" for row in order[:5]])
    entry = kept(tmp_path / "a.npz", maps=x.numpy()[order[:5]] ** 2, ids=ids, target=predicted[order[:5]])
    squared = {"method": lambda model, x, target: x**2, "name": "ours"}
    results = harness.evaluate(model, x, methods=[entry, squared], metrics=[FLIPPING, RANDOMIZED], chunk=2)
    assert results.failures.empty
    cells = results.cells.set_index(["method", "metric"])
    assert cells.loc["theirs", "pixel_flipping"]["status"] == "done"
    lacking = cells.loc["theirs", "parameter_randomization"]
    assert lacking["status"] == "not_applicable"
    assert "made elsewhere, for the trained model" in lacking["reason"]
    flipped = results.records[results.records["metric"] == "pixel_flipping"]
    values = {name: frame["value"].to_numpy() for name, frame in flipped.groupby("method")}
    np.testing.assert_array_equal(values["theirs"], values["ours"])


def test_the_contents_of_the_file_are_part_of_the_key(tmp_path):
    model, x, _ = convolutional()
    keys = []
    for factor in (1, 1, 2):
        entry = kept(tmp_path / "a.npz", maps=factor * x.numpy())
        keys += list(harness.evaluate(model, x, methods=[entry], metrics=[FLIPPING]).cells["key"])
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"maps": np.zeros((5, 3, 8, 8))},
            r"expected maps of shape [2, 8, 8] or one channel, [1, 8, 8], got [3, 8, 8]",
        ),
        (
            {"ids": np.array([f"sample/{row}" for row in (0, 1, 2, 3, 44)])},
            "no map of sample sample/4 (1 of 5); did you",
        ),
        ({"ids": np.array([*"abcde"])}, "no map of sample sample/0 (5 of 5); known: a, b, c, ..."),
        ({"target": np.full(5, 9)}, "the map of sample sample/0 explains class 9, the study class"),
        ({"target": np.full(5, 0.5)}, "expected target as 5 integers, got float64"),
        ({"ids": np.arange(5)}, "expected ids as 5 strings, got int64"),
        ({"ids": np.array(["a"] * 5)}, "two maps of sample a"),
        ({"ids": None}, "the array 'ids' is missing; known: maps"),
        (
            {"ids": np.array([*"abcde"], dtype=object)},
            "no .npz file with the arrays maps and ids: Object arrays cannot",
        ),
        ({"maps": np.zeros((5, 2, 8, 8), dtype=int)}, "expected maps as floating-point numbers"),
        ({"maps": np.full((5, 2, 8, 8), np.nan)}, "the map of sample sample/0 holds NaN or infinite values"),
    ],
)
def test_maps_that_are_not_those_of_the_samples_are_refused_before_anything_is_computed(tmp_path, changes, message):
    model, x, _ = convolutional()
    entry = kept(tmp_path / "a.npz", **changes)
    computed = []
    spy = {"method": lambda model, x, target: computed.append(1) or x, "name": "spy"}
    with pytest.raises(InputError, match=re.escape(message)):
        harness.evaluate(model, x, methods=[spy, entry], metrics=[FLIPPING])
    assert not computed


# In a study

STUDY = """\
name: race
data: npz:data.npz
models:
  - {name: net, source: file:net.py:build, weights: random}
methods:
  - captum:Saliency
  - {method: captum:Occlusion, sliding_window_shapes: [1, 4, 4], strides: [1, 4, 4], baseline: zero}
  - {name: plus, method: zennit:EpsilonPlus, epsilon: [0.1, 0.2]}
  - {method: gradcam:GradCAM, layer: "0"}
  - {name: mine, method: file:mine.py:plain, steps: 2}
  - maps:maps.npz
metrics:
  - {metric: pixel_flipping, fill: zero, steps: 2}
controls: false
"""

NET = """\
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
"""


@pytest.fixture
def folder(tmp_path):
    x = np.random.default_rng(0).uniform(size=(5, 2, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    np.savez(tmp_path / "maps.npz", maps=x[:, :1], ids=np.array([f"data.npz/{row}" for row in range(5)]))
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_guests_are_listed_by_how_they_are_written():
    listed = CliRunner().invoke(app, ["list", "methods"]).stdout.split()
    assert {"captum:NAME", "zennit:COMPOSITE", "gradcam:NAME", "file:PATH.py:FUNCTION", "maps:FILE.npz"} <= {*listed}


@pytest.mark.slow
def test_a_study_races_guests(folder):
    results = harness.run(folder / "study.yaml", folder / "out")
    assert results.failures.empty
    assert list(results.cells["status"]) == ["done"] * 7
    labels = ["captum:Saliency", "captum:Occlusion", "plus[epsilon=0.1]", "plus[epsilon=0.2]", "gradcam:GradCAM"]
    assert list(results.cells["method"]) == [*labels, "mine", "maps:maps.npz"]
    keys = list(results.cells["key"])
    assert list(harness.run(folder / "study.yaml", folder / "out").cells["key"]) == keys
    (folder / "maps.npz").unlink()
    np.savez(folder / "maps.npz", maps=np.ones((5, 1, 8, 8)), ids=np.array([f"data.npz/{row}" for row in range(5)]))
    again = harness.run(folder / "study.yaml", folder / "out")
    assert [a == b for a, b in zip(again.cells["key"], keys, strict=True)] == [True] * 6 + [False]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "captum:Saliency",
            "captum:Salency",
            6,
            "captum.attr has no class of this name for inputs; did you mean Salie",
        ),
        ("captum:Saliency", "captum:LayerLRP", 6, "no class of this name for inputs"),
        (
            "captum:Saliency",
            "captam:Saliency",
            6,
            "unknown method 'captam:Saliency'; known: captum:NAME, file:PATH.py:FUNCTION",
        ),
        ("captum:Saliency", "captum", 6, "method 'captum': expected captum:NAME"),
        ("zennit:EpsilonPlus,", "zennit:EpsilonPlut,", 8, "zennit has no such composite; did you mean EpsilonPlus"),
        ("gradcam:GradCAM", "gradcam:GradCAN", 9, "pytorch_grad_cam has no such class; did you mean GradCAM"),
        ("epsilon:", "epsilom:", 8, "zennit:EpsilonPlus has no option 'epsilom'; did you mean epsilon"),
        ("epsilon: [0.1, 0.2]", "canonizer: VGG", 8, "zennit:EpsilonPlus: option 'canonizer' expects"),
        ("strides: [1, 4, 4]", "strides: [1, x, 4]", 7, "captum:Occlusion: option 'strides' expects"),
        ("strides: [1, 4, 4]", "inputs: 3", 7, "captum:Occlusion has no option 'inputs'"),
        ("sliding_window_shapes: [1, 4, 4], ", "", 7, "captum:Occlusion needs the option 'sliding_window_shapes'"),
        ("baseline: zero", "baseline: zer", 7, "unknown fill 'zer'; did you mean zero"),
        ("mine.py:plain", "mine.py:plan", 10, "mine.py has no function 'plan'; did you mean plain"),
        ("mine.py:plain", "mine.py:unfit", 10, "mine.py has no function 'unfit'; known: plain, scaled"),
        ("maps:maps.npz", "maps:map.npz", 11, "maps:map.npz: no file"),
    ],
)
def test_a_mistake_is_named_with_its_line(folder, old, new, line, message):
    assert old in STUDY
    (folder / "study.yaml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(StudyError, match=re.escape(message)) as caught:
        load_study(folder / "study.yaml")
    assert str(caught.value).startswith(f"{folder / 'study.yaml'}:{line}: ")


@pytest.mark.parametrize(
    ("library", "guest"),
    [("captum", "captum:Lime"), ("zennit", "zennit:EpsilonPlus"), ("pytorch_grad_cam", "gradcam:GradCAM")],
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(folder, monkeypatch, library, guest):
    for module in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    (folder / "study.yaml").write_text(STUDY.replace("captum:Saliency", guest))
    with pytest.raises(StudyError, match=rf"study.yaml:6: methods\[0\]: {guest}: .*pip install '.\[guests\]'"):
        load_study(folder / "study.yaml")


def test_maps_are_of_one_model(folder):
    models = [{"name": name, "source": "file:net.py:build", "weights": "random"} for name in "ab"]
    (folder / "study.yaml").write_text(yaml.safe_dump({**yaml.safe_load(STUDY), "models": models}))
    with pytest.raises(InputError, match=r"maps.npz: maps that were made elsewhere are of one model, and the study"):
        harness.run(folder / "study.yaml", folder / "out")
    assert not (folder / "out").exists()
