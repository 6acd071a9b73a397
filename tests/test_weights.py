"""Weights: from files without running code and with every name accounted for, drawn, and trained."""

import argparse
import os
import random
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from test_models import CPU, NET, assert_same, assert_twins, differ, loaded, study_folder, study_of
from torch import nn

import harness
from cases import SHAPES, Functional, network
from harness import InputError
from harness.catalogue import MODELS
from harness.models.builtin import mlp
from harness.models.loading import NoWeightsError
from harness.models.weights import load_weights, read_weights
from harness.progress import silent
from harness.study import StudyError, load_study
from harness.subjects import load_entry
from harness.training import Recipe


@pytest.fixture
def folder(tmp_path):
    return study_folder(tmp_path)


def net(classes=4, channels=2, width=6):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 100, classes)
    )


def save_safetensors(state, path):
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


SAVERS = {
    "safetensors": (".safetensors", save_safetensors),
    "state dict": (".pt", torch.save),
    "before torch 1.6": (".pth", save_legacy),
    "plain dict": (".ckpt", lambda state, path: torch.save(dict(state), path)),
    "no suffix": ("", torch.save),
    **{
        key: (".pt", lambda state, path, key=key: torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1}}, path))
        for key in ("state_dict", "model_state_dict", "model", "net")
    },
}


def assert_holds(model, state):
    """Every tensor of the network is that of the state dict, to the bit."""
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


@pytest.mark.parametrize("how", SAVERS)
def test_what_was_saved_is_in_the_network(tmp_path, how):
    suffix, save = SAVERS[how]
    trained, _, _ = network("modules")
    save(trained.state_dict(), tmp_path / f"w{suffix}")
    fresh = SHAPES["modules"][0]()
    assert not torch.equal(fresh[0].weight, trained[0].weight)
    load_weights(fresh, read_weights(tmp_path / f"w{suffix}"), "w")
    assert_holds(fresh, trained.state_dict())


WRAPPERS = {
    "nn.DataParallel": lambda model: nn.DataParallel(model).state_dict(),
    "torch.compile": lambda model: torch.compile(model).state_dict(),
    "compile of DataParallel": lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    "DataParallel of compile": lambda model: nn.DataParallel(torch.compile(model)).state_dict(),
    "lightning": lambda model: OrderedDict((f"model.{name}", value) for name, value in model.state_dict().items()),
    "compile in lightning": lambda model: {f"model._orig_mod.{k}": value for k, value in model.state_dict().items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_prefixes_of_wrappers_are_taken_off(wrapper):
    trained = net()
    state = WRAPPERS[wrapper](trained)
    assert not state.keys() & trained.state_dict().keys()
    fresh = net()
    load_weights(fresh, state, "w")
    assert_holds(fresh, trained.state_dict())


class Wraps(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = net()


def test_a_network_whose_own_names_begin_like_a_wrappers_keeps_them():
    trained, fresh = Wraps(), Wraps()
    load_weights(fresh, trained.state_dict(), "w")
    assert_holds(fresh, trained.state_dict())
    fresh = Wraps()
    load_weights(fresh, {f"model.{name}": value for name, value in trained.state_dict().items()}, "w")
    assert_holds(fresh, trained.state_dict())


def test_a_prefix_that_not_every_name_has_is_a_name():
    state = {f"module.{name}": value for name, value in net().state_dict().items()} | {"loss.weight": torch.ones(4)}
    with pytest.raises(InputError, match=r"it lacks 0\.weight, 0\.bias, 1\.weight and 5 more.*unknown module\.0"):
        load_weights(net(), state, "w.pt")


def test_counts_of_batches_may_be_missing_and_nothing_else():
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    fresh = net()
    load_weights(fresh, state, "w")
    assert torch.equal(fresh[4].weight, state["4.weight"])
    del state["1.running_var"]
    with pytest.raises(InputError, match=r"w does not fit the network .*: it lacks 1\.running_var$"):
        load_weights(net(), state, "w")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(5, 2)


def test_tied_weights_are_in_a_safetensors_file_once(tmp_path):
    trained, fresh = Tied(), Tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    state = read_weights(tmp_path / "w.safetensors")
    assert len(state) == len(trained.state_dict()) - 1
    load_weights(fresh, state, "w")
    assert_holds(fresh, trained.state_dict())
    fresh.outer = nn.Linear(5, 5, bias=False)
    with pytest.raises(InputError, match=r"it lacks outer\.weight"):
        load_weights(fresh, state, "w")


def test_what_does_not_fit_is_named():
    state = net().state_dict()
    state["5.weight"] = state.pop("0.weight")
    state["4.bias"] = torch.zeros(9)
    with pytest.raises(InputError) as caught:
        load_weights(net(), state, "w.pt")
    assert str(caught.value) == (
        "w.pt does not fit the network (the file is of another network): it lacks 0.weight; it has unknown 5.weight; "
        "4.bias is [9] there and [4] in the network"
    )


@pytest.mark.parametrize(
    ("other", "likely"),
    [
        (net(classes=9), "the file is of a network with 9 classes, this one has 4"),
        (net(channels=3), "the file is of a network for inputs of another shape"),
        (net(width=7), "the file is of another network"),
        (Functional(), "the file is of another network"),
    ],
)
def test_the_likely_reason_is_said(other, likely):
    fresh = net()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(fresh, other.state_dict(), "w.pt")
    assert str(caught.value).startswith(f"w.pt does not fit the network ({likely}): ")
    assert_holds(fresh, before)  # nothing was loaded by half


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path, zipped):
    witness, path = tmp_path / "touched", tmp_path / "w.pt"
    content = {"state_dict": net().state_dict(), "more": Touches(witness)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert not witness.exists()
    assert f"{path}: refused, because opening it would run code (it names posix.system): save" in str(caught.value)
    torch.load(path, weights_only=False)
    assert witness.exists()  # the trap was armed


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (net(), "torch.nn.modules.container.Sequential"),
        ({"model": net()}, "torch.nn.modules.container.Sequential"),
        ({"model": net().state_dict(), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
    ],
)
def test_whole_modules_and_other_objects_are_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"run code \(it names {named}\): save the state dict alone"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.trace(net().eval(), torch.rand(1, 2, 12, 12)).save(tmp_path / "w.pt")
    with pytest.raises(InputError, match="it is a TorchScript archive, a program: save the state dict alone"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([net().state_dict()], "got list"),
        (torch.ones(3), "got Tensor"),
        ({}, "got an empty mapping"),
        ({"state_dict": {}}, "got an empty mapping"),
        ({"weights": net().state_dict(), "epoch": 3}, "got a mapping with the keys weights, epoch"),
    ],
)
def test_what_holds_no_state_dict_is_told(tmp_path, content, told):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"expected a state dict \(name -> tensor\), {told}"):
        read_weights(tmp_path / "w.pt")


def test_files_that_are_none_are_told(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "gone.pt", tmp_path / "folder.pt"):
        with pytest.raises(InputError, match=f"no file '{path}'"):
            read_weights(path)
    for text in ("hello world\n" * 9, "accuracy 0.9: a log\n" * 9, "", "P"):
        for suffix, message in ((".pt", "not a file of weights"), (".safetensors", "not a safetensors file")):
            (tmp_path / f"text{suffix}").write_text(text)
            with pytest.raises(InputError, match=message):
                read_weights(tmp_path / f"text{suffix}")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["safetensors", "state dict", "before torch 1.6"])
