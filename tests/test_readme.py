"""The READMEs are true: their code runs, their studies are valid, what they point to is there.

Their commands are run by tests/test_commands.py.
"""

import re
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from readmes import READMES, ROOT, block
from torch import nn

import harness
from harness import handbook
from harness.study import load_study

METHODS_README = (ROOT / "methods" / "README.md").read_text()
FOLDERS = ("harness", "methods", "metrics", "tests")
SOURCES = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


def test_the_lines_for_ones_own_model_run(capsys):
    torch.manual_seed(0)
    scope = {"model": build(), "x": torch.rand(6, 3, 16, 16), "build": build}
    exec(block("python", "harness.evaluate(model, x, methods=methods"), scope)
    assert "guided_backprop" in capsys.readouterr().out
    assert scope["results"].failures.empty
    assert harness.explain(scope["model"], scope["x"], method="smoothgrad", samples=2).shape == (6, 3, 16, 16)


def test_the_faithfulness_metrics_are_valid():
    metrics = yaml.safe_load(block("yaml", "metric: sensitivity_n"))["metrics"]
    study = {"name": "faithful", "data": "mnist-5k", "models": ["mnist-cnn"], "methods": ["gradient"]}
    labels = [metric.label for metric in load_study({**study, "metrics": metrics}).metrics]
    assert len(labels) == 8 + 1 + 1
    assert labels[0] == "pixel_flipping[fill=mean,superpixels=25]"


def test_the_study_is_valid():
    resolved = load_study(yaml.safe_load(block("yaml", "name: fills")))
    assert [metric.label for metric in resolved.metrics][1:] == [
        f"pixel_flipping[fill={f}]" for f in ("black", "grey", "blur")
    ]


def test_the_new_method_and_metric_run(tmp_path):
    (tmp_path / "mine.py").write_text(block("python", "def squared_gradient"))
    from harness.plugins import load_file

    load_file(tmp_path / "mine.py")
    results = harness.evaluate(
        build(), torch.rand(4, 3, 16, 16), methods=["squared_gradient"], metrics=["largest_value"]
    )
    assert results.records["value"].gt(0).all()
    assert len(results.records) == 4


