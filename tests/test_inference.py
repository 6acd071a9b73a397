"""The form for passes without a gradient: it has the logits of the network, or it is the network."""

import shutil

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import harness
from cases import Functional
from harness.inference import CHECKED, EAGER, foldable, inference_form
from harness.networks import CifarResNet, VisionTransformer

FOLDED, LAID_OUT, BOTH = "folded", "channels last", "folded, channels last"
OVER = ", in place"


def settled(model, *shape):
    """In evaluation mode, with statistics of batch norms that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 3)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            if module.affine:
                module.weight.data = 0.5 + torch.rand(module.num_features, generator=generator)
                module.bias.data = torch.randn(module.num_features, generator=generator) / 3
    return model.eval(), torch.randn(5, *shape, generator=generator)


class Twice(nn.Module):
    """A convolution that is called twice, of which one output is normalized."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(F.relu(self.norm(self.layer(x)))).mean((2, 3)))


class Branch(nn.Module):
    """The output of the convolution is normalized, and added as it is."""

    def __init__(self, in_place=False):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.in_place = in_place

    def forward(self, x):
        x = self.layer(x)
        if self.in_place:
            return self.head(self.norm(x.relu_()).mean((2, 3)))
        return self.head((self.norm(x) + x).mean((2, 3)))


class Flat(nn.Module):
    """`view` takes no tensor whose channels lie last."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(144, 3)

    def forward(self, x):
        x = self.norm(self.layer(x))
        return self.head(x.view(len(x), -1))


class Reads(nn.Module):
    """Looks at the batch norm itself, which is no longer there once it is folded."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)).mean((2, 3))) * self.norm.num_features


class Signal(nn.Sequential):
    """Convolutions and batch norms over one axis, and behind them a linear layer with its own."""

    def __init__(self):
        layers = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        super().__init__(*layers, nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


class Hooked(Branch):
    """A layer with a hook does more than its class says."""

    def __init__(self):
        super().__init__(in_place=False)
        self.layer.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)).mean((2, 3)))


NETWORKS = {
    "resnet20": (lambda: CifarResNet((3, 32, 32), 10, depth=20), (3, 32, 32), BOTH + OVER, 19),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(num_classes=7), (3, 64, 64), BOTH + OVER, 52),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), (3, 64, 64), BOTH + OVER, 20),
    "functional": (Functional, (2, 8, 8), BOTH + OVER, 1),
    "vit": (lambda: VisionTransformer((3, 28, 28), 10), (3, 28, 28), LAID_OUT, 0),
    "signal": (Signal, (4, 20), FOLDED + OVER, 2),
    "twice": (Twice, (4, 6, 6), LAID_OUT + OVER, 0),
    "branch": (Branch, (4, 6, 6), LAID_OUT + OVER, 0),
    "in place": (lambda: Branch(in_place=True), (4, 6, 6), LAID_OUT, 0),
    "hooked": (Hooked, (4, 6, 6), LAID_OUT, 0),
    "flat": (Flat, (4, 6, 6), FOLDED, 1),
    "reads": (Reads, (4, 6, 6), EAGER, 1),
    "table": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (6,), EAGER, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_has_the_logits_of_the_network_in_the_form_that_the_network_bears(name):
    build, shape, form, pairs = NETWORKS[name]
    torch.manual_seed(0)
    model, x = settled(build(), *shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert len(foldable(model, x)) == pairs
    made = inference_form(model, x)
    assert made.form == form
    with torch.no_grad():
        expected = model(x.clone())
    torch.testing.assert_close(made.logits(x), expected, rtol=1e-4, atol=1e-4)
    assert (made.network is model) == (form == EAGER)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules() if name != "hooked")
    left = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in made.network.modules())
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert left == norms - (pairs if FOLDED in form else 0)


def test_a_network_that_the_form_changes_stays_as_it_is(monkeypatch):
    model, x = settled(CifarResNet((3, 32, 32), 10, depth=8), 3, 32, 32)
    wrong = "harness.inference.fuse_conv_bn_eval"
    monkeypatch.setattr(wrong, lambda inner, outer: nn.Conv2d(inner.in_channels, inner.out_channels, 3, padding=1))
    assert inference_form(model, x).form == EAGER


