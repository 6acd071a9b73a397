"""The built-in networks: shapes, documented names, and slow literal twins of what they compute themselves."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.networks import CNN, MLP, CifarResNet, SpectrogramCNN, SpeechCNN, VisionTransformer, WaveformCNN
from harness.networks.resnet import ResidualBlock
from harness.networks.vit import Attention

CLOSE = {"rtol": 0, "atol": 1e-10}

NETWORKS = {
    "cnn": (CNN, (1, 28, 28)),
    "cnn, three channels, odd sides": (CNN, (3, 13, 22)),
    "cnn, gelu": (partial(CNN, activation=nn.GELU), (1, 28, 28)),
    "cnn, tanh, batch norm": (partial(CNN, activation=nn.Tanh, batch_norm=True), (1, 28, 28)),
    "mlp on a table": (MLP, (9,)),
    "mlp on an image": (MLP, (1, 8, 8)),
    "mlp without hidden layers": (partial(MLP, hidden=()), (9,)),
    "resnet20": (CifarResNet, (3, 32, 32)),
    "resnet56, other shape": (partial(CifarResNet, depth=56), (1, 17, 9)),
    "vit": (VisionTransformer, (1, 28, 28)),
    "vit, options": (partial(VisionTransformer, patch=4, width=12, depth=2, heads=3), (3, 8, 12)),
    "waveform": (WaveformCNN, (1, 8000)),
    "waveform, short": (WaveformCNN, (1, 3001)),
    "spectrogram": (SpectrogramCNN, (1, 129, 61)),
    "spectrogram, other shape": (SpectrogramCNN, (1, 65, 30)),
    "speech": (SpeechCNN, (129, 61)),
    "speech, other shape": (SpeechCNN, (20, 3)),
}
"""What it covers -> (constructor, shape of one input)."""

every = pytest.mark.parametrize("name", NETWORKS)


def seeded(build, *args, seed=0, **options):
    """A network in float64 and evaluation mode, drawn with this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **options).double().eval()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every
def test_logits_have_one_row_a_sample_and_one_column_a_class_in_both_precisions(name):
    build, shape = NETWORKS[name]
    model, x = seeded(build, shape, 7), normal(3, *shape)
    double, single = model(x), model.float()(x.float())
    assert double.shape == single.shape == (3, 7)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert not torch.equal(double[0], double[1])
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@every
def test_weights_come_from_the_generator_of_torch_and_from_nowhere_else(name):
    build, shape = NETWORKS[name]
    first, again, other = (seeded(build, shape, 7, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].unique().numel() > 1)


def test_names_of_the_cnn():
    parameters = ("weight", "bias")
    norm = (*parameters, "running_mean", "running_var", "num_batches_tracked")
    hidden = {"hidden1.0": parameters, "hidden1.1": norm, "hidden2.0": parameters, "hidden2.1": norm}
    linear = {"fc1.1": parameters, "fc1.2": norm, "softmax_linear": parameters}
    names = [f"{layer}.{name}" for layer, held in (hidden | linear).items() for name in held]
    model = CNN((1, 28, 28), 10, nn.ReLU, True)
    assert list(model.state_dict()) == names
    assert sum(p.numel() for p in model.parameters()) == 418_090

    plain = CNN((1, 28, 28), 10)
    assert {name.rpartition(".")[0] for name in plain.state_dict()} == {
        "hidden1.0",
        "hidden2.0",
        "fc1.1",
        "softmax_linear",
    }
    kinds = [type(module).__name__ for module in plain.modules() if not list(module.children())]
    assert kinds == [
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
    ]


