"""Findings: each fault is found and named with a remedy, and healthy models raise no alarm."""

import math
import re
import warnings

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import harness
from cases import SHAPES, Linear, network, relu_mlp
from harness import InputError, InputSpace, heads
from harness.catalogue import MODELS
from harness.findings import Finding, in_gradient, in_model, in_output, in_repetition, in_samples, refuse


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ids_of(x):
    return [f"s{row}" for row in range(len(x))]


def found(model, x):
    """All findings, as the doctor collects them."""
    kept = x.clone()
    faults = [*in_model(model), *in_samples(x, InputSpace.undeclared(x), ids_of(x))]
    with torch.no_grad():
        output = model(x.clone())
    faults += in_output(output, ids_of(x))
    if not any(fault.action == "refuse" for fault in faults):
        faults += [fault for fault in in_repetition(model, x, output, ids_of(x)) if fault not in faults]
    if not any(fault.action == "refuse" for fault in faults):
        faults += in_gradient(model, x[:8])
    assert torch.equal(x, kept)
    return faults


def evaluate(model, x, **arguments):
    return harness.evaluate(model, x, methods=["gradient"], metrics=["occlusion_faithfulness"], **arguments)


def modules():
    return network("modules")[0]


class Then(nn.Module):
    """A healthy network for images [2, 12, 12] with a function after it, or before it."""

    def __init__(self, after=None, before=None):
        super().__init__()
        self.network = modules()
        self.after, self.before = after, before
        self.eval()

    def forward(self, x):
        logits = self.network(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


class Straight(torch.autograd.Function):
    """A rectifier whose backward pass lets everything through."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Broken(torch.autograd.Function):
    """An identity whose backward pass has a mistake."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise TypeError("a mistake in a backward pass")


class Without(Then):
    """A network in no_grad."""

    forward = torch.no_grad()(Then.forward)


def numpy_norm(x):
    return x / torch.from_numpy(np.linalg.norm(x.numpy(), axis=1, keepdims=True))


def training(part=None):
    model = modules()
    (model if part is None else model[part]).train()
    return model


def frozen():
    model = modules()
    model[0].requires_grad_(False)
    return model


def nan_weights():
    model = modules()
    model[7].weight.data[0] = math.nan
    return model


def batch_statistics():
    return nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(288, 3)).eval()


def scripted_part():
    model = modules()
    model[2] = torch.jit.script(nn.Sequential(nn.ReLU()))
    return model.eval()


def traced():
    model, x, _ = network("modules")
    return torch.jit.trace(model, x)


def compiled_in_place():
    model = modules()
    model[4].compile()
    return model


AFTER = {
    "softmax": (lambda z: z.softmax(1), "look like those of a softmax inside the model: remove it"),
    "log-softmax": (lambda z: z.log_softmax(1), "look like those of a log-softmax inside the model: remove it"),
    "sigmoid": (torch.sigmoid, "look like those of a sigmoid inside the model: remove it"),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "look like those of a softmax"),
    "sigmoid, transposed": (lambda z: z.T.sigmoid().T.clone(), "look like those of a sigmoid"),
    "mean of softmaxes": (lambda z: torch.stack([z.softmax(1), (2 * z).softmax(1)]).mean(0), "a softmax inside"),
}