def test_double_precision_and_statistics_of_the_batch_stay_as_they_are():
    model, x = settled(CifarResNet((3, 32, 32), 10, depth=8), 3, 32, 32)
    assert inference_form(model.double(), x.double()).form == EAGER
    tracked, x = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 3, 9, 9)
    assert foldable(tracked, x) == []


def test_a_network_that_writes_in_place_does_not_reach_the_samples():
    model, x = settled(
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 3)), 4, 6, 6
    )
    kept = x.clone()
    for laid_out in (x, x.to(memory_format=torch.channels_last)):
        inference_form(model, laid_out).logits(laid_out)
        assert torch.equal(laid_out, kept)


def test_a_study_uses_it_for_logits_records_it_and_counts_its_passes():
    model, x = settled(CifarResNet((3, 32, 32), 10, depth=8), 3, 32, 32)
    metrics = ["zero_fraction", {"metric": "occlusion_faithfulness", "fill": "black", "patch": 16}]
    space = harness.InputSpace("image", mean=(0.5,) * 3, std=(0.5,) * 3)
    results = harness.evaluate(model, x, methods=["gradient"], metrics=metrics, space=space)
    assert set(results.cells["model_form"]) == {BOTH + OVER}
    assert results.cells["forward"].tolist() == [0, 5 * (1 + 4)]
    double = harness.evaluate(model.double(), x.double(), methods=["gradient"], metrics=metrics, space=space)
    assert set(double.cells["model_form"]) == {EAGER}
    values = [each.records["value"].to_numpy() for each in (results, double)]
    assert abs(values[0] - values[1]).max() < 1e-3
    assert set(results.cells["key"]).isdisjoint(double.cells["key"])


def test_few_samples_are_enough_to_check_it():
    model, _ = settled(CifarResNet((3, 32, 32), 10, depth=8), 3, 32, 32)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    inference_form(model, torch.randn(100, 3, 32, 32))
    assert max(seen) == CHECKED


COMPILED = ", compiled"


@pytest.fixture
def compiler():
    assert shutil.which("g++"), "a C++ compiler is needed: apt-get install g++"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "shape", "form"),
    [
        (lambda: CifarResNet((3, 32, 32), 10, depth=8), (3, 32, 32), BOTH + COMPILED),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (6,), "compiled"),
    ],
    ids=["folded", "bare"],
)
def test_a_compiled_form_has_the_logits_of_the_network_in_batches_of_any_size(build, shape, form, compiler):
    torch.manual_seed(0)
    model, x = settled(build(), *shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = inference_form(model, x, compiled=True)
    assert made.form == form
    kept = x.clone()
    for size in (5, 1, 3):
        with torch.no_grad():
            torch.testing.assert_close(made.logits(x[:size]), model(x[:size].clone()), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_compiled_says_why_and_takes_the_fastest_of_the_other_forms(monkeypatch):
    model, x = settled(CifarResNet((3, 32, 32), 10, depth=8), 3, 32, 32)

    def fails(network):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match=r"^the network is not compiled: no compiler$"):
        assert inference_form(model, x, compiled=True).form == BOTH + OVER
    monkeypatch.setattr(torch, "compile", lambda network: nn.Sequential(network, nn.Softmax(1)))
    with pytest.warns(UserWarning, match="not compiled: its logits are others then"):
        assert inference_form(model, x, compiled=True).form == BOTH + OVER


@pytest.mark.slow
def test_a_study_says_so_and_its_cells_are_kept_apart(tmp_path, compiler):
    study = {
        "name": "compiled",
        "data": {"source": "digits", "samples": 20},
        "models": [{"name": "net", "source": "mlp", "weights": "random"}],
        "methods": ["gradient"],
        "controls": False,
        "metrics": [{"metric": "pixel_flipping", "steps": 4}],
    }
    plain = harness.run(study, tmp_path / "run", views=False)
    study["models"][0]["compiled"] = True
    compiled = harness.run(study, tmp_path / "compiled", views=False)
    assert list(plain.cells["key"]) != list(compiled.cells["key"])
    (one, other) = (results.table("headlines")["value"].item() for results in (plain, compiled))
    assert one == pytest.approx(other, rel=1e-4)
    assert one != 0