def anchors(text):
    """What GitHub calls the headings of a page in links."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_points_to_is_there(readme):
    text = readme.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not link.startswith("http"):
            target, _, anchor = link.partition("#")
            path = readme.parent / target if target else readme
            assert path.exists(), link
            assert not anchor or anchor in anchors(path.read_text()), link


@pytest.mark.parametrize("folder", sorted({*SOURCES, ROOT / "results"}), ids=lambda path: path.name)
def test_every_folder_says_what_lives_there(folder):
    assert (folder / "README.md").is_file()


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_the_map_of_the_engine_names_every_file():
    text = (ROOT / "harness" / "README.md").read_text()
    stems = {path.stem for path in (ROOT / "harness").glob("*.py")} - {"__init__"}
    named = set(re.findall(r"`(\w+)`", text))
    assert {stem for stem in stems if not re.search("figures|plotted|^cli_", stem)} <= named


def test_the_table_of_metrics_is_that_of_the_registry():
    text = (ROOT / "metrics" / "README.md").read_text()
    table = text.partition(handbook.MARKS[0])[2].partition(handbook.MARKS[1])[0]
    assert table == handbook.table_of_metrics(), "python -m harness.handbook writes it anew"


def test_the_metric_of_the_how_to_runs(tmp_path):
    (tmp_path / "share.py").write_text(block("python", "def largest_share"))
    from harness.plugins import load_file

    load_file(tmp_path / "share.py")
    results = harness.evaluate(build(), torch.rand(4, 3, 16, 16), methods=["gradient"], metrics=["largest_share"])
    assert results.failures.empty
    assert results.records["value"].between(0, 1).all()


def test_the_table_of_methods_is_that_of_the_registry():
    table = METHODS_README.partition(handbook.MARKS[0])[2].partition(handbook.MARKS[1])[0]
    assert table == handbook.table_of_methods(), "python -m harness.handbook writes it anew"


def test_the_table_of_introspections_is_that_of_the_registry():
    first, last = handbook.OF_INTROSPECTIONS
    table = METHODS_README.partition(first)[2].partition(last)[0]
    assert table == handbook.table_of_introspections(), "python -m harness.handbook writes it anew"
    assert table.count("\n| `") >= 6


def test_the_introspections_of_the_page_are_valid_entries():
    resolved = load_study(yaml.safe_load(block("yaml", "name: learnt")))
    assert [each.label for each in resolved.introspections] == ["linear_probe", "activation_maximization"]


def test_the_new_introspection_runs(tmp_path):
    (tmp_path / "mine.py").write_text(block("python", "def confidence_by_class"))
    study = {
        "name": "sure",
        "plugins": [str(tmp_path / "mine.py")],
        "data": {"source": "mnist-5k", "samples": 20},
        "models": [{"name": "untrained", "source": "mnist-cnn", "weights": "random"}],
        "introspections": ["confidence_by_class"],
    }
    results = harness.run(study, tmp_path / "run", views=False)
    assert results.failures.empty
    assert results.table("global")["measure"].tolist() == ["confidence"]
    (beside,) = results.artifacts("confidence_by_class")
    assert list(beside) == ["trained", "random", "shuffled"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("gupta2019simple", "Gupta and Arora 2019"),
        ("simonyan2013deep", "Simonyan et al. 2013"),
        ("srinivas2019full", "Srinivas and Fleuret 2019"),
        ("", ""),
    ],
)
def test_a_source_is_told_by_its_authors(key, text):
    assert handbook.cited(key) == text


def test_its_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for readme in READMES:
        for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", readme.read_text(), flags=re.MULTILINE):
            target = "".join(target)
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (readme, target)


def test_every_kind_of_model_is_a_valid_entry():
    models = yaml.safe_load(block("yaml", "trained-here"))["models"]
    resolved = load_study(
        {"name": "m", "data": "mnist-5k", "models": models, "methods": ["gradient"], "metrics": ["completeness"]}
    )
    assert len(resolved.models) == len(models) + 1  # one of them has two checkpoints


def test_pictures_with_training_samples_and_masks_are_a_valid_entry():
    data = yaml.safe_load(block("yaml", "train: more-photos"))["data"]
    load_study({"name": "d", "data": data, "models": ["mnist-cnn"], "methods": ["gradient"], "metrics": ["roc_auc"]})


def test_methods_of_others_are_valid_entries(tmp_path):
    np.savez(tmp_path / "theirs.npz", maps=np.ones((4, 1, 28, 28)), ids=np.array([f"mnist-5k/{n}" for n in range(4)]))
    (tmp_path / "mine.py").write_text("def my_method(model, x, target, *, steps=10):\n    return x\n")
    methods = yaml.safe_load(block("yaml", "captum:IntegratedGradients"))["methods"]
    study = {"name": "g", "data": "mnist-5k", "models": ["mnist-cnn"], "methods": methods, "metrics": ["completeness"]}
    (tmp_path / "guests.yaml").write_text(yaml.safe_dump(study))
    labels = {method.label for method in load_study(tmp_path / "guests.yaml").methods if not method.added}
    assert len(labels) == len(methods)


def test_the_test_of_ones_own_passes_and_fails():
    torch.manual_seed(0)
    scope = {"model": build(), "x": torch.rand(100, 3, 16, 16), "space": harness.InputSpace("image"), "build": build}
    exec(block("python", "from harness.testing import assert_sane"), scope)
    scope["test_maps_depend_on_what_the_network_has_learnt"]()
    scope["assert_sane"] = partial(scope["assert_sane"], method="sobel")
    with pytest.raises(AssertionError, match="sobel: parameter_randomization is FAIL"):
        scope["assert_sane"](scope["model"], scope["x"], space=scope["space"], build=build)


def test_the_recipe_trains():
    scope = {}
    exec(block("python", "def train(model, x, y, seed)"), scope)
    x = torch.rand(60, 3, 8, 8)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 2))
    scope["train"](model, x, y, 0)
    assert (model(x).argmax(1) == y).double().mean() > 0.9


def test_the_file_of_a_published_network_builds():
    scope = {}
    exec(block("python", "resnet18(num_classes=3)"), scope)
    assert scope["build"]()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