def test_a_damaged_file_is_an_input_error_or_another_state_dict(tmp_path, how):
    suffix, save = SAVERS[how]
    path = tmp_path / f"w{suffix}"
    save(nn.Linear(3, 2).state_dict(), path)
    whole = path.read_bytes()
    for size in {0, 1, 7, 64, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_weights(path)
    chance, refused = random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 4])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            state = read_weights(path)
        except InputError:
            refused += 1
        else:
            assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert refused > 10


# --- what a study says of weights ------------------------------------------------------------------------------------


def state_of_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).state_dict()


def test_random_weights_are_a_function_of_the_model_seed(folder):
    entry = {"source": "file:net.py:build", "weights": "random"}
    first, again, other = (loaded(folder, {**entry, "model_seed": seed}) for seed in (0, 0, 1))
    assert_same(first.model, again.model)
    assert differ(first.model, other.model)
    assert differ(first.model, first.twin(0))
    assert (first.origin, first.model_seed, other.model_seed) == ("random", 0, 1)
    assert first.identity == again.identity != other.identity
    assert_twins(first)


def test_without_weights_the_choices_are_named(folder):
    with pytest.raises(NoWeightsError, match=r"file:net.py:build: nothing says which .* a file or one of random \("):
        loaded(folder, "file:net.py:build")
    with pytest.raises(InputError, match="weights 'rendom' are neither a file nor known; did you mean random"):
        loaded(folder, {"source": "file:net.py:build", "weights": "rendom"})


