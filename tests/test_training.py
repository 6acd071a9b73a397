"""Recipes of the user: what they train, what they are told, what their results depend on, and their faults."""

import numpy as np
import pytest
import torch
from test_models import NET, assert_same, assert_twins, differ, loaded, study_folder, study_of

import harness
from harness import InputError
from harness.doctor import _facts
from harness.models.loading import NoWeightsError
from harness.study import load_study
from harness.subjects import load_entry
from harness.training import cache_folder

CPU = torch.device("cpu")

TRAIN = """
import torch
from torch.nn.functional import cross_entropy

CALLS = []

def train(model, x, y, *, seed, permuted=False, progress):
    CALLS.append((seed, permuted, model.training, torch.is_grad_enabled(), list(x.shape), y.tolist()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(80 if permuted else 30):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        progress(epoch / 30, f"epoch {epoch}")
    x.zero_()

def plain(model, x, y):
    train(model, x, y, seed=0, progress=lambda *_: None)
"""

FAULTY = f"""
{TRAIN}
from copy import deepcopy
from torch import nn

def raises(model, x, y):
    raise KeyError("rate")

def leaves(model, x, y):
    plain(deepcopy(model), x, y)

def state(model, x, y):
    copy = deepcopy(model)
    plain(copy, x, y)
    return copy.state_dict()

def another(model, x, y):
    return nn.Linear(192, 3)

def grows(model, x, y):
    model[3] = nn.Linear(4 * 36, 5)

def diverges(model, x, y):
    for parameter in model.parameters():
        parameter.data /= 0

def wants_more(model, x, y, epochs): pass

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study's folder with 60 labelled images to train on and 12 held out, and a cache of its own."""
    monkeypatch.setenv("ATTRIBUTION_HARNESS_CACHE", str(tmp_path / "cache"))
    folder = study_folder(tmp_path)
    chance = np.random.default_rng(0)

    def samples(count):
        y = np.arange(count) % 3
        return (chance.random((count, 3, 8, 8)) + np.eye(3)[y][:, :, None, None]).astype(np.float32), y

    (x, y), (train_x, train_y) = samples(12), samples(60)
    np.savez(folder / "data.npz", x=x, y=y, train_x=train_x, train_y=train_y)
    (folder / "train.py").write_text(TRAIN)
    return folder


MINE = {"source": "file:net.py:build", "recipe": "train.py:train"}


def calls(folder):
    """What the function of this folder was told in each training so far."""
    from harness.plugins import load_file

    return load_file(folder / "train.py").CALLS


def cached():
    return sorted(path.name for path in (cache_folder() / "models").glob("*"))


def test_a_network_without_weights_is_trained_by_the_recipe_of_its_entry(folder):
    model = loaded(folder, MINE)
    assert (model.origin, model.note) == ("trained by train.py:train", "twins by constructor")
    assert not model.model.training
    with np.load(folder / "data.npz") as data:
        x, y, trained_on = (torch.from_numpy(data[name]) for name in ("x", "y", "train_y"))
    assert (model.model(x).argmax(1) == y).all()
    assert calls(folder) == [(0, False, True, True, [60, 3, 8, 8], trained_on.tolist())]
    assert_twins(model)


def test_the_second_time_it_comes_from_the_cache_as_it_was(folder):
    first = loaded(folder, MINE)
    again = loaded(folder, MINE)
    assert len(calls(folder)) == len(cached()) == 1
    assert_same(first.model, again.model)
    for path in (cache_folder() / "models").glob("*"):
        path.unlink()
    with torch.no_grad():  # whatever the caller's mode
        assert_same(first.model, loaded(folder, MINE).model)
    assert len(calls(folder)) == 2


def test_partners_and_the_retrained_network_differ_in_weights_and_permutation(folder):
    model = loaded(folder, MINE)
    assert len(calls(folder)) == 1  # nothing is trained before it is asked for
    partner, second, retrained = model.partner(), model.partner(other=True), model.retrained()
    told = calls(folder)
    assert [call[:2] for call in told] == [(0, False), (0, True), (1, True), (1, False)]
    true, permuted, other, again = (call[5] for call in told)
    assert true == again
    assert sorted(permuted) == sorted(other) == sorted(true)
    assert len({tuple(true), tuple(permuted), tuple(other)}) == 3
    networks = [model.model, partner.model, second.model, retrained]
    assert all(differ(a, b) for i, a in enumerate(networks) for b in networks[:i])
    assert not any(network.training for network in networks)
    assert model.retrained_test_accuracy == 1
    assert len({model.weights, model.partner_weights, model.second_partner_weights, model.retrained_weights}) == 4
    assert model.partner() is partner
    assert len(cached()) == 4
    # What another seed would begin with is what these are.
    assert_same(retrained, loaded(folder, {**MINE, "model_seed": 1}).model)
    assert len(calls(folder)) == 4