def test_activations_of_the_cnn_are_one_module_each():
    modules = CNN((1, 28, 28), 10, nn.GELU).modules()
    assert len([module for module in modules if isinstance(module, nn.GELU)]) == 3


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_names_and_size_of_the_resnet_are_those_of_the_published_weights(depth, parameters):
    norm = ("weight", "bias", "running_mean", "running_var")
    names = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{name}" for name in norm}
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            for half in (1, 2):
                names.add(f"layer{stage}.{block}.conv{half}.weight")
                names |= {f"layer{stage}.{block}.bn{half}.{name}" for name in norm}
    model = CifarResNet((3, 32, 32), 10, depth)
    assert {name for name in model.state_dict() if not name.endswith("num_batches_tracked")} == names
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 32, 2), (4, 10, 2), (6, 6, 1)])
@pytest.mark.parametrize("sides", [(8, 6), (7, 5)])
def test_shortcut_takes_every_second_position_and_pads_channels_with_zeros(inputs, outputs, stride, sides):
    block, x = seeded(ResidualBlock, inputs, outputs, stride), normal(2, inputs, *sides)
    rows, columns = (math.ceil(side / stride) for side in sides)
    expected = torch.zeros(2, outputs, rows, columns, dtype=torch.float64)
    for channel in range(inputs):
        for row in range(rows):
            for column in range(columns):
                source = x[:, channel, stride * row, stride * column]
                expected[:, (outputs - inputs) // 2 + channel, row, column] = source
    torch.testing.assert_close(block.shortcut(x), expected, rtol=0, atol=0)

    # Once the residual branch is silenced, all that is left of the block is its rectified shortcut.
    for parameter in block.bn2.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(block(x), expected.clamp(min=0), **CLOSE)


def literal_resnet(state, x, blocks):
    """The description that comes with the published weights, step by step, from the tensors alone."""

    def convolved(x, at, conv, norm, stride=1):
        x = F.conv2d(x, state[f"{at}{conv}.weight"], stride=stride, padding=1)
        mean, var = (state[f"{at}{norm}.running_{which}"] for which in ("mean", "var"))
        return F.batch_norm(x, mean, var, state[f"{at}{norm}.weight"], state[f"{at}{norm}.bias"])

    x = convolved(x, "", "conv1", "bn1").clamp(min=0)
    for stage, block in itertools.product((1, 2, 3), range(blocks)):
        at, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
        out = convolved(x, at, "conv1", "bn1", stride).clamp(min=0)
        out = convolved(out, at, "conv2", "bn2")
        if stride == 2:
            zeros = torch.zeros_like(out[:, : out.shape[1] // 4])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        x = (out + x).clamp(min=0)
    return x.flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("blocks", [1, 3])
def test_resnet_equals_its_description(blocks):
    model, x = seeded(CifarResNet, (3, 12, 14), 10, 6 * blocks + 2), normal(2, 3, 12, 14)
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(normal(module.num_features, seed=seed))
            module.running_var.copy_(normal(module.num_features, seed=seed).exp())
    torch.testing.assert_close(model(x), literal_resnet(model.state_dict(), x, blocks), **CLOSE)


@torch.no_grad()
def literal_attention(layer, x):
    """Multi-head self-attention of one sample [positions, width], one head and one position at a time."""
    positions, width = x.shape
    part = width // layer.heads
    query, key, value = (x @ linear.weight.T + linear.bias for linear in (layer.query, layer.key, layer.value))
    mixed = torch.zeros(positions, width, dtype=x.dtype)
    for head in range(layer.heads):
        at = slice(head * part, (head + 1) * part)
        for i in range(positions):
            scores = [float(query[i, at] @ key[j, at]) / math.sqrt(part) for j in range(positions)]
            total = sum(math.exp(score) for score in scores)
            for j in range(positions):
                mixed[i, at] += math.exp(scores[j]) / total * value[j, at]
    return mixed @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize(("width", "heads"), [(12, 1), (12, 3), (8, 8)])
def test_attention_equals_loops_over_heads_and_positions(width, heads):
    layer, x = seeded(Attention, width, heads), 3 * normal(2, 6, width)
    expected = torch.stack([literal_attention(layer, sample) for sample in x])
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def standardized(x, norm):
    """Layer norm of vectors [..., width]."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@torch.no_grad()
def literal_transformer(model, image, side):
    """The logits of one image [c, h, w]."""
    weight = model.embed.weight.flatten(1)
    corners = itertools.product(range(0, image.shape[1], side), range(0, image.shape[2], side))
    patches = [image[:, row : row + side, column : column + side].flatten() for row, column in corners]
    stream = torch.stack([model.token[0, 0], *(weight @ patch + model.embed.bias for patch in patches)])
    stream = stream + model.position[0]
    for layer in model.layers:
        stream = stream + literal_attention(layer.attention, standardized(stream, layer.norm1))
        first, _, second = layer.mlp
        hidden = standardized(stream, layer.norm2) @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        stream = stream + hidden @ second.weight.T + second.bias
    return model.head.weight @ standardized(stream[0], model.norm) + model.head.bias


def test_vision_transformer_equals_its_description():
    model, x = seeded(VisionTransformer, (2, 12, 8), 5, patch=4, width=8, depth=2, heads=2), normal(2, 2, 12, 8)
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.LayerNorm):
            module.weight.data, module.bias.data = normal(2, 8, seed=seed)
    expected = torch.stack([literal_transformer(model, image, 4) for image in x])
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_patches_may_trade_places_if_their_position_embeddings_do():
    model = seeded(VisionTransformer, (2, 12, 8), 5, patch=4, width=16, depth=2)
    x, order = normal(3, 2, 12, 8), torch.tensor([4, 2, 0, 5, 1, 3])
    patches = x.view(3, 2, 3, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches[:, order].unflatten(1, (3, 2)).permute(0, 3, 1, 4, 2, 5).reshape(3, 2, 12, 8)
    before = model(x)
    assert not torch.allclose(model(moved), before, **CLOSE)
    model.position.data[:, 1:] = model.position.data[:, 1:][:, order]
    torch.testing.assert_close(model(moved), before, **CLOSE)


def test_mlp_equals_its_products_and_takes_an_image_for_a_table():
    image, table = seeded(MLP, (1, 8, 8), 10), seeded(MLP, (64,), 10)
    x = normal(4, 1, 8, 8)
    first, second, last = (layer for layer in table.modules() if isinstance(layer, nn.Linear))
    hidden = (x.reshape(4, 64) @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(image(x), hidden @ last.weight.T + last.bias, **CLOSE)
    torch.testing.assert_close(table(x.flatten(1)), image(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "shape", "event", "stride"),
    [(WaveformCNN, (1, 8192), (200,), 512), (SpectrogramCNN, (1, 128, 128), (10, 9), 8)],
)
def test_audio_networks_are_told_what_but_not_when(build, shape, event, stride):
    model, x = seeded(build, shape, 5), torch.zeros(1, *shape, dtype=torch.float64)
    middle = [slice(side // 2, side // 2 + length) for side, length in zip(shape[1:], event, strict=True)]
    x[:, :, *middle] = normal(*event).abs()
    before = model(x)
    assert not torch.allclose(model(torch.zeros_like(x)), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(x.roll(stride, -1)), before, **CLOSE)
    if len(event) == 2:
        assert not torch.allclose(model(x.roll(stride, -2)), before, rtol=0, atol=1e-6)
    # A mean over time takes any length.
    assert model(torch.cat([x, x], -1)).shape == (1, 5)


@pytest.mark.parametrize("depth", [0, 2, 7, 18, 57])
def test_a_resnet_of_another_depth_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 .*; got {depth}$"):
        CifarResNet((3, 32, 32), 10, depth)


def test_patches_that_do_not_tile_and_heads_that_do_not_share_are_refused():
    with pytest.raises(ValueError, match="patch 5 must divide both sides of the image; they are 28 and 28"):
        VisionTransformer((1, 28, 28), 10, patch=5)
    with pytest.raises(ValueError, match="patch 4 must divide both sides of the image; they are 8 and 9"):
        VisionTransformer((1, 8, 9), 10, patch=4)
    with pytest.raises(ValueError, match="3 heads do not divide 64"):
        VisionTransformer((1, 28, 28), 10, heads=3)
