"""Remove and retrain on a task where a few features decide: the truth costs everything, its reverse nothing."""

import numpy as np
import pytest
import torch
import yaml

import harness
from harness.words import conclusion

FEATURES, TRUE, TRAINING, HELD_OUT = 12, 3, 240, 80

NET = """
from torch import nn

def build():
    return nn.Linear(12, 2)
"""

TRAIN = """
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

SEEN = Path(__file__).with_name("seen")

def train(model, x, y, *, seed):
    SEEN.mkdir(exist_ok=True)
    count = len(list(SEEN.glob("*.npz")))
    if Path(__file__).with_name("stop").exists() and count == 3:
        raise KeyboardInterrupt
    np.savez(SEEN / f"{count}.npz", x=x.numpy(), seed=seed)
    if Path(__file__).with_name("overflow").exists() and count == 3:
        torch.nn.init.constant_(model.weight, 3e38)
        return
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
"""

MAPS = """
import torch

def truth(model, x, target):
    return torch.arange(12, 0, -1.0).expand_as(x) + 0.01 * x

def reverse(model, x, target):
    return -truth(model, x, target)

def flat(model, x, target):
    return torch.ones_like(x)
"""

FRACTIONS = [0.25, 0.5]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A linear network on features of which the first three carry the class, and its recipe."""
    monkeypatch.setenv("ATTRIBUTION_HARNESS_CACHE", str(tmp_path / "cache"))
    chance = np.random.default_rng(0)

    def samples(count):
        y = np.arange(count) % 2
        x = chance.normal(size=(count, FEATURES))
        x[:, :TRUE] += 3 * (2 * y - 1)[:, None]
        return x.astype(np.float32), y

    (x, y), (train_x, train_y) = samples(HELD_OUT), samples(TRAINING)
    np.savez(tmp_path / "data.npz", x=x, y=y, train_x=train_x, train_y=train_y)
    for name, text in (("net", NET), ("train", TRAIN), ("maps", MAPS)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def ran(folder, methods=("truth", "reverse"), **options):
    study = {
        "name": "roar",
        "data": "npz:data.npz",
        "models": [{"source": "file:net.py:build", "recipe": "train.py:train", "name": "net"}],
        "methods": [{"method": f"file:maps.py:{name}", "name": name} for name in methods],
        "metrics": [{"metric": "remove_and_retrain", "fill": "zero", "fractions": FRACTIONS, **options}],
        "controls": False,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return harness.run(folder / "study.yaml", folder / "run")


def accuracy(records, method, mode, step):
    rows = records[(records["method"] == method) & (records["mode"] == mode) & (records["step"] == step)]
    return rows[rows["measure"] == "correct"]["value"].mean()


def gain(records, method):
    return records[(records["method"] == method) & (records["measure"] == "loss_beyond_random")]["value"].mean()


def seen(folder):
    return [np.load(folder / "seen" / f"{number}.npz") for number in range(len(list((folder / "seen").glob("*"))))]


def test_removing_the_truth_leaves_chance_and_removing_the_rest_leaves_all(folder):
    records = ran(folder, orders=["most_first", "least_first", "random"]).records
    for step in FRACTIONS:
        assert abs(accuracy(records, "truth", "most_first", step) - 0.5) < 0.2
        assert accuracy(records, "reverse", "most_first", step) > 0.95
        assert accuracy(records, "truth", "least_first", step) == accuracy(records, "reverse", "most_first", step)
        assert accuracy(records, "truth", "random", step) == accuracy(records, "reverse", "random", step)
    assert accuracy(records, "truth", "most_first", 0.0) > 0.95
    assert gain(records, "truth") > 0.2
    assert gain(records, "reverse") < 0


def test_the_gain_is_the_mean_over_fractions_of_what_is_lost_beyond_random(folder):
    records = ran(folder, retrainings=2).records
    lost = [
        accuracy(records, "truth", "random", step) - accuracy(records, "truth", "most_first", step)
        for step in FRACTIONS
    ]
    assert gain(records, "truth") == pytest.approx(np.mean(lost), abs=1e-12)
    assert set(records.loc[records["measure"] == "correct", "draw"]) == {0, 1}


def test_networks_are_trained_on_exactly_what_is_left(folder):
    ran(folder, methods=["truth"], orders=["most_first"])
    with np.load(folder / "data.npz") as data:
        original = data["train_x"]
    trained_on = [each["x"] for each in seen(folder)]
    np.testing.assert_array_equal(trained_on[0], original)  # the model of the study itself
    np.testing.assert_array_equal(trained_on[1], original)  # step 0
    for x, removed in zip(trained_on[2:], (3, 6), strict=True):
        expected = original.copy()
        expected[:, :removed] = 0
        np.testing.assert_array_equal(x, expected)


def test_what_no_method_has_a_part_in_is_trained_once(folder):
    ran(folder)
    # The model, the recipe again, two fractions at random, and two for each of both methods.
    assert len(seen(folder)) == 1 + 1 + 2 + 4


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_next_training(folder):
    (folder / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        ran(folder)
    assert len(seen(folder)) == 3
    (folder / "stop").unlink()
    resumed = ran(folder).records
    assert len(seen(folder)) == 8, "none is trained twice"
    at_once = harness.run(folder / "study.yaml", folder / "other").records
    assert resumed.drop(columns="run").equals(at_once.drop(columns="run"))


def test_a_network_that_overflows_is_neither_right_nor_wrong(folder):
    (folder / "overflow").touch()
    records = ran(folder, methods=["truth"]).records
    broken = records[records["value"].isna()]
    assert set(broken["reason"]) == {"the output is not finite"}
    assert broken["measure"].value_counts()[["correct", "loss_beyond_random"]].tolist() == 2 * [len(broken) // 2]
    assert broken["sample"].nunique() == len(broken) // 2 > HELD_OUT / 2


def test_a_run_that_draws_no_cascade_and_no_flipping_sends_nobody_to_look_at_them(folder):
    said = conclusion(ran(folder, methods=["truth"]))["look at"]
    assert said == "the accuracy of networks that were trained again"


def test_a_flat_map_has_no_order_and_says_so(folder):
    records = ran(folder, methods=["flat"]).records
    rows = records[(records["mode"] == "most_first") & (records["step"] > 0)]
    assert rows["value"].isna().all()
    assert set(rows["reason"]) == {"constant map"}
    assert records.loc[records["mode"] == "random", "value"].notna().all()


def test_without_a_recipe_it_does_not_apply():
    x = torch.rand(4, 1, 6, 6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)).eval()
    results = harness.evaluate(
        model, x, methods=["gradient"], metrics=[{"metric": "remove_and_retrain", "fill": "zero"}]
    )
    assert "no recipe" in results.cells.loc[results.cells["metric"] == "remove_and_retrain", "reason"].iloc[0]
