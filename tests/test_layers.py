"""The last layer with positions, against the same features computed by hand and by plain hooks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import network, relu_mlp
from closed_forms import Read, normal
from harness.networks import VisionTransformer
from harness.types import NotApplicableError
from layer_features import CLOSE, by_hook, first, found, in_row, last


def tokens(x, convolution, norm, extra=0):
    z = convolution(x).flatten(2).transpose(1, 2)
    front = normal(1, extra, z.shape[2], seed=3).expand(len(z), -1, -1)
    return norm(torch.cat([front, z], 1))


class Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(context, gradient):
        return gradient * (context.saved_tensors[0] > 0)


class Own(nn.Module):
    def forward(self, x):
        return Rectifier.apply(x)


class Pair(nn.Module):
    def forward(self, x):
        return x.exp(), {"half": x / 2}


def unused(x, convolution, other):
    z = convolution(x)
    other(z).relu().mean()
    return z


def residual(x, stem, one, two):
    z = F.relu(stem(x))
    for each in (one, two):
        z = F.relu(z + each(z))
    return z


def bare_attention(x, convolution, query, key):
    z = convolution(x).flatten(2).transpose(1, 2)
    return (query(z) @ key(z).transpose(1, 2)).softmax(-1) @ z


def conv(inputs=3, outputs=6, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


SQUARE, WIDE, SIGNAL = (3, 8, 8), (3, 8, 12), (3, 24)
# Name -> function, its layers, shape of the input, and how what it returns is arranged as [n, k, *grid].
FUNCTIONS = {
    "functional": (lambda x, c, d: F.max_pool2d(F.relu(d(c(x).tanh())), 2), [conv(), conv(6)], SQUARE, first),
    "in place": (lambda x, c: F.relu(c(x).mul_(3), inplace=True), [conv()], SQUARE, first),
    "slice written": (lambda x, c: c(x).index_fill_(1, torch.tensor([2]), 0.5), [conv()], SQUARE, first),
    "normalizes its input": (lambda x, c: c((x.flip(1) - 0.4) / 0.2), [conv()], SQUARE, first),
    "residual": (residual, [conv(), conv(6, padding=1), conv(6, padding=1)], SQUARE, first),
    "unused branch": (unused, [conv(), conv(6)], SQUARE, first),
    "one module twice": (lambda x, c, d: d(d(c(x)).sin()), [conv(), conv(6, padding=1)], SQUARE, first),
    "nested": (lambda x, c: c(x), [nn.Sequential(nn.Sequential(conv()), nn.Sigmoid())], SQUARE, first),
    "pair and dictionary": (lambda x, c, p: p(c(x))[1]["half"] * 2, [conv(), Pair()], SQUARE, first),
    "own operator": (lambda x, c, own: own(c(x)), [conv(), Own()], SQUARE, first),
    "own operator, on and on": (lambda x, c, o, d: o(d(o(c(x)))), [conv(), Own(), conv(6)], SQUARE, first),
    "weight norm": (lambda x, c: c(x), [nn.utils.parametrizations.weight_norm(conv())], SQUARE, first),
    "batch norm": (lambda x, c, b: b(c(x)), [conv(), nn.BatchNorm2d(6)], WIDE, first),
    "transposed": (lambda x, c, t: t(c(x)), [conv(), nn.ConvTranspose2d(6, 4, 2, 2)], WIDE, first),
    "channels last": (lambda x, c, n: n(c(x).permute(0, 2, 3, 1)), [conv(), nn.LayerNorm(6)], WIDE, last),
    "linear, channels last": (lambda x, c: c(x.permute(0, 2, 3, 1)), [nn.Linear(3, 5)], WIDE, last),
    "row": (lambda x, c: c(x).flatten(2), [conv()], WIDE, lambda z: z.unflatten(2, (6, 10))),
    **{
        f"{extra} extra tokens": (
            lambda x, c, n, extra=extra: tokens(x, c, n, extra),
            [conv(3, 6, (4, 2), stride=(4, 2)), nn.LayerNorm(6)],
            WIDE,
            in_row(2, 6, extra=extra),
        )
        for extra in (0, 1, 2, 5)
    },
    "attention without residual": (
        bare_attention,
        [conv(3, 6, 4, stride=4), nn.Linear(6, 6), nn.Linear(6, 6)],
        WIDE,
        in_row(2, 3),
    ),
    "mean over rows, kept": (lambda x, c: c(x).mean(2, keepdim=True), [conv()], WIDE, first),
    "signal": (lambda x, c: F.avg_pool1d(c(x).relu(), 3), [nn.Conv1d(3, 6, 5)], SIGNAL, first),
    "tokens of a signal": (
        lambda x, c, n: n(c(x).transpose(1, 2)),
        [nn.Conv1d(3, 6, 4, stride=4), nn.LayerNorm(6)],
        SIGNAL,
        in_row(6),
    ),
    "pieces of a signal": (
        lambda x, c: c(x.unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)),
        [nn.Linear(12, 5)],
        SIGNAL,
        in_row(6),
    ),
    # Where shapes do not tell which axis holds channels.
    "pair": (
        lambda x, c, p: p(c(x))[0],
        [conv(), nn.MaxPool2d(2, return_indices=True)],
        SQUARE,
        first,
    ),
    "striding one axis": (
        lambda x, c: c(x),
        [conv(3, 8, (4, 1), stride=(4, 1))],
        (3, 32, 32),
        first,
    ),
    "tall": (
        lambda x, c: c(x),
        [conv(3, 14, 24, stride=24)],
        (3, 100, 30),
        first,
    ),
    "as many channels as rows": (
        lambda x, c, n: n(c(x).permute(0, 2, 3, 1)),
        [conv(3, 8, 4, stride=4), nn.LayerNorm(8)],
        (3, 32, 32),
        last,
    ),
    "a layer over positions": (
        lambda x, c, over: over(c(x).flatten(2)),
        [conv(3, 6, 4, stride=4), nn.Linear(6, 6)],
        WIDE,
        lambda z: z.unflatten(2, (2, 3)),
    ),
}


def assert_features(seen, values, weights):
    torch.testing.assert_close(seen.activation, values.detach(), **CLOSE)
    torch.testing.assert_close(seen.gradient, weights.detach(), **CLOSE)


def read_by_hand(function, layers, shape, arranged):
    """A network that is `Read`, a batch, and by hand its features and the gradient by them: the readout is linear."""
    model, x, target = Read(function, *layers), normal(3, *shape), torch.tensor([3, 0, 2])
    z = model.function(x.clone(), *model.layers)
    weights = normal(z[0].numel(), 4, seed=9)[:, target].T.view_as(z)
    return model, x, target, arranged(z), arranged(weights)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_features_are_what_the_last_function_returned(name):
    model, x, target, values, weights = read_by_hand(*FUNCTIONS[name])
    assert_features(found(model, x, target), values, weights)


def test_what_only_a_scripted_module_returns_is_refused_and_what_follows_is_found():
    scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU()))
    model, x, target, _, _ = read_by_hand(lambda x, s: s(x), [scripted], SQUARE, first)
    with pytest.raises(NotApplicableError, match="no layer of the model returns channels"):
        found(model, x, target)
    follows = read_by_hand(lambda x, s, c: c(s(x)), [scripted, conv(6)], SQUARE, first)
    assert_features(found(*follows[:3]), *follows[3:])


def test_a_slice_that_is_assigned_belongs_to_the_features():
    def assigned(x, convolution):
        z = convolution(x)
        z[:, 2] = 0.5
        return z

    model, x, target, values, weights = read_by_hand(assigned, [conv()], SQUARE, first)
    assert_features(found(model, x, target), values, weights)


@pytest.mark.parametrize("reduced", [lambda z: z.mean(2), lambda z: z[:, :, 0], lambda z: z.amax(3)])
def test_what_is_left_of_a_grid_without_one_of_its_axes_is_none(reduced):
    model, x = Read(lambda x, c, n: n(reduced(c(x).tanh())), conv(), nn.BatchNorm1d(6)), normal(3, *WIDE)
    torch.testing.assert_close(found(model, x).activation, model.layers[0](x).tanh().detach(), **CLOSE)


def test_branches_that_meet_without_positions_share_the_layer_before_them():
    def branches(x, stem, one, two):
        z = stem(x).tanh()
        return torch.cat([one(z).relu().mean((2, 3)), two(z).amax((2, 3))], 1)

    model, x = Read(branches, conv(), conv(6), conv(6)), normal(3, *WIDE)
    torch.testing.assert_close(found(model, x).activation, model.layers[0](x).tanh().detach(), **CLOSE)


def test_the_gradient_is_that_of_finite_differences():
    model, x = VisionTransformer((1, 4, 6), 4, patch=2, width=4, depth=2, heads=2).double(), normal(1, 1, 4, 6)
    seen, step = found(model, x, torch.tensor([2])), 1e-5
    slopes = torch.zeros_like(seen.gradient)
    for channel, row, column in torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3)).tolist():
        ends = []
        for sign in (1, -1):

            def moved(_module, _inputs, output, at=1 + 3 * row + column, channel=channel, by=sign * step):
                output = output.clone()
                output[:, at, channel] += by
                return output

            handle = model.layers[1].norm1.register_forward_hook(moved)
            ends.append(model(x)[0, 2].item())
            handle.remove()
        slopes[0, channel, row, column] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(seen.gradient, slopes, rtol=1e-6, atol=1e-9)


class Sequence(nn.Module):
    """A signal transformer or a recurrent network behind a convolution or a linear layer over pieces."""

    def __init__(self, depth, *, piecewise=False, recurrent=False):
        super().__init__()
        self.stem = nn.Linear(8, 6) if piecewise else nn.Conv1d(2, 6, 4, stride=4)
        self.token = nn.Parameter(normal(1, 1, 6))
        block = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=True)
        self.blocks, self.recurrent = nn.ModuleList([block] * depth), nn.GRU(6, 6, batch_first=True)
        self.head, self.piecewise, self.as_recurrence = nn.Linear(6, 4), piecewise, recurrent
        self.double().eval()

    def forward(self, x):
        pieces = x.unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)
        z = self.stem(pieces) if self.piecewise else self.stem(x).transpose(1, 2)
        if self.as_recurrence:
            return self.head(self.recurrent(z)[0][:, -1])
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1)
        for block in self.blocks:
            z = block(z)
        return self.head(z[:, 0])


@pytest.mark.parametrize(
    ("depth", "piecewise"),
    [
        (2, False),
        (1, False),
        (2, True),
        (1, True),
    ],
)
def test_a_transformer_for_signals_with_a_class_token(depth, piecewise):
    model, x, target = Sequence(depth, piecewise=piecewise), normal(2, 2, 24), torch.tensor([3, 0])
    model.blocks = nn.ModuleList([model.blocks[0] if index == 0 else Sequence(1).blocks[0] for index in range(depth)])
    layer = f"blocks.{depth - 1}.norm1"
    values, gradient = by_hook(model, x, target, layer, in_row(6, extra=1))
    assert_features(found(model, x, target), values, gradient)


def test_the_grid_before_a_recurrent_layer_is_time():
    model, x = Sequence(1, recurrent=True), normal(2, 2, 96)
    assert found(model, x).activation.shape == (2, 6, 24)


class Flat(nn.Module):
    """Attention, then a layer over all tokens of all samples in one row, and a class token that is read."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.over = conv(3, 6, 4, stride=4), nn.LayerNorm(6), nn.Linear(6, 6)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)
        self.double()

    def forward(self, x):
        z = tokens(x, self.stem, nn.Identity(), 1)
        seen = self.norm(z)
        z = z + self.attention(seen, seen, seen)[0]
        return self.head(self.over(z.flatten(0, 1)).relu().unflatten(0, (len(x), -1))[:, 0])


def test_tokens_that_nothing_reads_are_found_behind_tokens_in_one_row():
    model, x, target = Flat(), normal(2, *WIDE), torch.tensor([3, 0])
    assert_features(found(model, x, target), *by_hook(model, x, target, "norm", in_row(2, 3, extra=1)))


@pytest.mark.parametrize(
    ("name", "layer"), [("modules", "5"), ("functional", "max_pool2d in the network"), ("signal", "2")]
)
def test_names_the_layer(name, layer):
    model, x, target = network(name, torch.float64)
    assert found(model, x, target).layer == layer


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (relu_mlp(), normal(3, 20)),
        (nn.Sequential(nn.Flatten(), relu_mlp()), normal(3, 5, 2, 2)),
        (Read(lambda x: (x - 0.4) / 0.2), normal(3, 2, 5, 5)),
    ],
    ids=["table", "image", "normalized image"],
)
def test_networks_without_positions_are_refused(model, x):
    with pytest.raises(NotApplicableError, match="method: no layer of the model returns channels with more than one"):
        found(model, x)
