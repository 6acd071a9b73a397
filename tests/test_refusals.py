"""Backward-rule methods refuse by name what they have no rule for, and never guess; the others still explain it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harness
from cases import relu_mlp
from harness import METHODS, InputSpace, NotApplicableError

RULED = [name for name, entry in METHODS.items() if entry.family == "backward rule" or name == "full_grad"]
OTHERS = ["gradient", "input_x_gradient", "occlusion"]
every_ruled = pytest.mark.parametrize("name", RULED)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPACE = InputSpace("table", mean=(0.0,), std=(1.0,))


def explain(name, model, x, target):
    return harness.explain(model, x, target, method=name, space=SPACE)


@pytest.fixture
def batch():
    """Inputs of `relu_mlp()` in its declared range, and their targets."""
    return normal(10, 20).sigmoid(), torch.arange(10) % 5


class Between(nn.Module):
    """A stack of linear layers with one function between them."""

    def __init__(self, function):
        super().__init__()
        self.layers = nn.ModuleList(relu_mlp(bias=0.5)[::2])
        self.function = function

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.function(layer(x))
        return self.layers[-1](x)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


def masked_assignment(z):
    z = z.clone()
    z[z < 0] = 0
    return z


def exponential_of_a_view(z):
    z = z.clone()
    z[:, ::2].exp_()
    return z


MIXING = normal(40, 40, seed=5)
STRANGERS = {
    "einsum": (lambda z: torch.einsum("ni,oi->no", z, MIXING[: z.shape[1], : z.shape[1]]), "einsum"),
    "fft": (lambda z: torch.fft.rfft(z).abs() @ MIXING[: z.shape[1] // 2 + 1, : z.shape[1]], "fft"),
    "custom function": (OwnReLU.apply, "OwnReLUBackward"),
    "where": (lambda z: torch.where(z > 0, z, 0.0), "where"),
    "product with a mask": (lambda z: z * (z > 0), "mul"),
    "masked_fill": (lambda z: z.masked_fill(z < 0, 0), "masked_fill"),
    "assignment to a mask": (masked_assignment, "setitem|index_put"),
    "absolute": (lambda z: z + z.abs(), "abs"),
    "maxout": (lambda z: torch.maximum(z, z.flip(1)), "maximum"),
    "amax": (lambda z: torch.stack([z, torch.zeros_like(z)]).amax(0), "amax"),
    "exponential of a view": (exponential_of_a_view, "exp"),
    "dynamic weight": (lambda z: F.conv1d(z[None], z[:, None, :3], padding=1, groups=len(z))[0], "conv1d"),
    "cumulative product": (lambda z: z.cumprod(1), "cumprod"),
    "bilinear": (lambda z: F.bilinear(z, z, MIXING.new_ones(z.shape[1], z.shape[1], z.shape[1])), "bilinear"),
    "sorted": (lambda z: z.sort(1).values, "sort"),
}
RIGHT = {("exponential of a view", name) for name in ("guided_backprop", "deconvnet", "deeplift")}
"""Where one of the methods has a rule after all."""


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in RULED for kind in STRANGERS if (kind, name) not in RIGHT]
)
def test_refuses_an_operator_without_a_rule_by_name(name, kind, batch):
    function, operator = STRANGERS[kind]
    with pytest.raises(NotApplicableError, match=f"{name} has no rule for: (.*, )?({operator})"):
        explain(name, Between(function).eval(), *batch)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", STRANGERS)
def test_the_other_methods_still_explain_it(name, kind, batch):
    model = Between(STRANGERS[kind][0]).eval()
    assert explain(name, model, *batch).isfinite().all()


@every_ruled
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning", "ignore:.*are scripted")
def test_refuses_a_scripted_part_also_once_it_is_optimized(name, batch):
    model = Between(torch.jit.script(nn.Sequential(nn.ReLU()))).eval()
    for _ in range(3):
        with pytest.raises(NotApplicableError, match=r"has no rule for: .*(ReluBackward0|DifferentiableGraphBackward)"):
            explain(name, model, *batch)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken on purpose")


@every_ruled
@pytest.mark.parametrize(("last", "error"), [(Failing(), RuntimeError), (Absolute(), NotApplicableError)])
def test_an_exception_leaves_no_rule_and_no_hook_behind(name, last, error, batch):
    x, target = batch
    model = nn.Sequential(relu_mlp(), last).eval()
    entry = METHODS[name]
    filled = {"space": SPACE, "baseline": torch.zeros_like(x)}
    with pytest.raises(error, match=r"broken on purpose|abs \(AbsBackward0\)"):
        entry.function(model, x, target, **{key: filled[key] for key in filled if key in entry.parameters})
    assert F.relu(x.clone().requires_grad_()).grad_fn.name() == "ReluBackward0"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)


class Positional(nn.Module):
    """Adds and multiplies by what is computed by operators without rules, but not from the input."""

    def __init__(self, inner, by_hand):
        super().__init__()
        self.inner, self.by_hand = inner, by_hand
        self.position = nn.Parameter(torch.linspace(-1, 1, 20, dtype=torch.float64))

    def forward(self, x):
        scale = torch.where(self.position > 0, self.position.abs(), 2.0) * torch.arange(1, 21) / 20
        x = x * (scale.detach() if self.by_hand else scale)
        return self.inner(x + torch.fft.fft(self.position).abs())


@every_ruled
@pytest.mark.parametrize("frozen", [False, True])
def test_operators_beside_the_path_from_the_input_are_no_strangers(name, frozen, batch):
    model = Positional(relu_mlp(bias=0.5), False).eval().requires_grad_(not frozen)
    by_hand = Positional(relu_mlp(bias=0.5), True).eval()
    maps = explain(name, model, *batch)
    assert maps.abs().max() > 0
    torch.testing.assert_close(maps, explain(name, by_hand, *batch), rtol=1e-12, atol=1e-12)


@every_ruled
def test_arguments_may_be_given_by_keyword(name, batch):
    class Keywords(Between):
        def forward(self, x):
            first, second, third, last = self.layers
            a = torch.relu(input=F.linear(input=x, weight=first.weight, bias=first.bias))
            b = F.relu(input=torch.add(input=second(torch.cat(tensors=[a], dim=1)), other=0.0))
            b = torch.relu(third(b))
            return F.linear(b, bias=last.bias, weight=last.weight)

    expected = explain(name, Between(F.relu).eval(), *batch)
    torch.testing.assert_close(explain(name, Keywords(None).eval(), *batch), expected, rtol=1e-12, atol=1e-12)