def test_several_checkpoints_are_several_model_seeds(folder):
    torch.manual_seed(0)
    states = [state_of_net() for _ in range(2)]
    for name, state in zip("ab", states, strict=True):
        torch.save(state, folder / f"{name}.pt")
    model = {"source": "file:net.py:build", "weights": ["a.pt", "b.pt"]}
    results = harness.run(study_of(folder, model, methods=["input_x_gradient"]), folder / "run")
    assert sorted(set(results.cells["model_seed"])) == [0, 1]
    records = results.records[results.records["measure"] == results.records["measure"].iloc[0]]
    by_seed = [records[records["model_seed"] == seed].set_index("sample")["value"] for seed in (0, 1)]
    assert len(by_seed[0]) == len(by_seed[1]) == 12
    assert (by_seed[0] != by_seed[1]).all()
    assert [subject["weights_from"] for subject in results.manifest["subjects"]] == ["a.pt", "b.pt"]
    only = harness.run(study_of(folder, {**model, "weights": "b.pt"}, methods=["input_x_gradient"]), folder / "only")
    alone = only.records[only.records["measure"] == records["measure"].iloc[0]].set_index("sample")["value"]
    np.testing.assert_array_equal(alone, by_seed[1])
    (folder / "one.py").write_text(f"{NET}\nONE = build()\ndef one(): return ONE\n")
    both = load_study(study_of(folder, {**model, "source": "file:one.py:one"})).models
    first, second = (load_entry(each, folder, seed=0, device=CPU, progress=silent)[0] for each in both)
    assert differ(first.model, second.model)  # although the factory returns one network for all
    twice = study_of(folder, {**model, "model_seed": [0, 1]})
    with pytest.raises(StudyError, match="numbers the checkpoints itself; drop model_seed"):
        load_study(twice)


# --- built-in networks -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A recipe for the mlp that takes no time, and a cache of its own."""
    monkeypatch.setenv("ATTRIBUTION_HARNESS_CACHE", str(tmp_path / "cache"))
    source = replace(mlp(), recipe=Recipe(epochs=2, permuted_epochs=1, batch=64, rate=3e-3))
    monkeypatch.setitem(MODELS._entries, "mlp", replace(MODELS["mlp"], function=lambda: source))


@pytest.mark.parametrize("head", ["", {"head": "multi_label", "label": 3}])
def test_a_built_in_network_is_trained_and_has_a_partner(folder, tiny, head):
    first, other = (loaded(folder, {"source": "mlp", "model_seed": s, "head": head}, data="digits") for s in (0, 1))
    assert (first.origin, first.note) == ("trained by recipe", "twins by constructor")
    assert differ(first.model, other.model)
    assert_twins(first)
    partner = first.partner()
    assert type(partner.model) is type(first.model)
    assert differ(partner.model, first.model)
    assert differ(partner.model, first.twin(0))
    assert "memorized" in partner.invalid
    assert not partner.model.training


def test_built_in_networks_take_the_shape_of_the_data(folder, tiny):
    chance = np.random.default_rng(0)
    table = "a,b,c,label,held_out\n" + "".join(
        f"{a},{b},{c},{'xyz'[row % 3]},{row % 2}\n" for row, (a, b, c) in enumerate(chance.random((200, 3)))
    )
    (folder / "t.csv").write_text(table)
    data = {"source": "csv:t.csv", "held_out": "held_out"}
    model = loaded(folder, "mlp", data=data)
    assert model.example.shape == (1, 3)
    assert model.model(model.example).shape == (1, 3)
    assert model.partner().model(model.example).shape == (1, 3)
    # Without a training part there is nothing to train on, and digits are of another shape; random weights will do.
    random = loaded(folder, {"source": "mlp", "weights": "random"}, data="csv:t.csv")
    assert random.model(random.example).shape == (1, 3)
    assert random.school is None
    with pytest.raises(NoWeightsError, match="or give data with a training part, to train it on"):
        loaded(folder, "mlp", data="csv:t.csv")
    # Data of the shape of the network's own default data are explained with what it learnt on those.
    np.savez(folder / "mine.npz", x=chance.random((4, 1, 8, 8), dtype=np.float32))
    mine = loaded(folder, "mlp", data="npz:mine.npz")
    assert_same(mine.model, loaded(folder, "mlp", data="digits").model)
    assert mine.partner().model(mine.example).shape == (1, 10)


def test_several_training_seeds_have_their_own_rows(folder, tiny):
    study = study_of(folder, {"source": "mlp", "model_seed": [0, 1]}, data={"source": "digits", "samples": 4})
    results = harness.run(study, folder / "run")
    assert sorted(set(results.records["model_seed"])) == [0, 1]
    assert len({subject["weights"] for subject in results.manifest["subjects"]}) == 2
    assert len(results.cells["key"].unique()) == 2


def test_other_weights_than_its_own_may_be_given_to_a_built_in_network(folder, tiny):
    torch.save(loaded(folder, "mlp", data="digits").model.state_dict(), folder / "w.pt")
    state = torch.load(folder / "w.pt")
    state["output.bias"] += 1
    torch.save(state, folder / "w.pt")
    model = loaded(folder, {"source": "mlp", "weights": "w.pt"}, data="digits")
    assert torch.equal(model.model.output.bias, state["output.bias"])
    assert model.origin == "w.pt"
    assert Path(os.environ["ATTRIBUTION_HARNESS_CACHE"]).is_dir()