@pytest.mark.parametrize("change", ["recipe", "network", "data", "weights to begin with"])
def test_what_a_training_depends_on_trains_anew(folder, change):
    (folder / "net.py").write_text(OWN)
    entry = {**MINE, "source": "file:net.py:tunes"}
    loaded(folder, entry)
    assert len(cached()) == 1
    if change == "recipe":
        (folder / "other.py").write_text(TRAIN.replace("0.01", "0.02"))
        entry["recipe"] = "other.py:train"
    elif change == "network":
        (folder / "net2.py").write_text(OWN.replace("nn.ReLU()", "nn.Tanh()"))
        entry["source"] = "file:net2.py:tunes"
    elif change == "data":
        with np.load(folder / "data.npz") as data:
            np.savez(folder / "data.npz", **{**data, "train_y": data["train_y"][::-1]})
    else:
        torch.save({name: value + 1 for name, value in torch.load(folder / "w.pt").items()}, folder / "w.pt")
    loaded(folder, entry)
    assert len(cached()) == 2


OWN = f"""
from pathlib import Path
{NET}
def tunes():
    model = build()
    file = Path(__file__).parent / "w.pt"
    if not file.exists():
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file))
    model[3] = nn.Linear(4 * 36, 3)
    return model

def seeds():
    torch.manual_seed(3)
    return build()

def double():
    return build().double()

def one_output():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))
"""


def test_a_backbone_that_the_constructor_loads_is_what_training_begins_with(folder):
    (folder / "net.py").write_text(OWN)
    (folder / "head.py").write_text(TRAIN.replace("model.parameters()", "model[3].parameters()"))
    model = loaded(folder, {"source": "file:net.py:tunes", "recipe": "head.py:train"})
    backbone = torch.load(folder / "w.pt")["0.weight"]
    for network in (model.model, model.partner().model, model.retrained()):
        torch.testing.assert_close(network[0].weight, backbone, rtol=0, atol=0)
    assert model.note == "twins by reset_parameters"
    assert not torch.equal(model.twin(0)[0].weight, backbone)


def test_a_constructor_that_seeds_itself_is_trained_from_weights_of_each_seed(folder):
    (folder / "net.py").write_text(OWN)
    (folder / "slow.py").write_text(TRAIN.replace("0.01", "1e-6"))
    first, other = (
        loaded(folder, {"source": "file:net.py:seeds", "recipe": "slow.py:train", "model_seed": seed})
        for seed in (0, 1)
    )
    pairs = zip(first.model.parameters(), other.model.parameters(), strict=True)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in pairs)
    assert first.note == "twins by reset_parameters"


def test_samples_come_in_the_type_of_the_network(folder):
    (folder / "net.py").write_text(OWN)
    model = loaded(folder, {**MINE, "source": "file:net.py:double"})
    assert model.example.dtype == model.partner().model[0].weight.dtype == torch.float64


def test_weights_may_come_from_a_file_and_the_partner_from_the_recipe(folder):
    torch.save(loaded(folder, MINE).model.state_dict(), folder / "w.pt")
    model = loaded(folder, {**MINE, "weights": "w.pt", "recipe": "train.py:plain"})
    assert model.origin == "w.pt"
    assert differ(model.partner().model, model.model)
    assert differ(model.retrained(), model.model)


def test_random_weights_have_no_retrained_network(folder):
    model = loaded(folder, {**MINE, "weights": "random"})
    assert model.retrained() is None
    assert model.retrained_weights == ""
    assert differ(model.partner().model, model.model)


@pytest.mark.slow
def test_published_weights_are_not_retrained_by_our_recipe_for_their_architecture(folder):
    """The recipe of `mlp` would make another kind of network than the weights of this file, and take its time."""
    entry = {"name": "mlp", "source": "mlp", "data": "digits"}
    torch.save(loaded(folder, entry).model.state_dict(), folder / "mlp.pt")
    assert loaded(folder, entry).retrained() is not None
    assert loaded(folder, {**entry, "weights": "mlp.pt"}).retrained() is None


