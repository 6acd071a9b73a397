"""What models do behind the back of rules is followed or refused by name, never guessed."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness import METHODS, InputSpace, NotApplicableError

RULED = [name for name, entry in METHODS.items() if entry.family == "backward rule" or name == "full_grad"]
LINEAR = [name for name in RULED if name not in ("deconvnet", "guided_backprop", "deeplift", "full_grad")]
every_ruled = pytest.mark.parametrize("name", RULED)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(inputs, outputs, seed):
    linear = nn.Linear(inputs, outputs, dtype=torch.float64)
    linear.weight.data, linear.bias.data = normal(outputs, inputs, seed=seed), normal(outputs, seed=seed + 1)
    return linear


class Written(nn.Module):
    """A network written as a function of its layers a, b, o, a convolution c, a batch norm n and the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.o = layer(6, 8, 2), layer(8, 8, 4), layer(8, 3, 6)
        self.c, self.n = nn.Conv2d(2, 4, 3, dtype=torch.float64), nn.BatchNorm2d(4, dtype=torch.float64)
        self.c.weight.data, self.c.bias.data = normal(4, 2, 3, 3, seed=8), normal(4, seed=9)
        self.n.weight.data, self.n.running_mean = normal(4, seed=10), normal(4, seed=11)

    def forward(self, x):
        return self.function(self, x)


def explain(name, function, x):
    entry = METHODS[name]
    kind = {2: "table", 4: "image"}[x.ndim]
    # Wide enough for all that the tests put in.
    space = InputSpace(kind, mean=(0.0,), std=(1.0,), low=-6.0, high=6.0)
    filled = {"space": space, "baseline": torch.zeros_like(x)}
    target = torch.arange(len(x)) % 3
    model = function if isinstance(function, nn.Module) else Written(function).eval()
    return entry.function(model, x, target, **{key: filled[key] for key in filled if key in entry.parameters})


ROWS, PICTURES = normal(4, 6), normal(3, 2, 6, 6).clamp(-3, 3)


def read(conv_output):
    """What a hook or an assertion may ask of a tensor."""
    assert not conv_output.isnan().any()
    assert conv_output.is_floating_point()
    return float(conv_output.detach().mean()) + conv_output.sum().item()


def normalized_in_parts(m, x):
    x = x.clone()
    x[:, 0] = (x[:, 0] - 0.3) / 0.25
    return x


def normalized_in_place(m, x):
    x = x.clone()
    x[:, 0].sub_(0.3).div_(0.25)
    return x


def head(m, z):
    return F.relu(z).mean((2, 3)) @ m.o.weight[:, :4].T


def with_buffer(m, h):
    buffer = (m.b.bias * 1.0).expand(len(h), -1).clone()
    buffer[:, :5].copy_(h[:, :5])
    return buffer


def overwriting(m, x):
    h = F.relu(m.a(x))
    z = m.b(h)
    h.add_(1.5)
    return m.o(F.relu(z) + h)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z.clone())
        ctx.mark_dirty(z)
        return z.mul_(z)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


# Name -> (the network, the same network said in another way, the input).
SAME = {
    "the output of a convolution is read before its batch norm": (
        lambda m, x: (lambda z: (read(z), head(m, m.n(z)))[1])(m.c(x)),
        lambda m, x: head(m, m.n(m.c(x))),
        PICTURES,
    ),
    "addmm_": (
        lambda m, x: m.o(F.relu(m.b.bias.expand(len(x), -1).clone().addmm_(F.relu(m.a(x)), m.b.weight.T))),
        lambda m, x: m.o(F.relu(m.b(F.relu(m.a(x))))),
        ROWS,
    ),
    "addmm": (
        lambda m, x: m.o(F.relu(torch.addmm(m.b.bias, F.relu(m.a(x)), m.b.weight.T))),
        lambda m, x: m.o(F.relu(m.b(F.relu(m.a(x))))),
        ROWS,
    ),
    "a weight that was made before": (
        lambda m, x: m.o(F.relu(F.relu(m.a(x)) @ m.b.weight.T * MADE)),
        lambda m, x: m.o(F.relu(F.relu(m.a(x)) @ m.b.weight.T * MADE.detach())),
        ROWS,
    ),
    "batch norm and its argument": (
        lambda m, x: (lambda z: head(m, m.n(z) + 0.0 * z))(m.c(x)),
        lambda m, x: head(m, m.n(m.c(x)) + 0.0 * m.c(x)),
        PICTURES,
    ),
}
MADE = torch.linspace(0.5, 2, 8, dtype=torch.float64, requires_grad=True) * 2


