"""What a study is said to cost before it runs, against what it did cost."""

import itertools
import json

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import harness
from harness.cli import app
from harness.costs import Cost
from harness.estimates import Speed, makespan
from harness.forecast import KEPT, Weights, duration, forecast
from harness.preparation import prepare
from harness.progress import silent

PLUGIN = """
from harness import Score, introspection, method
from pathlib import Path

@introspection(compares={"mean": "higher"}, cite="", question="?", misleads="!")
def looks(model, space, data, *, seed):
    "The mean of all outputs."
    yield Score("mean", model(data.x).mean())

@method(family="test", cite="")
def counted(model, x, target):
    "Says when it is called."
    with (Path(__file__).parent / "calls").open("a") as file:
        file.write("x")
    return x * 1.0

@method(family="test", cite="")
def broken(model, x, target):
    "Raises."
    raise RuntimeError("broken")
"""
STUDY = {
    "name": "costs",
    "data": {"source": "digits", "samples": 260},
    "models": [{"name": "net", "source": "file:net.py:build", "weights": "random"}],
    "methods": [
        "gradient",
        {"method": "integrated_gradients", "steps": 6},
        {"method": "smoothgrad", "samples": 4},
        {"method": "occlusion", "window": 2, "stride": 2},
    ],
    "metrics": [
        {"metric": "parameter_randomization", "full_draws": 2, "cascade_draws": 1},
        "completeness",
        {"metric": "pixel_flipping", "steps": 4, "fill": "black"},
        {"metric": "random_logit", "class_draws": 1},
    ],
}
NET = """
from torch import nn

def build():
    layers = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, 10))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    return {**STUDY}


def ready(study, folder, **more):
    settings = {"device": "cpu", "samples": None, "chunk": None, "progress": silent} | more
    return prepare(study, folder, **settings)


def test_passes_are_those_that_the_run_counts(study, tmp_path):
    found = forecast(ready(study, tmp_path / "run"), silent)
    assert not (tmp_path / "run").exists()
    cells = harness.run(study, tmp_path / "run", views=False).cells.set_index("key")
    guessed = found.cells.set_index("key")
    assert list(guessed.index) == list(cells.index)
    applies = cells["status"] == "done"
    for kind in ("forward", "backward"):
        # The maps stand in the costs of the first metric of each method and block.
        made = cells[applies].groupby(["method", "block"])[f"maps_{kind}"].first().sum()
        assert guessed[kind].sum() == pytest.approx(cells[kind].sum() + made, rel=0.02)
        own = cells[applies & (cells["metric"] != "parameter_randomization")]
        assert guessed.loc[own.index, kind].tolist() == pytest.approx(own[kind].tolist(), rel=0.02)
    assert (guessed.loc[cells.index[~applies], "seconds"] == 0).all()
    assert (guessed.loc[cells.index[applies & (cells["forward"] > 0)], "seconds"] > 0).all()


@pytest.mark.slow
def test_what_is_done_is_left_out_and_teaches_what_the_rest_takes(study, tmp_path):
    study["metrics"] = study["metrics"][1:3]
    whole = forecast(ready(study, tmp_path / "run"), silent)
    harness.run({**study, "methods": study["methods"][:1]}, tmp_path / "run", views=False)
    half = forecast(ready(study, tmp_path / "run"), silent)
    assert half.cells["done"].sum() == half.cells["method"].isin(["gradient"]).sum() + _controls_done(half)
    assert half.left(1) > 0
    assert half.left(4) < half.left(1)
    assert whole.left(1) > 0
    everything = harness.run(study, tmp_path / "run", views=False)
    done = forecast(ready(study, tmp_path / "run"), silent)
    assert done.left(1) == 0
    assert done.lines == [f"{len(everything.cells)} cells, {len(everything.cells)} of them done"]
    # Seconds of a metric are, in all, those that its cells have taken.
    flipping = [cells[cells["metric"] == "pixel_flipping"] for cells in (done.cells, everything.cells)]
    assert flipping[0]["seconds"].sum() == pytest.approx(flipping[1]["seconds"].sum(), rel=0.2)


def _controls_done(found):
    cells = found.cells
    ours = {"gradient", "integrated_gradients", "smoothgrad", "occlusion"}
    return int((cells["done"] & ~cells["method"].isin(ours)).sum())


def test_what_cannot_be_tried_is_unknown_and_says_so(study, tmp_path):
    study |= {"methods": ["gradient", "broken"], "plugins": ["plugin.py"], "controls": False}
    found = forecast(ready(study, tmp_path / "run"), silent)
    assert set(found.cells[found.cells["seconds"].isna()]["method"]) == {"broken"}
    assert "not in these numbers: 6 cells that train networks or could not be tried" in found.lines
    assert found.by("method").set_index("method")["unknown"].to_dict() == {"gradient": 0, "broken": 6}


def test_an_introspection_is_asked_once_and_counts_for_every_network(study, tmp_path):
    study |= {"methods": [], "controls": False, "plugins": ["plugin.py"]}
    study["introspections"] = ["looks", "training_history"]
    study["metrics"] = [{"metric": "network_randomization", "reinitialized": 2, "shuffled": 3, "stages": 2}]
    found = forecast(ready(study, tmp_path / "run"), silent).cells.set_index(["method", "metric"])
    cells = harness.run(study, tmp_path / "run", views=False).cells.set_index(["method", "metric"])
    assert set(found.index) == set(cells.index)
    once, asked = found.loc["looks", "introspection"], found.loc["looks", "network_randomization"]
    networks = 1 + 1 + 2 + 3 + 2
    # Statistics of the batch norm are estimated for each network whose weights before it are new.
    assert asked["forward"] == networks * 260 + 512 * (2 + 3 + 1)
    assert once["forward"] == cells.loc[("looks", "introspection"), "forward"]
    assert asked["forward"] == cells.loc[("looks", "network_randomization"), "forward"]
    assert asked["seconds"] > networks * once["seconds"] > 0
    # Without a recipe it does not apply, and costs nothing.
    assert found.loc["training_history", "seconds"].tolist() == [0, 0]


@pytest.mark.slow
def test_progress_goes_by_what_cells_cost(study, tmp_path):
    told = []
    harness.run(study, tmp_path / "run", weigh=True, views=False, progress=lambda *words: told.append(words))
    shares = [fraction for task, fraction, _ in told if task == "cells"]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len({round(b - a, 6) for a, b in itertools.pairwise(shares)}) > 3
    assert any(task == "estimate" for task, _, _ in told)


def test_what_kills_the_process_while_it_is_counted_is_not_counted_again(study, tmp_path):
    study |= {"methods": ["counted"], "plugins": ["plugin.py"], "controls": False, "metrics": ["sparseness"]}
    prepared = ready(study, tmp_path / "run")
    Weights(prepared, silent)
    calls = len((tmp_path / "calls").read_text())
    assert calls > 0
    (tmp_path / "run" / KEPT).write_text("{}")
    weight = Weights(prepared, silent)
    assert len((tmp_path / "calls").read_text()) == calls
    assert {weight(task) for group in prepared.groups for task in group.tasks} == {1.0}


def test_kept_estimates_are_numbers(study, tmp_path):
    study |= {"methods": ["gradient", "broken"], "plugins": ["plugin.py"], "controls": False}
    Weights(ready(study, tmp_path / "run"), silent)
    kept = json.loads((tmp_path / "run" / KEPT).read_text())
    assert all(value >= 0 for value in kept.values())
    assert len(kept) == 8 + 2


def test_groups_are_shared_out_by_the_longest_first(study, tmp_path):
    groups = ready({**study, "controls": False}, tmp_path / "run").groups
    seconds = {
        task.cell: 1.0 if group.explainer.method.name == "occlusion" else 0.25
        for group in groups
        for task in group.tasks
    }
    # Two blocks of four methods with four cells each: 2 x 4 s and 6 x 1 s.
    assert makespan(groups, seconds, 1) == 14
    assert makespan(groups, seconds, 2) == 7
    assert makespan(groups, seconds, 100) == 4


def test_seconds_are_those_of_passes():
    speed = Speed(Cost(10, 1.0, 2.0, 0, 1, ""), inference=0.05)
    assert speed.seconds(forward=7.0, backward=0.0) == pytest.approx(0.35)
    assert speed.seconds(forward=7.0, backward=7.0) == pytest.approx(2.1)
    assert speed.seconds(forward=9.0, backward=7.0) == pytest.approx(2.2)
    assert [duration(seconds) for seconds in (5.0, 300.0, 1e4, 1e6)] == ["5 s", "5.0 min", "2.8 h", "11.6 days"]


def test_the_command_prints_it_and_writes_nothing_into_the_run_folder(study, tmp_path):
    (tmp_path / "costs.yaml").write_text(json.dumps(study))
    command = ["plan", "costs.yaml", "--samples", "20", "--cells", "cost.csv", "--out", "run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for words in (
        "folded, channels last",
        "integrated_gradients",
        "pixel_flipping",
        "on 8 accelerators",
        "backward sample-passes",
    ):
        assert words in done.output
    cells = pd.read_csv("cost.csv")
    assert {"model", "method", "metric", "block", "done", "forward", "backward", "seconds"} <= set(cells.columns)
    assert not (tmp_path / "run").exists()


def test_an_estimate_leaves_the_model_and_what_is_shared_as_they_were(study, tmp_path):
    prepared = ready(study, tmp_path / "run")
    source = prepared.groups[0].subject.source
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    kept = dict(source.shared)
    forecast(prepared, silent)
    assert source.shared == kept
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())
    assert isinstance(source.model, nn.Module)
