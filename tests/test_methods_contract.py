"""What every registered method promises, on networks that cover what breaks attribution."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import harness
from cases import SHAPES, network
from harness import METHODS, InputError, InputSpace, NotApplicableError

HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]
CHEAP = {
    "integrated_gradients": {"steps": 3},
    "expected_gradients": {"samples": 3, "noise": 0.1},
    "smoothgrad": {"samples": 3},
    "smoothgrad_squared": {"samples": 3},
    "vargrad": {"samples": 3},
    "occlusion": {"window": 3, "stride": 2},
    "rise": {"samples": 5, "cells": 3},
    "lime": {"samples": 20, "units": 50},
    "kernel_shap": {"samples": 20, "units": 50},
    # The default is at the level of rounding in float32, where a unit that nearly cancels is ill-conditioned.
    **{name: {"epsilon": 1e-3} for name, entry in METHODS.items() if "epsilon" in entry.options},
}

CAMS = [name for name, entry in METHODS.items() if entry.family == "cam" and name != "guided_grad_cam"]
ATTENTION = [name for name, entry in METHODS.items() if entry.family == "attention"]
# What needs a network that knows its right maps is tested on those (test_analytic).
NAMES = [name for name, entry in METHODS.items() if "truth" not in entry.needs]
KINDS = {4: "image", 3: "signal", 2: "table"}
REFUSALS = {
    ("deconvnet", "tanh"): "deconvnet has no rule for: tanh (TanhBackward0)",
    ("deconvnet", "gated"): "deconvnet has no rule for: sigmoid (SigmoidBackward0)",
    ("full_grad", "gated"): "full_grad has no rule for: mul (MulBackward0)",
    ("full_grad", "vit"): "full_grad has no rule for: layer_norm (NativeLayerNormBackward0)",
    ("sobel", "signal"): "sobel: needs images, got a signal",
    ("sobel", "table"): "sobel: needs images, got a table",
    ("center_gaussian", "table"): "center_gaussian: needs positions, got a table",
    ("guided_grad_cam", "table"): "guided_grad_cam: needs positions, got a table",
    **{(name, "table"): f"{name}: needs positions, got a table" for name in (*CAMS, *ATTENTION)},
    **{
        (name, shape): f"{name}: the model has no attention between positions"
        for name in ATTENTION
        for shape in SHAPES
        if shape not in ("vit", "table")
    },
    **{
        ("cam", shape): "cam: the model does not end in global average pooling and one linear layer"
        for shape in ("modules", "gelu", "tanh", "vit", "signal")
    },
}


def explain(name, model, x, target, **arguments):
    background = torch.stack([torch.full_like(x[0], level) for level in (0, 0.3, 0.8)])
    filled = {"background": background, "space": InputSpace(KINDS[x.ndim], mean=(0.0,), std=(1.0,))}
    filled["masks"] = ((x[:, :1] if x.ndim > 2 else x) > 0.5).to(x.dtype)
    return harness.explain(model, x, target, method=name, **CHEAP.get(name, {}), **filled, **arguments)


# A network of the suite that a method applies to.
HOME = {"cam": "functional", **dict.fromkeys(ATTENTION, "vit")}
every_method = pytest.mark.parametrize("name", NAMES)
# Methods that differ from others in the rule of a linear operator only, or in how they sum what the same layer holds.
SIMILAR = {"lrp_0", "lrp_gamma", "lrp_z_plus", "lrp_epsilon_plus", "lrp_epsilon_alpha2_beta1", "deep_taylor"}
SIMILAR |= {"grad_cam_plus_plus", "hires_cam", "layer_cam"}
# Networks that differ from another one in their activation, or in how they are written.
ALIKE = {"modules", "in_place", "gelu", "tanh"}
everywhere = pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(
            name, shape, marks=[pytest.mark.slow] * (shape in ALIKE or (name in SIMILAR and shape != "functional"))
        )
        for name in NAMES
        for shape in SHAPES
        if (name, shape) not in REFUSALS
    ],
)


def fingerprint(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = {(n, h): len(getattr(m, h)) for n, m in model.named_modules() for h in HOOKS if getattr(m, h) is not None}
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return state, hooks, flags, [m.training for m in model.modules()]


def assert_untouched(model, before):
    state, *rest = fingerprint(model)
    assert rest == list(before[1:])
    torch.testing.assert_close(state, before[0], rtol=0, atol=0)


@everywhere
def test_maps_have_the_shape_of_the_input_and_leave_model_and_input_alone(name, shape):
    model, x, target = network(shape)
    before, kept = fingerprint(model), x.clone()
    maps = explain(name, model, x, target)
    assert maps.shape in (x.shape, (len(x), 1, *x.shape[2:]))
    assert maps.dtype == x.dtype
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert_untouched(model, before)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "shape"), REFUSALS)
def test_what_does_not_apply_is_refused_by_name(name, shape):
    with pytest.raises(NotApplicableError, match=re.escape(REFUSALS[name, shape])):
        explain(name, *network(shape))


@everywhere
def test_the_same_call_gives_the_same_bits(name, shape):
    model, x, target = network(shape)
    once, again = (explain(name, model, x, target) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@everywhere
def test_a_sample_does_not_depend_on_its_batch(name, shape):
    model, x, target = network(shape, torch.float64)
    whole = explain(name, model, x, target)
    torch.testing.assert_close(explain(name, model, x, target, chunk=1), whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(explain(name, model, x[:2], target[:2]), whole[:2], rtol=1e-9, atol=1e-11)


@everywhere
def test_float32_is_close_to_float64(name, shape):
    model, x, target = network(shape)
    single = explain(name, model, x, target)
    double = explain(name, copy.deepcopy(model).double(), x.double(), target)
    scale = double.abs().max()
    torch.testing.assert_close(single.double() / scale, double / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", ["functional", "vit"])
@every_method
def test_half_precision_stays_half_precision(name, shape):
    if (name, shape) not in REFUSALS:
        maps = explain(name, *network(shape, torch.bfloat16))
        assert maps.dtype == torch.bfloat16
        assert maps.isfinite().all()


@every_method
def test_new_noise_comes_with_a_new_seed_and_only_for_stochastic_methods(name):
    model, x, target = network(HOME.get(name, "modules"))
    same = torch.equal(explain(name, model, x, target, seed=0), explain(name, model, x, target, seed=1))
    assert same != METHODS[name].stochastic


@every_method
def test_parameters_matter_unless_the_method_is_a_control(name):
    model, x, target = network(HOME.get(name, "modules"))
    other, _, _ = network(HOME.get(name, "modules"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    same = torch.equal(explain(name, model, x, target), explain(name, other, x, target))
    assert same == (METHODS[name].family == "control" and name != "parameter_noise")


class Fails(nn.Module):
    """Raises at its second forward pass, in the middle of whatever a method does."""

    def __init__(self, inner, after):
        super().__init__()
        self.inner, self.left = inner, after

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("on purpose")
        return self.inner(x)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.family != "control"])
def test_a_model_that_raises_is_left_as_it_was(name):
    inner, x, target = network(HOME.get(name, "modules"))
    model = Fails(inner, after=1).eval()
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        explain(name, model, x, target)
    assert_untouched(model, before)


@every_method
def test_cites_a_key_of_the_bibliography(name):
    entry = METHODS[name]
    bibliography = (Path(harness.__file__).parent / "references.bib").read_text()
    keys = set(re.findall(r"@\w+\{(\w+),", bibliography))
    assert entry.cite in keys or (entry.family == "control" and not entry.cite)
    mentioned = re.findall(r"`(\w+\d{4}\w+)`", inspect.getdoc(entry.function))
    assert set(mentioned) <= keys


def test_a_method_that_returns_the_wrong_shape_is_named():
    model, x, target = network("modules")
    from harness.case import Explainer
    from harness.entries import Method

    bad = Method("bad", lambda model, x, target: x[:, :, :-1], "test", 1, ())
    with pytest.raises(ValueError, match=r"bad returned maps of shape \[5, 2, 11, 12\], expected \[5, 2, 12, 12\]"):
        Explainer(bad, {}).maps(model, x, target, InputSpace("image"), ["a"] * 5, 0)


def test_an_unknown_method_or_option_names_the_nearest():
    model, x, _ = network("table")
    with pytest.raises(InputError, match="unknown method 'gradients'; did you mean gradient"):
        harness.explain(model, x, method="gradients")
    with pytest.raises(InputError, match="integrated_gradients has no option 'step'; did you mean steps"):
        harness.explain(model, x, method="integrated_gradients", step=3)
    with pytest.raises(InputError, match="option 'steps' expects int, got 'many'"):
        harness.explain(model, x, method="integrated_gradients", steps="many")