SICK = {
    "train mode": (training, "in train mode (Sequential, 0, 1 and 6 more): call model.eval() first", "refuse"),
    "a part in train mode": (lambda: training(1), "the model is in train mode (1): call model.eval()", "refuse"),
    "dropout": (lambda: nn.Sequential(nn.Dropout(), modules(), nn.Dropout1d()), ", with dropout on in 2 mod", "refuse"),
    "functional dropout": (lambda: Then(before=lambda x: F.dropout(x, 0.05)), "depends on chance: switch", "refuse"),
    "noise": (lambda: Then(before=lambda x: x + 0.02 * torch.randn_like(x)), "depends on chance", "refuse"),
    "NaN": (nan_weights, "the model's output for sample s0 holds NaN (6 samples do): check its weights", "refuse"),
    "infinite": (lambda: Then(after=lambda z: z / 0), "the model's output for sample s0 holds infinite", "refuse"),
    "scripted": (lambda: torch.jit.script(modules()), "the model is a scripted model: .*eager network", "refuse"),
    "a scripted part": (scripted_part, "parts of the model are scripted (2): methods with backward rules", "warn"),
    "traced": (traced, "the model is a scripted model: ", "refuse"),
    "lazy": (lambda: nn.Sequential(modules(), nn.LazyLinear(3)), "module '1' is lazy, without a shape", "refuse"),
    "compiled": (lambda: torch.compile(modules()), "give the network itself, model._orig_mod", "refuse"),
    "compiled in place": (compiled_in_place, "module '4' is compiled in place: ", "refuse"),
    "parallel": (lambda: nn.DataParallel(modules()).eval(), "give the network itself, model.module", "refuse"),
    "batch": (batch_statistics, "s0 depends on the rest of its batch: let normalizations use their running", "refuse"),
    "batch mean": (lambda: Then(after=lambda z: z - z.mean(0)), "depends on the rest of its batch", "refuse"),
    "squeezed": (lambda: Then(after=torch.squeeze), "got [4] for 1: squeeze only the axes that are meant", "refuse"),
    "one output": (lambda: Then(after=lambda z: z[:, :1]), "wrap it in harness.heads.Regression", "refuse"),
    "no rows": (lambda: Then(after=lambda z: z[:, 0]), "must return logits of shape [n, classes], got [6]", "refuse"),
    "integers": (lambda: Then(after=lambda z: (9 * z).long()), "return real logits, got torch.int64", "refuse"),
    "complex": (lambda: Then(after=lambda z: z + 0j), "must return real logits, got torch.complex64", "refuse"),
    "a dictionary": (lambda: Then(after=lambda z: {"out": z}), "[n, classes], got dict: wrap it", "refuse"),
    "a scalar": (lambda: Then(after=torch.mean), "[n, classes], got []: wrap it", "refuse"),
    **{name: (lambda after=after: Then(after), text, "warn") for name, (after, text) in AFTER.items()},
    "frozen": (frozen, "requires_grad is off for 2 parameters (0.weight, 0.bias): harmless for gradients", "cope"),
    "in place": (lambda: Then(before=lambda x: x.sub_(0.3)), "writes into its input in place", "cope"),
    "a detached part": (lambda: Then(before=lambda x: x + x.detach() ** 2), "a part of the model is detached", "warn"),
    "a wrong backward": (lambda: Then(before=lambda x: Straight.apply(x - 0.5)), "backward pass of its own", "warn"),
    "no_grad": (Without, "no gradient reaches the input: something in the model detaches it", "warn"),
    "argmax": (lambda: Then(after=lambda z: 3.0 * F.one_hot(z.argmax(1), 4)), "no gradient reaches", "warn"),
    "numpy": (lambda: Then(before=numpy_norm), "cannot be differentiated by its input: RuntimeError", "warn"),
    "a broken backward": (lambda: Then(before=Broken.apply), "input: TypeError: a mistake in a backward pass", "warn"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SICK)
def test_a_fault_is_found_with_its_remedy_and_nothing_else(name):
    build, text, action = SICK[name]
    model, x = build(), torch.rand(6, 2, 12, 12)
    faults = in_model(model) if "compiled" in name or name == "lazy" else found(model, x)
    assert [fault.action for fault in faults if re.search(as_pattern(text), fault.problem)] == [action], faults
    others = [fault for fault in faults if not re.search(as_pattern(text), fault.problem)]
    assert not others or name in ("scripted", "traced", "parallel", "dropout", "lazy"), others


def as_pattern(text):
    return re.escape(text).replace(r"\.\*", ".*")


def named(action):
    return [name for name, (_, _, its) in SICK.items() if its == action]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", named("refuse"))
def test_evaluate_refuses(name):
    build, text, _ = SICK[name]
    with pytest.raises(InputError, match=as_pattern(text).replace("s0", "sample/0")):
        evaluate(build(), torch.rand(6, 2, 12, 12))


@pytest.mark.parametrize("name", AFTER)
def test_evaluate_warns(name):
    build, text, _ = SICK[name]
    with pytest.warns(UserWarning, match=as_pattern(text)) as caught:
        results = evaluate(build(), torch.rand(6, 2, 12, 12))
    assert len(caught) == 1
    assert len(results.records) > 0


@pytest.mark.parametrize("name", named("cope"))
def test_evaluate_copes_in_silence(name):
    x = torch.rand(6, 2, 12, 12)
    kept = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate(SICK[name][0](), x)
    assert results.failures.empty
    assert torch.equal(x, kept)


def test_samples_outside_the_box_are_told_and_those_inside_are_not():
    model, x, _ = network("modules")
    space = InputSpace("image", mean=(0.5, 0.5), std=(0.25, 0.25))
    inside = (x - 0.5) / 0.25
    assert in_samples(inside, space, ids_of(x)) == []
    (fault,) = in_samples(inside + 0.4, space, ids_of(x))
    beyond = (inside + 0.4).amax((1, 2, 3)) * 0.25 - 0.5  # of a box of width 1
    row, excess = int(beyond.argmax()), float(beyond.max())
    count = int((beyond > 1e-3).sum())
    text = f"{count} of 5 samples leave the declared box by up to {excess:.2g} of its width (sample s{row})"
    assert fault.problem.startswith(text)
    assert fault.action == "warn"
    with pytest.warns(UserWarning, match="samples leave the declared box"):
        evaluate(model, inside + 0.4, space=space)
    assert in_samples(x * 100, InputSpace.undeclared(x), ids_of(x)) == []
    for value, kind in ((math.nan, "NaN"), (-math.inf, "infinite values")):
        broken = x.clone()
        broken[2, 0, 0, 0] = broken[4, 1, 1, 1] = value
        (fault,) = in_samples(broken, space, ids_of(x))
        assert fault.problem.startswith(f"the input of sample s2 holds {kind} (2 samples do): clean the data")
        assert fault.action == "refuse"


def test_refuse_raises_all_that_is_to_be_refused_and_returns_what_to_warn_of():
    faults = [Finding("a", "warn"), Finding("b", "cope"), Finding("c", "warn")]
    assert refuse(faults) == ["a", "c"]
    with pytest.raises(InputError, match=r"^d; e$"):
        refuse([*faults, Finding("d", "refuse"), Finding("e", "refuse")])


def test_a_dependence_on_the_batch_shows_with_a_single_sample():
    faults = found(batch_statistics(), torch.rand(1, 2, 12, 12))
    assert [fault.action for fault in faults] == ["refuse"]
    assert "depends on the rest of its batch" in faults[0].problem


def test_a_dependence_on_the_batch_is_found_whichever_sample_it_is():
    def first(z):
        return torch.cat([z[:1], z[1:] + z[:1]])

    for seed in range(20):
        torch.manual_seed(seed)
        x = torch.rand(6, 2, 12, 12)
        for model in (batch_statistics(), Then(after=first)):
            assert [fault.action for fault in found(model, x)] == ["refuse"]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_detached_shares_of_the_gradient_are_found_by_their_size(share):
    """F = (1 - share) <w, x> + share <w, x.detach()>: the gradient is too small by the share, which is told."""
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    linear = Linear(weight)

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return (1 - share) * self.linear(x) + share * self.linear(x.detach())

    (fault,) = in_gradient(Shares().eval(), torch.rand(8, 20))
    assert f"they differ by {share:.0%} along random" in fault.problem
    assert in_gradient(linear.eval(), torch.rand(8, 20)) == []


# --- healthy models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_the_networks_of_the_tests_raise_no_alarm(name, dtype):
    model, x, _ = network(name, dtype, n=9)
    faults = [f for f in found(model, x) if name != "in_place" or "writes into its input" not in f.problem]
    assert faults == []


@pytest.mark.parametrize(("dtype", "classes"), [(torch.float32, 2), (torch.float64, 10)])
@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if not entry.argument])
def test_the_built_in_networks_raise_no_alarm(name, dtype, classes):
    source = MODELS[name].load("", {})
    model = source.build(source.shape, classes).to(dtype).eval()
    assert found(model, torch.rand(3, *source.shape, dtype=dtype)) == []
    assert found(model, torch.randn(3, *source.shape, dtype=dtype)) == []


