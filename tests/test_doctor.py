"""The doctor: names what is wrong without a traceback, finds nothing in the healthy, and counts right."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_models import NET, study_folder, study_of
from torch import nn

import harness
from cases import Linear, network, relu_mlp
from harness.catalogue import METHODS
from harness.doctor import cost_of, doctor
from harness.shapes import guess_shape
from harness.types import InputError, NotApplicableError

FACTORIES = f"""
from pathlib import Path
{NET}
def loads():
    model = build()
    model.load_state_dict(torch.load(Path(__file__).parent / "w.pt"))
    return model.eval()

def forgets():
    return loads().train()

def softmax():
    return nn.Sequential(loads(), nn.Softmax(1)).eval()

def scripted():
    return torch.jit.script(loads())

def chance():
    class Chance(nn.Sequential):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.2))
    return Chance(build())

def detached():
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x.detach())
    return Detached(loads()).eval()
"""

LINES = {
    "healthy": ("file:net.py:build", "data.npz", "--weights", "w.pt"),
    "on noise": ("file:net.py:build", "--weights", "w.pt"),
    "study": ("study.yaml",),
    "softmax": ("file:net.py:softmax", "data.npz"),
    "train mode": ("file:net.py:forgets", "data.npz"),
    "scripted": ("file:net.py:scripted", "data.npz"),
    "no weights": ("file:net.py:build",),
    "chance and no weights": ("file:net.py:chance", "data.npz"),
    "detached": ("file:net.py:detached", "data.npz"),
    "raises": ("file:net.py:loads", "wide.npz"),
    "broken samples": ("file:net.py:loads", "{source: folder:photos, mean: [0, 0, 0], std: [1, 1, 1], broken: skip}"),
    "refused samples": ("file:net.py:loads", "{source: folder:photos, mean: [0, 0, 0], std: [1, 1, 1]}"),
    "infinite samples": ("file:net.py:loads", "infinite.npz"),
    "misspelt": ("file:net.py:laods",),
    "other weights": ("file:net.py:build", "--weights", "other.pt"),
    "no samples": ("file:net.py:loads", "gone.npz"),
}

SCRIPT = """
import json, os, sys
import harness.doctor, harness.init, harness.cli, harness.figures
for name, arguments in json.loads(sys.argv[1]).items():
    if os.fork() == 0:  # a process for each, without importing everything again
        for stream, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["harness", "doctor", *arguments]
        code = 0
        try:
            harness.cli.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What `harness doctor` says to each of the command lines: (exit code, output, errors)."""
    folder = study_folder(tmp_path_factory.mktemp("doctor"))
    (folder / "net.py").write_text(FACTORIES)
    torch.manual_seed(0)
    for name, classes in (("w", 3), ("other", 5)):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))
        torch.save(net.state_dict(), folder / f"{name}.pt")
    x = np.load(folder / "data.npz")["x"]
    np.savez(folder / "wide.npz", x=np.concatenate([x, x], 3))
    np.savez(folder / "infinite.npz", x=np.where(np.arange(12)[:, None, None, None] == 5, np.inf, x))
    (folder / "photos").mkdir()
    for row in range(4):
        Image.fromarray((255 * x[row].transpose(1, 2, 0)).astype(np.uint8)).save(folder / "photos" / f"{row}.png")
    (folder / "photos" / "2.png").write_bytes(b"no picture")
    study_of(folder, {"source": "file:net.py:loads"}, {"name": "sick", "source": "file:net.py:forgets"})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(LINES)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(LINES), done.stderr
    return {
        name: (code, *((folder / f"{name}.{suffix}").read_text() for suffix in ("out", "err")))
        for name, code in zip(LINES, codes, strict=True)
    }


@pytest.mark.parametrize("name", ["healthy", "on noise"])
def test_the_healthy_are_sent_home(told, name):
    code, said, errors = told[name]
    assert (code, errors) == (0, "")
    assert "no findings" in said
    assert "finding:" not in said.replace("no findings", "")
    for line in ("class: Sequential", "weights: w.pt", "twins: twins by constructor", "input: [3, 8, 8] image"):
        assert line in said
    assert "parameters: 547 in 4 tensors, float32 on cpu" in said
    assert "kept for the backward pass; largest batch that fits:" in said
    for method in explainers():
        assert f"│ {method} " in said


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("softmax", "the outputs look like those of a softmax inside the model: remove it"),
        ("train mode", "the model is in train mode (Sequential, 0, 1 and 2 more): call model.eval() first"),
        ("scripted", "the model is a scripted model: rules and blocks cannot see into it; load its weights"),
        ("no weights", "examined with random weights: file:net.py:build: nothing says which weights"),
        ("chance and no weights", "depends on chance: switch dropout off"),
        ("detached", "no gradient reaches the input: something in the model detaches it"),
        ("raises", "the model raises on inputs of shape [12, 3, 8, 16]: RuntimeError: "),
        ("broken samples", "1 samples cannot be read: cannot read '"),
        ("infinite samples", "the input of sample infinite.npz/5 holds infinite values (1 samples do)"),
        ("study", "the model is in train mode"),
    ],
)
def test_what_is_wrong_is_named_and_the_exit_code_is_one(told, name, finding):
    code, said, errors = told[name]
    assert code == 1, errors
    assert f"finding: {finding}" in said.replace("finding: the model's output for sample data.npz/0", "finding:")
    assert said.count("finding: ") == (2 if name == "chance and no weights" else 1)
    assert "Traceback" not in said + errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("misspelt", "net.py has no function 'laods'; did you mean loads"),
        ("other weights", "the file is of a network with 5 classes, this one has 3"),
        ("refused samples", "2.png"),
        ("no samples", "gone.npz: no such folder or file"),
    ],
)
def test_wrong_input_exits_with_two_and_one_message(told, name, message):
    code, said, errors = told[name]
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors + said


def test_a_study_is_examined_model_by_model(told):
    _, said, _ = told["study"]
    healthy, sick = said.split("\nsick\n")
    assert "no findings" in healthy
    assert "accuracy" in healthy
    assert "finding: " in sick
    assert "no findings" not in sick


# --- in Python -------------------------------------------------------------------------------------------------------


def test_blocks_and_parameters_are_counted():
    model, x, y = network("modules")
    found = doctor(model, x, y)
    assert found.findings == []
    blocks = found.blocks.set_index("block")
    assert list(blocks.index) == ["0", "4", "7"]
    assert blocks["parameters"].tolist() == [2 * 6 * 9 + 6 + 12, 6 * 6 * 9 + 6, 96 * 4 + 4]
    assert blocks["buffers"].tolist() == [3, 0, 0]
    assert found.facts["parameters"] == f"{blocks['parameters'].sum():,} in 8 tensors, float32 on cpu"
    hits = int((model(x).argmax(1) == y).sum())
    assert found.facts["accuracy"] == f"{hits} of 5 = {hits / 5:.2%}"
    assert found.facts["modules"].startswith("2 Conv2d") or "2 Conv2d" in found.facts["modules"]
    assert found.facts["input"] == "[2, 12, 12] image, tensors, 5 samples"
    assert found.facts["output"] == "[4]"
    assert found.cost.batch == 5


def conv_net(inplace):
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)).eval()


CONV = 4 * (2 * 64 + 3 * 36 + 27) + 8 * 27
"""Bytes a sample: input, rectified (which pooling shares), pooled; and where the maxima are, in int64."""


@pytest.mark.parametrize(
    ("model", "x", "bytes_a_sample"),
    [
        (relu_mlp((20, 40, 30, 5)), torch.rand(7, 20, dtype=torch.float64), 8 * (20 + 40 + 30)),
        (relu_mlp((20, 40, 30, 5)).float(), torch.rand(9, 20), 4 * (20 + 40 + 30)),
        (conv_net(False), torch.rand(5, 2, 8, 8), CONV),
        (conv_net(True), torch.rand(6, 2, 8, 8), CONV),
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh()).eval(), torch.rand(3, 6), 4 * (6 + 4)),
        (nn.Sequential(nn.Linear(6, 4), nn.GELU()).eval(), torch.rand(3, 6), 4 * (6 + 4)),
    ],
)
def test_the_bytes_of_the_graph_are_those_counted_by_hand(model, x, bytes_a_sample):
    cost = cost_of(model, x)
    assert cost.graph_bytes == bytes_a_sample * len(x)
    assert (cost.batch, cost.how) == (len(x), "estimated")
    assert cost.forward_seconds > 0
    assert cost.backward_seconds >= 0
    assert cost.largest_batch >= 1


def problems(*arguments, **more):
    return [finding.problem for finding in doctor(*arguments, **more).findings]


@pytest.mark.slow
def test_arguments_that_evaluate_would_refuse_are_findings():
    model, x, y = network("modules")
    (problem,) = problems(model, x.double(), y)
    assert problem.startswith("the model has torch.float32 parameters on cpu, x is torch.float64 on cpu: convert one")
    assert doctor(model, x.double(), y).methods["status"].tolist().count("works") > 3
    (problem,) = problems(model, x, build=lambda: network("gelu")[0])
    assert problem.startswith("build() makes no twins of the model: it makes another network than the model")
    assert problems(model, x, build=lambda: network("modules")[0]) != []  # which seeds itself
    with pytest.raises(InputError, match="declares 3 channels, x has 2"):
        doctor(model, x, space=harness.InputSpace("image", mean=(0.0,) * 3, std=(1.0,) * 3))


def test_what_goes_wrong_on_the_way_is_a_finding():
    model, x, y = network("modules")
    with pytest.raises(InputError, match="x holds no samples"):
        doctor(model, x[:0])
    (problem,) = problems(model, x[:, :, :9])
    assert problem.startswith("the model raises on inputs of shape [5, 2, 9, 12]: RuntimeError: ")
    broken = x.clone()
    broken[1] = torch.nan
    (problem,) = problems(model, broken)
    assert problem.startswith("the input of sample tensors/1 holds NaN (1 samples do)")

    class Squeezes(nn.Sequential):
        def forward(self, x):
            return super().forward(x).squeeze()

    (problem,) = problems(Squeezes(model).eval(), torch.rand(33, 2, 12, 12))  # 32 and one
    assert "must return logits of shape [n, classes], got [4]" in problem
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
    for labels in (y + 1, y - 1):
        found = doctor(model, x, labels)
        assert found.facts["accuracy"] == "unknown, because the labels lie outside 0 to 3"
        assert found.findings == []


def test_the_samples_and_the_model_are_left_as_they_were():
    model, x, y = network("in_place")
    x = x - 0.5
    kept, state = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.random.get_rng_state()
    found = doctor(model, x, y)
    assert [finding.action for finding in found.findings] == ["cope"]
    assert torch.equal(x, kept)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert not model.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (network("table")[0], (9,)),
        (network("gelu")[0], (2, 224, 224)),
        (network("modules")[0], None),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), (64,)),
        (nn.Sequential(nn.Conv1d(3, 4, 9), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)), (3, 8000)),
        (nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 2)), (1, 28, 28)),
        (nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Flatten(), nn.Linear(64, 3)), (64,)),
    ],
)
def test_the_shape_of_an_input_is_guessed_from_the_first_layer(model, shape):
    if shape is None:
        with pytest.raises(InputError, match="nothing says the shape of an input: give data after the model"):
            guess_shape(model)
    else:
        assert guess_shape(model) == shape


# --- applicability ---------------------------------------------------------------------------------------------------


def explainers():
    return [name for name, entry in METHODS.items() if entry.family != "control"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modules", "functional", "gelu", "table"])
def test_there_is_a_row_for_each_method_and_the_residual_is_that_of_completeness(name):
    model, x, _ = network(name, torch.float64)
    rows = doctor(model, x).methods.set_index("method")
    assert sorted(rows.index) == sorted(explainers())
    with torch.no_grad():
        target = model(x[:2]).argmax(1)
    for method, row in rows.iterrows():
        assert row["claim"] == (METHODS[method].conserves or "")
        try:
            harness.explain(model, x[:2], target, method=method)
            expected = ("works", "")
        except NotApplicableError as error:
            expected = ("refused", str(error).partition(": " if str(error).startswith(f"{method}: ") else " ")[2])
        assert (row["status"], row["reason"]) == expected
        if row["claim"] and row["status"] == "works":
            results = harness.evaluate(model, x[:2], methods=[method], metrics=["completeness"])
            values = results.records[results.records["measure"] == "relative_residual"]["value"]
            assert len(values) == 2
            assert row["residual"] == pytest.approx(np.median(values), rel=1e-9, abs=1e-12)
        else:
            assert np.isnan(row["residual"])
    why = {"table": ("grad_cam", "needs positions, got a table")}
    if name in why:
        assert rows.loc[why[name][0], "reason"].startswith(why[name][1])


def test_the_residual_of_a_linear_model_is_its_bias():
    """On f = <w, x> + b, input x gradient misses b: the residual is |b / f|; integrated gradients miss nothing."""
    weight, bias = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), torch.tensor([3.0, 0.0]).double()
    x = torch.tensor([[1.0, 1.0], [4.0, 0.5]]).double()
    rows = doctor(Linear(weight, bias).eval(), x).methods.set_index("method")
    wanted = np.mean([3 / (3 + 3), 3 / (5 + 3)])
    assert rows.loc["input_x_gradient", "residual"] == pytest.approx(wanted, rel=1e-12)
    assert rows.loc["integrated_gradients", "residual"] < 1e-12


@pytest.mark.parametrize("whole", [True, False])
def test_a_method_that_fails_is_told_with_its_error(whole):
    model, x, _ = network("modules")

    class Detached(nn.Sequential):
        def forward(self, x):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not whole):
                return super().forward(x.detach())

    found = doctor(Detached(model).eval(), x)
    assert [finding.action for finding in found.findings] == ["warn"]
    rows = found.methods.set_index("method")
    assert rows.loc["gradient", "status"] == "fails"
    assert rows.loc["gradient", "reason"].startswith("RuntimeError: ")
    assert rows.loc["occlusion", "status"] == "works"
    assert (found.cost.graph_bytes == 0) == whole


def test_accuracy_at_chance_is_a_finding_and_a_good_one_is_not():
    from harness.doctor import _no_better_than_chance

    labels = torch.arange(40) % 4
    right = torch.nn.functional.one_hot(labels, 4).float()
    assert _no_better_than_chance(right, labels) == []
    (finding,) = _no_better_than_chance(right.roll(1, 1), labels)
    assert "0 of 40 are classified correctly, and the commonest class alone would give 10" in finding.problem
    always = torch.tensor([[1.0, 0, 0, 0]]).expand(40, 4)
    assert _no_better_than_chance(always, labels)
    assert _no_better_than_chance(always[:8], labels[:8]) == []  # too few to tell
