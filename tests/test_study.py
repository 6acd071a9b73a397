"""A study is strict: what is wrong is named with its place and the nearest known names, before anything runs."""

import re

import pytest
import torch
from torch import nn

import harness
from cases import network
from harness import InputError, InputSpace
from harness.entries import Method
from harness.registry import METHODS
from harness.study import StudyError, load_study, studies

GOOD = """\
name: mine
data: {source: mnist-5k, samples: 5}
models:
  - mnist-cnn
methods:
  - gradient
  - {name: ig, method: integrated_gradients, baseline: blur, steps: 8}
metrics:
  - completeness
  - {metric: pixel_flipping, fill: [grey, blur]}
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_entries_expand_and_controls_are_added(tmp_path):
    resolved = load_study(written(tmp_path, GOOD))
    controls = "random sobel input_magnitude constant center_gaussian parameter_noise oracle".split()
    assert [chosen.label for chosen in resolved.methods] == ["gradient", "ig", *controls]
    assert [chosen.label for chosen in resolved.metrics] == [
        "completeness",
        "pixel_flipping[fill=grey]",
        "pixel_flipping[fill=blur]",
    ]
    assert resolved.methods[1].options == {"baseline": "blur", "steps": 8, "input_factor": True}
    assert [c.label for c in load_study(written(tmp_path, GOOD + "controls: false\n")).methods] == ["gradient", "ig"]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("- gradient", "- gradiant", 6, "methods[0]: unknown method 'gradiant'; did you mean gradient"),
        ("steps: 8", "step: 8", 7, "methods[1].step: integrated_gradients has no option 'step'; did you mean steps"),
        (
            "steps: 8",
            "steps: eight",
            7,
            "methods[1].steps: integrated_gradients: option 'steps' expects int, got 'eight'",
        ),
        ("steps: 8", "steps: 8.5", 7, "option 'steps' expects int, got 8.5"),
        ("- completeness", "- completness", 9, "unknown metric 'completness'; did you mean completeness"),
        ("- mnist-cnn", "- mnist_cnn", 4, "models[0]: unknown model 'mnist_cnn'; did you mean mnist-cnn"),
        ("mnist-5k", "mnist", 2, "unknown data 'mnist'; did you mean mnist-5k"),
        ("models:", "model:", 3, "unknown key 'model'; did you mean models"),
        ("samples: 5", "sample: 5", 2, "unknown key 'sample'; did you mean samples"),
        ("samples: 5", "samples: 0", 2, "greater than or equal to 1, got 0"),
        ("name: mine", "name: a/b", 1, "got 'a/b'"),
        ("name: mine", "seed: 1", 1, "the key 'name' is missing"),
        ("metrics:", "target: nobody\nmetrics:", 8, "got 'nobody'"),
        ("metrics:", "plugins: [gone.py]\nmetrics:", 8, "plugins[0]: no file 'gone.py'"),
        (
            "name: ig, method",
            "name: gradient, method",
            5,
            "two entries are called 'gradient'; give one of them a `name`",
        ),
        ("name: mine", "name: mine\nname: yours", 1, "the key 'name' stands here twice"),
        ("steps: 8}", "steps: 8", 8, "not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, old, new, line, message):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(StudyError, match=re.escape(message)) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_an_unknown_study_lists_the_built_in_ones():
    with pytest.raises(StudyError, match=r"no study 'quickstrat'.*did you mean quickstart"):
        load_study("quickstrat")


@pytest.mark.parametrize("name", studies())
def test_built_in_studies_are_valid_and_begin_with_one_line_about_themselves(name):
    assert load_study(name).study.name == name
    assert studies()[name].read_text().startswith("# ")


def test_a_fill_that_needs_pixels_is_refused_by_name_where_none_are_declared():
    model, x, _ = network("modules")
    with pytest.raises(InputError, match="pixel_flipping: fill: fill 'grey' needs the pixel space"):
        harness.evaluate(model, x, methods=["gradient"], metrics=[{"metric": "pixel_flipping", "fill": "grey"}])
    space = InputSpace("image", mean=(0.5, 0.5), std=(0.2, 0.2))
    fill = {"metric": "pixel_flipping", "fill": "grey", "steps": 2}
    assert harness.evaluate(model, x, methods=["gradient"], metrics=[fill], space=space).failures.empty


def evaluate(model, x, y=None, **arguments):
    return harness.evaluate(model, x, y, methods=["gradient"], metrics=["occlusion_faithfulness"], **arguments)


def test_input_that_would_give_wrong_numbers_is_refused_before_anything_is_computed():
    model, x, _ = network("modules")
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"the input of sample sample/3 holds NaN \(1 samples do\)"):
        evaluate(model, broken)
    broken[3, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="sample/3 holds infinite values"):
        evaluate(model, broken)
    with pytest.raises(InputError, match="x holds no samples"):
        evaluate(model, x[:0])
    with pytest.raises(InputError, match=r"the label of sample sample/1 is 9, outside 0 to 3"):
        evaluate(model, x, torch.tensor([0, 9, 1, 2, 3]), target="label")
    with pytest.raises(InputError, match=r"expected y of shape \[5\], got \[3\]"):
        evaluate(model, x, torch.tensor([0, 1, 2]), target="label")
    with pytest.raises(InputError, match="target='label' needs labels"):
        evaluate(model, x, target="label")
    with pytest.raises(InputError, match="target 4 is outside 0 to 3"):
        evaluate(model, x, target=4)
    with pytest.raises(InputError, match=r"x is torch.float64"):
        evaluate(model, x.double())
    with pytest.raises(InputError, match="chunk must be at least 1, got 0"):
        evaluate(model, x, chunk=0)


def test_models_that_would_give_wrong_numbers_are_refused():
    model, x, _ = network("modules")
    model[1].train()
    with pytest.raises(InputError, match=r"the model is in train mode \(1\): call model.eval\(\) first"):
        evaluate(model, x)
    with pytest.raises(InputError, match=r"must return logits of shape \[n, classes\], got \[5, 2, 12, 12\]"):
        evaluate(nn.Identity().eval(), x)
    with pytest.raises(InputError, match="the model returns one output"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(288, 1)).eval(), x)
    nans = nn.Sequential(nn.Flatten(), nn.Linear(288, 3)).eval()
    nans[1].weight.data[0] = torch.nan
    with pytest.raises(InputError, match=r"the model's output for sample sample/0 holds NaN"):
        evaluate(nans, x)


def test_two_functions_of_one_name_collide():
    def gradient(model, x, target):
        return x

    with pytest.raises(ValueError, match="two methods are called 'gradient'"):
        METHODS.add(Method("gradient", gradient, "mine", 1, ()))


def test_a_method_that_hides_its_randomness_is_refused():
    with pytest.raises(TypeError, match="quiet: stochastic=True, but an option 'draws' says otherwise"):

        @harness.method(family="mine", stochastic=True)
        def quiet(model, x, target):
            return x


def seeded():
    torch.manual_seed(7)
    return network("modules")[0]


def unseeded():
    import numpy as np

    model = network("modules")[0]
    with torch.no_grad():
        model[7].weight.copy_(torch.from_numpy(np.random.default_rng().normal(size=(4, 96))))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (seeded, "returns the same weights each time"),
        (unseeded, "by another generator than torch's"),
        (lambda: network("gelu")[0], "they differ in parameter"),
    ],
)
def test_a_constructor_that_cannot_make_twins_is_refused(build, message):
    model, x, _ = network("modules")
    with pytest.raises(InputError, match=message):
        evaluate(model, x, build=build)


def test_outputs_that_depend_on_chance_or_on_the_batch_are_refused():
    x = torch.rand(6, 2, 12, 12)
    batch = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(288, 3)).eval()
    with pytest.raises(InputError, match="depends on the rest of its batch"):
        evaluate(batch, x)

    class Chance(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(288, 3)

        def forward(self, x):
            return self.head(nn.functional.dropout(x.flatten(1)))

    with pytest.raises(InputError, match="depends on chance: switch dropout off"):
        evaluate(Chance().eval(), x)


def test_labels_are_integers_and_lists_of_names_are_lists():
    model, x, _ = network("modules")
    with pytest.raises(InputError, match=r"expected labels and targets as integers, got torch.float32"):
        evaluate(model, x, [0.9, 1.0, 2.0, 3.0, 0.0], target="label")
    with pytest.raises(InputError, match="methods is a list of names and entries, got 'gradient'"):
        harness.evaluate(model, x, methods="gradient", metrics=["completeness"])


def test_the_key_of_a_tensor_option_holds_all_of_it():
    from harness.digests import digest

    a = torch.zeros(3, 20, 20)
    b = a.clone()
    b[1, 10, 10] = 1
    assert digest([("w", a)]) != digest([("w", b)])
    assert digest({"w": a}) == digest({"w": a.clone()})


@pytest.mark.parametrize("metric", ["pixel_flipping", "deletion", "insertion"])
def test_patches_and_superpixels_together_are_refused_with_their_line(tmp_path, metric):
    both = GOOD.replace("metric: pixel_flipping", f"metric: {metric}, patch: 2, superpixels: [0, 20]")
    message = f"metrics[1].superpixels: {metric}: .*patches or superpixels, not both: patch=2, superpixels=20"
    with pytest.raises(StudyError, match=re.escape(message).replace(r"\.\*", ".*")) as caught:
        load_study(written(tmp_path, both))
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}:10: ")
    model, x, _ = network("modules")
    entry = {"metric": metric, "fill": "zero", "patch": 2, "superpixels": 20}
    with pytest.raises(InputError, match="not both"):
        harness.evaluate(model, x, methods=["gradient"], metrics=[entry])
    load_study(written(tmp_path, both.replace("[0, 20]", "0")))


@pytest.mark.parametrize("option", ["steps: 0", "baseline: blakc"])
def test_values_out_of_range_and_unknown_fills_are_refused_with_their_line(tmp_path, option):
    old = option.partition(":")[0]
    text = re.sub(rf"{old}: \w+", option, GOOD, count=1)
    with pytest.raises(StudyError, match=f"mine.yaml:7: .*{old}"):
        load_study(written(tmp_path, text))