def test_a_library_and_a_built_in_network_take_a_recipe_too(folder):
    (folder / "once.py").write_text("def once(model, x, y):\n  for p in model.parameters(): p.data += 0.01\n")
    x, y = np.ones((3, 3, 64, 64), np.float32), np.arange(3)
    np.savez(folder / "large.npz", x=x, y=y, train_x=x, train_y=y)
    theirs = {"source": "torchvision:squeezenet1_1", "classes": 3}
    with pytest.raises(NoWeightsError):
        loaded(folder, theirs, data="npz:large.npz")
    for entry in ({"source": "mlp"}, theirs):
        model = loaded(folder, {**entry, "recipe": "once.py:once"}, data="npz:large.npz")
        assert model.origin == "trained by once.py:once"
        assert "memorized" in model.partner().invalid


def test_a_new_network_may_be_trained_on_other_samples(folder):
    model = loaded(folder, MINE)
    x, y = model.background[:30], torch.arange(30) % 2
    before, network = x.clone(), model.train(x, y, 5)
    assert calls(folder)[-1] == (5, False, True, True, [30, 3, 8, 8], y.tolist())
    assert torch.equal(x, before)  # although the recipe writes into its samples
    assert not network.training
    assert differ(network, model.model)
    assert len(cached()) == 2, "kept as soon as it is trained"
    trained = len(calls(folder))
    assert_same(network, model.train(x, y, 5, "for another purpose"))
    assert len(calls(folder)) == trained, "trained once only"
    assert differ(network, model.train(x, y, 6))
    assert differ(network, model.train(x[1:], y[1:], 5))
    assert differ(network, model.train(x, 1 - y, 5))
    assert len(cached()) == 5
    with pytest.raises(LookupError, match="no training recipe"):
        loaded(folder, {"source": "file:net.py:build", "weights": "random"}).train(x, y, 5)


def test_a_network_returned_by_the_recipe_counts(folder):
    (folder / "copies.py").write_text(
        f"{TRAIN}\nfrom copy import deepcopy\ndef copies(model, x, y):\n  other = deepcopy(model)\n"
        "  plain(other, x, y)\n  return other.half()\n"
    )
    model = loaded(folder, {**MINE, "recipe": "copies.py:copies"})
    assert model.model[0].weight.dtype == torch.float32
    assert model.retrained_test_accuracy == 1


def test_global_modes_and_generators_are_left_as_they_were(folder):
    (folder / "wild.py").write_text(
        f"{TRAIN}\ndef wild(model, x, y):\n  plain(model, x, y)\n  torch.manual_seed(0)\n"
        "  torch.set_grad_enabled(False)\n"
    )
    state = torch.random.get_rng_state()
    loaded(folder, {**MINE, "recipe": "wild.py:wild"})
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_is_told_on_the_terminal(folder):
    told = []
    resolved = load_study(study_of(folder, MINE))
    model, _ = load_entry(
        resolved.models[0], resolved.base, seed=0, device=CPU, progress=lambda *each: told.append(each)
    )
    assert told[0] == ("training file:net.py:build", 0.0, "by train.py:train")
    assert told[3] == ("training file:net.py:build", 2 / 30, "epoch 2")
    assert told[-1][1] == 1
    model.partner(other=True)
    assert told[-1][0] == "training file:net.py:build on permuted labels, seed 1"


FAULTS = {
    "gone.py:train": "no file '.*study/gone.py'",
    "train.py": "recipe train.py: expected FILE.py:FUNCTION, such as train.py:train",
    "train.py:trian": "train.py has no function 'trian'; did you mean train",
    "faulty.py:NUMBER": "faulty.py has no function 'NUMBER'",
    "faulty.py:wants_more": r"is called as wants_more\(model, x, y\), with .* missing a required argument: 'epochs'",
    "faulty.py:raises": r"raises\(\) raised KeyError \(line \d+ of faulty.py\): 'rate'; it was given a new Sequential, "
    r"x \[60, 3, 8, 8\] torch.float32 and y \[60\] on cpu",
    "faulty.py:leaves": "every weight is as it was before: train the network in place, or return it",
    "faulty.py:state": "every weight is as it was before",
    "faulty.py:another": "another one than it was given, they differ in '0.bias'",
    "faulty.py:grows": "another one than it was given, they differ in '3.bias'",
    "faulty.py:diverges": "'0.weight' holds NaN or infinite values afterwards",
}


