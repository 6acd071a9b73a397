"""Input invariance: the shifted network is the same function up to the border, and methods fail by their formulas."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Functional, Linear, case_of, network, rows, values
from harness.metrics.rewriting import Original
from harness.metrics.shift_absorption import shift_absorbed
from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError, NotApplicableError

SHIFTS = (1.0, [0.75, -1.5])
CONVOLUTIONS = {
    "valid": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "wide padding": {"kernel_size": 3, "padding": 4},
    "strided": {"kernel_size": 5, "padding": 2, "stride": 3},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "same": {"kernel_size": 4, "padding": "same", "dilation": 2},
    "without bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
CONV = {1: nn.Conv1d, 2: nn.Conv2d}

each_shift = pytest.mark.parametrize("shift", SHIFTS, ids=["scalar", "channels"])


def of_shape(shift, x):
    return torch.as_tensor(shift, dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))


def convolutional(axes, options):
    torch.manual_seed(0)
    layers = (CONV[axes](2, 6, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    model = nn.Sequential(*layers).double().eval()
    shape = (3, 2, *(13, 12)[:axes])
    model(torch.zeros(shape, dtype=torch.float64))
    return model, torch.randn(shape, dtype=torch.float64)


def padded_net(dtype=torch.float64):
    """Zero padding and a stride in the first layer, batch norm, ReLUs: (model, x, target)."""
    torch.manual_seed(0)
    stem = nn.Conv2d(2, 6, 3, padding=1, stride=2)
    body = (nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    model = nn.Sequential(stem, *body).to(dtype).eval()
    model[1].running_mean.normal_()
    return model, torch.rand(4, 2, 12, 12).to(dtype), torch.arange(4)


def with_background(case, background):
    case.source.read_background = lambda: background
    return case


@each_shift
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("axes", [1, 2])
def test_the_function_of_the_shifted_input_is_that_of_the_input(axes, name, shift):
    model, x = convolutional(axes, CONVOLUTIONS[name])
    moved = of_shape(shift, x)
    rewritten = shift_absorbed(Original(model, x), moved)
    fresh = 5 * torch.randn(7, *x.shape[1:], dtype=x.dtype)
    torch.testing.assert_close(rewritten(fresh + moved), model(fresh), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(rewritten(fresh), model(fresh), atol=1e-3)


@each_shift
@pytest.mark.parametrize("name", ["valid", "padded", "wide padding", "strided", "dilated", "grouped"])
def test_the_first_layer_is_that_of_an_input_padded_with_the_shift(name, shift):
    options = CONVOLUTIONS[name]
    model, x = convolutional(2, options)
    moved = of_shape(shift, x)
    layer, pad = model[0], options.get("padding", 0)
    framed = moved.expand(3, 2, 13 + 2 * pad, 12 + 2 * pad).clone()
    framed[:, :, pad : pad + 13, pad : pad + 12] = x + moved
    channels, groups = moved.flatten().expand(2), layer.groups
    bias = layer.bias.clone()
    for unit in range(6):
        for place in range(2 // groups):
            channel = unit // (6 // groups) * (2 // groups) + place
            bias[unit] = bias[unit] - channels[channel] * layer.weight[unit, place].sum()
    expected = F.conv2d(framed, layer.weight, bias, layer.stride, 0, layer.dilation, groups)
    absorbed = shift_absorbed(Original(model, x), moved)[0]
    torch.testing.assert_close(absorbed(x + moved), expected, rtol=1e-11, atol=1e-11)
    if name != "wide padding":
        torch.testing.assert_close(absorbed.bias, bias, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["valid", "padded"])
def test_new_biases_alone_are_right_only_without_zero_padding(name):
    model, x = convolutional(2, CONVOLUTIONS[name])
    naive = copy.deepcopy(model)
    naive[0].bias.data -= model[0].weight.sum((1, 2, 3))
    error = float((naive(x + 1) - model(x)).detach().abs().max() / model(x).detach().abs().max())
    assert error < 1e-12 if name == "valid" else error > 0.1


@pytest.mark.parametrize("name", ["modules", "functional", "gelu", "tanh", "gated", "vit", "signal", "table"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_invariant_on_networks_of_every_kind(name, dtype):
    model, x, target = network(name, dtype)
    frame = rows(case_of(model, x, target, "gradient"), "input_invariance")
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    assert values(frame, "relative_difference").max() < bound
    assert values(frame, "relative_difference_fixed_space").max() < bound


@each_shift
@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "deconvnet", "grad_cam", "random"])
def test_methods_that_look_at_differences_only_are_invariant(name, shift):
    model, x, target = padded_net()
    frame = rows(case_of(model, x, target, name), "input_invariance", shift=shift)
    assert values(frame, "relative_difference").max() < 1e-9
    assert values(frame, "relative_difference_fixed_space").max() < 1e-9


@pytest.mark.parametrize("name", ["smoothgrad", "smoothgrad_squared", "vargrad"])
def test_noise_in_units_of_the_range_is_invariant_unless_channels_move_apart(name):
    model, x, target = padded_net()
    case = case_of(model, x, target, name)
    frame = rows(case, "input_invariance", shift=-2.0)
    assert values(frame, "relative_difference").max() < 1e-9
    assert values(frame, "relative_difference_fixed_space").max() < 1e-9
    assert values(rows(case, "input_invariance", shift=[0.75, -1.5]), "relative_difference").min() > 0.05


@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "deconvnet", "smoothgrad"])
def test_they_are_in_single_precision_up_to_rounding(name):
    model, x, target = padded_net(torch.float32)
    frame = rows(case_of(model, x, target, name), "input_invariance")
    assert values(frame, "relative_difference").max() < 1e-5


@each_shift
@pytest.mark.parametrize("name", ["integrated_gradients", "deeplift", "occlusion"])
@pytest.mark.parametrize("baseline", ["black", "grey", "white", "mean", "noise", "zero"])
def test_methods_with_a_baseline_are_invariant_if_it_moves_along(name, baseline, shift):
    model, x, target = padded_net()
    space = InputSpace("image", (0.4, 0.6), (0.5, 0.3), 0.0, (1.0, 2.0))
    case = case_of(model, x, target, (name, {"baseline": baseline}), space=space)
    frame = rows(case, "input_invariance", shift=shift)
    assert values(frame, "relative_difference").max() < 1e-9
    assert values(frame, "relative_difference_fixed_space").min() > 0.1


@pytest.mark.parametrize(("baseline", "moves_by_itself"), [("zero", False), ("blur", True)])
def test_a_baseline_moves_along_without_a_declared_space_and_a_blur_by_itself(baseline, moves_by_itself):
    model, x, target = padded_net()
    case = case_of(model, x, target, ("integrated_gradients", {"baseline": baseline}), space=InputSpace("image"))
    frame = rows(case, "input_invariance")
    assert values(frame, "relative_difference").max() < 1e-9
    fixed = values(frame, "relative_difference_fixed_space")
    assert fixed.max() < 1e-9 if moves_by_itself else fixed.min() > 0.1


def test_a_background_moves_along():
    model, x, target = padded_net()
    case = with_background(case_of(model, x, target, "expected_gradients"), torch.rand(9, 2, 12, 12, dtype=x.dtype))
    frame = rows(case, "input_invariance")
    assert values(frame, "relative_difference").max() < 1e-9
    assert values(frame, "relative_difference_fixed_space").min() > 0.1


@pytest.mark.parametrize("name", ["deep_taylor", "lrp_epsilon_gamma_box"])
def test_the_box_of_the_rule_for_the_input_moves_along_also_under_zero_padding(name):
    model, x, target = padded_net()
    frame = rows(case_of(model, x, target, name), "input_invariance")
    assert values(frame, "relative_difference").max() < 1e-9
    assert values(frame, "relative_difference_fixed_space").min() > 0.1


@each_shift
@pytest.mark.parametrize("name", ["input_x_gradient", "lrp_0"])
def test_input_x_gradient_differs_by_the_shift_times_the_gradient(name, shift):
    model, x, target = padded_net()
    case = case_of(model, x, target, name)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)
    expected = (of_shape(shift, x) * gradient).flatten(1).norm(dim=1) / (x * gradient).flatten(1).norm(dim=1)
    frame = rows(case, "input_invariance", shift=shift)
    torch.testing.assert_close(values(frame, "relative_difference"), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(values(frame, "relative_difference_fixed_space"), expected, rtol=1e-9, atol=0)


def test_the_formula_on_a_linear_model_with_its_baseline_left_behind():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4)).double().eval()
    x, target = torch.rand(3, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 1])
    case = case_of(model, x, target, ("integrated_gradients", {"baseline": "zero", "steps": 2}))
    weight = model[1].weight.detach()[target].view_as(x)
    expected = (-3 * weight).flatten(1).norm(dim=1) / (x * weight).flatten(1).norm(dim=1)
    frame = rows(case, "input_invariance", shift=-3.0)
    torch.testing.assert_close(values(frame, "relative_difference_fixed_space"), expected)
    assert values(frame, "relative_difference").max() < 1e-12


class TwoReaders(nn.Module):
    """A stem and a shortcut read the input; with `peek`, so does an operator that is no layer."""

    def __init__(self, peek):
        super().__init__()
        self.peek = peek
        self.stem, self.shortcut = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1, bias=False)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        hidden = F.relu(self.stem(x)) + self.shortcut(x) + (x.mean() if self.peek else 0)
        return self.head(hidden.mean((2, 3)))


class Whisper(nn.Module):
    """Beside its first layer, something else hardly sees the input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 4)

    def forward(self, x):
        return self.stem(x) + 1e-6 * x[:, :4]