def only_single(x):
    assert x.dtype == torch.float32
    return x


def two_classes(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(288, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def pooled(bias):
    layers = [nn.Conv2d(2, 6, 5, padding=2, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, bias=bias)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 4, bias=bias)).eval()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(144, 16, batch_first=True, dropout=0.3, num_layers=2), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x.flatten(2))[0][:, -1])


def normed():
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()


def attention():
    layer = nn.TransformerEncoderLayer(12, 2, 32, batch_first=True, dropout=0.1)
    return nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(288, 3)).eval()


HEALTHY = {
    **{f"two classes {seed}": lambda seed=seed: two_classes(seed) for seed in range(8)},
    "huge logits": lambda: Then(after=lambda z: 1e20 * z),
    "tiny logits": lambda: Then(after=lambda z: 1e-20 * z),
    "logits in [0, 1]": lambda: Then(after=lambda z: 0.5 + 1e-3 * z),
    "logits far from 0": lambda: Then(after=lambda z: z + 1e3),
    "in-place inside": lambda: pooled(bias=True),
    "no biases": lambda: pooled(bias=False),
    "constant": lambda: Then(after=lambda z: 0 * z + torch.arange(4)),
    "saturated": lambda: Then(after=lambda z: (100 * z).tanh()),
    "a sigmoid as a gate": lambda: Then(after=lambda z: z * z.sigmoid()),
    "recurrent": lambda: Recurrent().eval(),
    "attention": attention,
    "weight norm": normed,
    "single precision only": lambda: Then(before=only_single),
    "no parameters": lambda: nn.Sequential(nn.AvgPool2d(6), nn.Flatten()).eval(),
    "multi-label": lambda: heads.MultiLabel(modules(), 1).eval(),
    "regression": lambda: heads.Regression(modules(), 1).eval(),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_raises_no_alarm(name):
    model = HEALTHY[name]()
    background = torch.zeros(6, 2, 12, 12)
    background[:, :, 3:9, 4:8] = torch.rand(6, 2, 6, 4)
    for x in (torch.rand(6, 2, 12, 12), background, torch.randn(1, 2, 12, 12), 1e4 * background):
        assert found(model, x) == [], x.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, torch.rand(3, 2, 12, 12))


def test_columns_of_different_units_raise_no_alarm():
    units = torch.tensor([1e9, 1.0, 1e-6, 3e4])
    for seed in range(5):
        torch.manual_seed(seed)
        first = nn.Linear(4, 16)
        first.weight.data /= units
        model = nn.Sequential(first, nn.Softplus(), nn.Linear(16, 3)).eval()
        assert found(model, torch.rand(8, 4) * units) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_of_libraries_raise_no_alarm():
    for model, size in ((torchvision.models.mnasnet0_5(), 64), (timm.create_model("test_vit"), 160)):
        assert found(model.eval(), torch.randn(3, 3, size, size)) == []


def test_kinks_raise_no_alarm():
    for seed in range(5):
        torch.manual_seed(seed)
        assert found(relu_mlp(bias=1.0, seed=seed), torch.randn(9, 20, dtype=torch.float64)) == []