@every_ruled
@pytest.mark.parametrize("case", SAME)
def test_gives_the_same_map_however_it_is_written(name, case):
    function, other, x = SAME[case]
    maps = explain(name, function, x)
    assert maps.abs().max() > 0
    torch.testing.assert_close(maps, explain(name, other, x), rtol=1e-9, atol=1e-9 * float(maps.abs().max()))


# Name -> (a network that rules cannot follow, the input).
REFUSED = {
    "checkpoint": (lambda m, x: m.o(checkpoint(lambda h: F.relu(m.a(h)), x, use_reentrant=False)), ROWS),
    "a gradient in the forward pass": (
        lambda m, x: (lambda h: m.o(h + torch.autograd.grad(h.sum(), h, create_graph=True)[0]))(torch.tanh(m.a(x))),
        ROWS,
    ),
    "a function that writes in place": (lambda m, x: m.o(F.relu(Square.apply(m.a(x)))), ROWS),
    "a division that rounds": (lambda m, x: m.o(torch.div(F.relu(m.a(x)), 0.1, rounding_mode="floor")), ROWS),
    "no path to the input": (lambda m, x: m.o(F.relu(m.a(x.detach()))), ROWS),
}


@every_ruled
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_it_cannot_follow(name, case):
    with pytest.raises(NotApplicableError):
        explain(name, *REFUSED[case])


# What may be followed or refused, but neither guessed nor changed.
DELICATE = {
    "the input is normalized in parts": (
        lambda m, x: head(m, m.c(normalized_in_parts(m, x))),
        lambda m, x: head(m, m.c(torch.cat([(x[:, :1] - 0.3) / 0.25, x[:, 1:]], 1))),
        PICTURES,
    ),
    "the input is normalized in place in parts": (
        lambda m, x: head(m, m.c(normalized_in_place(m, x))),
        lambda m, x: head(m, m.c(torch.cat([(x[:, :1] - 0.3) / 0.25, x[:, 1:]], 1))),
        PICTURES,
    ),
    "a buffer is filled through a view": (
        lambda m, x: (lambda h: m.o(h * with_buffer(m, h)))(F.relu(m.a(x))),
        lambda m, x: (lambda h: m.o(h * torch.cat([h[:, :5], m.b.bias[5:].expand(len(h), -1)], 1)))(F.relu(m.a(x))),
        ROWS,
    ),
}


# FullGrad knows the position of a bias only where there are channels, so that its two maps differ, and add up.
@pytest.mark.parametrize("name", [name for name in RULED if name != "full_grad"])
@pytest.mark.parametrize("case", DELICATE)
def test_follows_or_refuses(name, case):
    function, other, x = DELICATE[case]
    try:
        maps = explain(name, function, x)
    except NotApplicableError:
        return
    try:
        expected = explain(name, other, x)
    except NotApplicableError:
        return
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@every_ruled
def test_an_input_that_is_overwritten_later_is_refused_or_an_error_as_for_the_gradient(name):
    with pytest.raises((NotApplicableError, RuntimeError), match=r"modified by an inplace|writes over the input"):
        explain(name, overwriting, ROWS)


@pytest.mark.parametrize("name", LINEAR)
def test_a_bias_that_depends_on_the_input_is_refused(name):
    zeros = torch.zeros(6, 6, dtype=torch.float64)

    def function(m, x):
        return m.o(F.relu(m.a(torch.stack([F.linear(row, zeros, row) for row in x]))))

    with pytest.raises(NotApplicableError, match="linear"):
        explain(name, function, ROWS)


def test_positions_that_may_attend_to_nothing_get_zeros():
    mask = torch.tensor([[False, False], [True, True]])

    def function(m, x):
        q = x.view(len(x), 1, 2, 3)
        return m.o(F.relu(m.a(F.scaled_dot_product_attention(q, q, q, attn_mask=mask).flatten(1))))

    for name in ("lrp_epsilon", "attention_lrp", "deeplift", "guided_backprop"):
        assert explain(name, function, ROWS).isfinite().all()


@every_ruled
def test_nothing_stays_alive_after_a_call(name):
    seen = []

    def function(m, x):
        h = F.relu(m.a(x))
        seen.append(weakref.ref(h))
        return m.o(h)

    gc.disable()
    try:
        explain(name, function, ROWS)
        assert not any(reference() is not None for reference in seen)
    finally:
        gc.enable()


def test_methods_called_inside_a_model_are_refused():
    first = torch.zeros(len(ROWS), dtype=torch.long)

    def function(m, x):
        inner = METHODS["guided_backprop"].function(nn.Sequential(m.a, nn.ReLU(), m.o), x, first)
        return m.o(F.relu(m.a(x + inner)))

    with pytest.raises(NotApplicableError, match="gradient in its own pass"):
        explain("lrp_epsilon", function, ROWS)