def test_what_hardly_sees_the_input_is_told_in_double_precision():
    torch.manual_seed(0)
    with pytest.raises(NotApplicableError, match=r"the logits differ by [\d.]+e-0[67] .*\(float64\)"):
        shift_absorbed(Original(Whisper(), torch.rand(3, 6)), 1.0)


def test_a_shift_that_rounding_does_not_stand_is_refused_by_the_precision_of_the_network():
    model, x, _ = padded_net(torch.float32)
    with pytest.raises(NotApplicableError, match=r"do not absorb the shift, .*\(float32\)"):
        shift_absorbed(Original(model, x), 1e5)
    shift_absorbed(Original(model.double(), x.double()), 1e5)


def test_every_layer_that_reads_the_input_absorbs_the_shift():
    model, x = TwoReaders(peek=False).double().eval(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(shift_absorbed(Original(model, x), 2.0)(x + 2.0), model(x), rtol=1e-10, atol=1e-10)


def first_normalizes():
    return nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Linear(torch.ones(4, 288)), "no linear layer or convolution takes the input itself.*its first operator is f"),
        (first_normalizes(), "so that nothing can absorb a shift: BatchNorm2d '0', which is neither, does"),
        (
            TwoReaders(True),
            r"biases in 'stem', 'shortcut' do not absorb the shift.*: the logits differ by [\d.]+ of.* \(float32\)",
        ),
        (network("in_place")[0], r"new biases in 'first' do not absorb the shift, because something else s"),
    ],
)
def test_a_network_that_cannot_absorb_a_shift_is_not_applicable_with_the_reason(model, message):
    x = torch.rand(3, 2, 12, 12)
    with pytest.raises(NotApplicableError, match=message):
        rows(case_of(model.eval(), x, torch.arange(3), "gradient"), "input_invariance")