@pytest.mark.parametrize("recipe", FAULTS)
def test_a_fault_in_a_recipe_is_named_and_nothing_is_kept(folder, recipe):
    (folder / "faulty.py").write_text(FAULTY)
    with pytest.raises(InputError, match=FAULTS[recipe]):
        loaded(folder, {**MINE, "recipe": recipe})
    assert cached() == []


def test_data_to_train_on_are_needed_before_anything_is_computed(folder):
    np.savez(folder / "few.npz", x=np.ones((3, 3, 8, 8), np.float32), y=np.arange(3))
    for weights in ({}, {"weights": "random"}):
        study = study_of(folder, {**MINE, **weights}, data="npz:few.npz")
        with pytest.raises(InputError, match=r"train.py:train: npz:few.npz has no labelled training part to train on"):
            harness.run(study, folder / "run")
    assert not (folder / "run").exists()
    (folder / "one.py").write_text(OWN)
    with pytest.raises(InputError, match=r"told by logits \[n, classes\], and the network returns \[1\]: give it a"):
        loaded(folder, {**MINE, "source": "file:one.py:one_output"})
    x, y = np.ones((3, 3, 9, 9), np.float32), np.arange(3)
    np.savez(folder / "large.npz", x=x, y=y, train_x=x, train_y=y)
    with pytest.raises(
        InputError, match=r"cannot be trained on npz:large.npz: it raises on .* \[3, 9, 9\]: RuntimeError"
    ):
        loaded(folder, MINE, data="npz:large.npz")
    assert calls(folder) == []


def test_a_head_that_makes_logits_tells_how_well_training_worked(folder):
    (folder / "net.py").write_text(OWN)
    (folder / "binary.py").write_text(
        "import torch\nfrom torch.nn.functional import binary_cross_entropy_with_logits as loss\n"
        "def train(model, x, y):\n  optimizer = torch.optim.Adam(model.parameters(), lr=0.02)\n"
        "  for _ in range(200):\n    optimizer.zero_grad(); loss(model(x), y.to(x)).backward(); optimizer.step()\n"
    )
    with np.load(folder / "data.npz") as data:
        np.savez(folder / "two.npz", **{**data, "y": 1 * (data["y"] == 2), "train_y": 1 * (data["train_y"] == 2)})
    entry = {"source": "file:net.py:one_output", "recipe": "binary.py:train", "head": "multi_label"}
    model = loaded(folder, entry, data="npz:two.npz")
    assert model.retrained_test_accuracy == 1
    assert model.partner().model(model.example).shape == (1, 2)


@pytest.mark.slow
def test_a_study_runs_through_with_a_recipe(folder):
    metrics = ["label_randomization"]
    study = study_of(folder, MINE, metrics=metrics)
    results = harness.run(study, folder / "run")
    assert results.failures.empty
    assert set(results.records["role"]) == {"test", "floor_shift", "floor_random", "ceiling_rerun", "ceiling_retrain"}
    assert results.manifest["subjects"][0]["weights_from"] == "trained by train.py:train"
    before = set(results.cells["key"])
    # The cells depend on the recipe, also where the weights that are explained do not.
    torch.save(loaded(folder, MINE).model.state_dict(), folder / "w.pt")
    keys = []
    for recipe in ("train.py:train", "train.py:plain"):
        study = study_of(folder, {**MINE, "weights": "w.pt", "recipe": recipe}, metrics=metrics)
        keys.append(set(harness.run(study, folder / f"run-{recipe[-3:]}").cells["key"]))
    assert before == keys[0] != keys[1]


def test_metrics_that_do_not_use_them_train_nothing_more(folder):
    harness.run(study_of(folder, MINE), folder / "run")
    assert len(calls(folder)) == 1


def test_the_doctor_says_whether_there_is_a_recipe(folder):
    assert _facts(loaded(folder, MINE))["recipe"] == "train.py:train, on npz:data.npz"
    assert _facts(loaded(folder, "mlp", data="digits"))["recipe"] == "built in, on digits"
    none = loaded(folder, {"source": "file:net.py:build", "weights": "random"})
    assert _facts(none)["recipe"].startswith("none, so no partner trained on permuted labels: `recipe: FILE")
