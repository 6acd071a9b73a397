"""The README is true: its code runs, its study is valid, its files are there."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import harness
from harness import handbook
from harness.study import load_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
METHODS_README = (ROOT / "methods" / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


def test_the_lines_for_ones_own_model_run(capsys):
    torch.manual_seed(0)
    scope = {"model": build(), "x": torch.rand(6, 3, 16, 16), "build": build}
    exec(blocks("python")[0], scope)
    assert "guided_backprop" in capsys.readouterr().out
    assert scope["results"].failures.empty
    assert harness.explain(scope["model"], scope["x"], method="smoothgrad", samples=2).shape == (6, 3, 16, 16)


def test_the_faithfulness_metrics_are_valid():
    metrics = yaml.safe_load(blocks("yaml")[0])["metrics"]
    study = {"name": "faithful", "data": "mnist-5k", "models": ["mnist-cnn"], "methods": ["gradient"]}
    labels = [metric.label for metric in load_study({**study, "metrics": metrics}).metrics]
    assert len(labels) == 8 + 1 + 1
    assert labels[0] == "pixel_flipping[fill=mean,superpixels=25]"


def test_the_study_is_valid():
    resolved = load_study(yaml.safe_load(next(block for block in blocks("yaml") if "name: fills" in block)))
    assert [metric.label for metric in resolved.metrics][1:] == [
        f"pixel_flipping[fill={f}]" for f in ("black", "grey", "blur")
    ]


def test_the_new_method_and_metric_run(tmp_path):
    (tmp_path / "mine.py").write_text(next(block for block in blocks("python") if "def squared_gradient" in block))
    from harness.plugins import load_file

    load_file(tmp_path / "mine.py")
    results = harness.evaluate(
        build(), torch.rand(4, 3, 16, 16), methods=["squared_gradient"], metrics=["largest_value"]
    )
    assert results.records["value"].gt(0).all()
    assert len(results.records) == 4


def test_what_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"\]\(([^)#]+)\)", METHODS_README):
        assert (ROOT / "methods" / target).exists(), target


def test_the_table_of_metrics_is_that_of_the_registry():
    text = (ROOT / "metrics" / "README.md").read_text()
    table = text.partition(handbook.MARKS[0])[2].partition(handbook.MARKS[1])[0]
    assert table == handbook.table_of_metrics(), "python -m harness.handbook writes it anew"


def test_the_metric_of_the_how_to_runs(tmp_path):
    text = (ROOT / "metrics" / "README.md").read_text()
    (tmp_path / "share.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    from harness.plugins import load_file

    load_file(tmp_path / "share.py")
    results = harness.evaluate(build(), torch.rand(4, 3, 16, 16), methods=["gradient"], metrics=["largest_share"])
    assert results.failures.empty
    assert results.records["value"].between(0, 1).all()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "metrics" / target).exists(), target


def test_the_table_of_methods_is_that_of_the_registry():
    table = METHODS_README.partition(handbook.MARKS[0])[2].partition(handbook.MARKS[1])[0]
    assert table == handbook.table_of_methods(), "python -m harness.handbook writes it anew"


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


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, flags=re.MULTILINE):
        target = "".join(target)
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