def test_a_shift_of_another_number_of_channels_is_refused():
    model, x, target = padded_net()
    with pytest.raises(InputError, match="expected a shift of 1 number or of 2, one for each channel; got 3"):
        rows(case_of(model, x, target, "gradient"), "input_invariance", shift=[1.0, 2.0, 3.0])


def test_what_has_no_relative_difference_is_undefined_with_its_reason():
    model, x, target = padded_net()
    maps = torch.ones_like(x)
    maps[0], maps[1, 0, 0, 0] = 0, torch.inf
    frame = rows(case_of(model, x, target, maps), "input_invariance")
    reasons = frame.loc[frame["measure"] == "relative_difference", "reason"].astype(object)
    assert list(reasons.iloc[:2]) == ["the map is zero everywhere", "not finite (trained network)"]
    assert values(frame, "relative_difference")[2:].tolist() == [0.0, 0.0]


def test_the_shift_is_absorbed_once_for_all_methods_on_a_block_of_samples(monkeypatch):
    made = []

    def counted(original, shift):
        made.append(float(shift))
        return shift_absorbed(original, shift)

    monkeypatch.setattr("harness.metrics.input_invariance.shift_absorbed", counted)
    model, x, target = padded_net()
    cases = [case_of(model, x, target, method) for method in ("gradient", "guided_backprop", "gradient")]
    for case in cases:
        case.source = cases[0].source
        rows(case, "input_invariance", shift=1.0)
    assert made == [1.0]
    rows(cases[1], "input_invariance", shift=2.0)
    rows(cases[2], "input_invariance", shift=1.0)
    assert made == [1.0, 2.0]
    other = case_of(model, x, target, "gradient", samples=list("abcd"))
    other.source = cases[0].source
    rows(other, "input_invariance", shift=1.0)
    assert made == [1.0, 2.0, 1.0]
    assert len(other.source.shared["rewritings"][1]) == 1


def test_the_trained_network_is_left_alone():
    model = Functional().eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 2, 8, 8)
    rewritten = shift_absorbed(Original(model, x), 1.0)
    assert rewritten is not model
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


SPACES = {
    "declared": InputSpace("image", (0.4, 0.6), (0.5, 0.3), -1.0, (1.0, 2.0)),
    "undeclared": InputSpace("image"),
}


@pytest.mark.parametrize("shift", [0.7, (0.7, -1.1)])
@pytest.mark.parametrize("name", SPACES)
def test_all_that_a_space_names_moves_with_it(name, shift):
    space, moved = SPACES[name], SPACES[name].shifted(shift)
    x, draws = torch.rand(3, 2, 9, 8, dtype=torch.float64), Draws.of("abc", 0)
    offset = of_shape(shift, x)
    assert moved.fills == space.fills
    for fill in space.fills:
        torch.testing.assert_close(moved.fill(fill, x + offset, draws), space.fill(fill, x, draws) + offset)
    torch.testing.assert_close(moved.within_box(x + offset), space.within_box(x))
    torch.testing.assert_close(moved.excess(x + offset), space.excess(x))
    twice = moved.shifted(0.5)
    torch.testing.assert_close(twice.fill("zero", x, draws), (offset + 0.5).expand_as(x))
    if name == "declared":
        for end, other in zip(space.bounds(x), moved.bounds(x), strict=True):
            torch.testing.assert_close(other, (end + offset)[0])
    else:
        with pytest.raises(InputError, match="the range of the input is not declared"):
            moved.bounds(x)
