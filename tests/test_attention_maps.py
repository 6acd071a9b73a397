"""Maps of attention weights against NumPy loops over weights that are recomputed from queries and keys."""

import math

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from cases import network
from closed_forms import normal
from harness.methods.attention import attention_rollout, gradient_weighted_attention, raw_attention
from harness.networks import VisionTransformer
from harness.types import NotApplicableError

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
METHODS = (raw_attention, attention_rollout, gradient_weighted_attention)


def lively(model):
    """Weights so large that attention is far from uniform, and no head or token is zero."""
    for seed, parameter in enumerate(model.parameters()):
        drawn = normal(*parameter.shape, seed=seed)
        parameter.data = drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.5 + 0.2 * drawn
    return model.double().eval()


class Ours:
    """Own route through a network of the harness: what goes into its layers, and its layers one by one."""

    def __init__(self, side=(8, 12), **options):
        self.model = lively(VisionTransformer((3, *side), 5, patch=4, width=12, depth=3, heads=2, **options))
        self.grid, self.extra, self.read = (side[0] // 4, side[1] // 4), 1, [0]
        self.blocks = list(self.model.layers)

    def enter(self, x):
        z = self.model.embed(x).flatten(2).mT
        return torch.cat([self.model.token.expand(len(x), -1, -1), z], 1) + self.model.position

    def parts(self, block, z):
        """Query, key and value of each head, and what mixes heads."""
        attention, z = block.attention, block.norm1(z)
        heads = [attention.split(layer(z)) for layer in (attention.query, attention.key, attention.value)]
        return *heads, attention.output

    def behind(self, block, z):
        return z + block.mlp(block.norm2(z))

    def leave(self, z):
        return self.model.head(self.model.norm(z)[:, 0])


class Torchvision(Ours):
    def __init__(self):
        sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        self.model = lively(torchvision.models.VisionTransformer(**sizes, num_classes=5))
        self.grid, self.extra, self.read = (4, 4), 1, [0]
        self.blocks = list(self.model.encoder.layers)

    def enter(self, x):
        z = self.model.conv_proj(x).flatten(2).mT
        return torch.cat([self.model.class_token.expand(len(x), -1, -1), z], 1) + self.model.encoder.pos_embedding

    def parts(self, block, z):
        layer = block.self_attention
        mixed = block.ln_1(z) @ layer.in_proj_weight.T + layer.in_proj_bias
        return *(part.unflatten(2, (2, -1)).transpose(1, 2) for part in mixed.chunk(3, -1)), layer.out_proj

    def behind(self, block, z):
        return z + block.mlp(block.ln_2(z))

    def leave(self, z):
        return self.model.heads(self.model.encoder.ln(z)[:, 0])


class Timm(Ours):
    """With a class token, a distillation token beside it, or the mean of patches; with fused attention or without."""

    def __init__(self, name="vit_tiny_patch16_224", fused=True, extra=1, pool=False):
        options = {"img_size": (24, 32), "patch_size": 8, "depth": 2, "num_classes": 5, "embed_dim": 12, "num_heads": 3}
        options |= {"global_pool": "avg", "class_token": extra > 0} if pool else {}
        self.model = lively(timm.create_model(name, **options))
        self.grid, self.extra, self.blocks = (3, 4), extra, list(self.model.blocks)
        self.read = list(range(extra, extra + 12)) if pool else list(range(extra))
        for block in self.blocks:
            block.attn.fused_attn = fused

    def enter(self, x):
        z, front = self.model.patch_embed(x), [self.model.cls_token, getattr(self.model, "dist_token", None)]
        front = [token.expand(len(x), -1, -1) for token in front if token is not None]
        return torch.cat([*front, z], 1) + self.model.pos_embed

    def parts(self, block, z):
        mixed = block.attn.qkv(block.norm1(z)).unflatten(2, (3, 3, -1))
        return *(mixed[:, :, index].transpose(1, 2) for index in range(3)), block.attn.proj

    def behind(self, block, z):
        return z + block.mlp(block.norm2(z))

    def leave(self, z):
        if len(self.read) > 2:
            return self.model.head(self.model.fc_norm(self.model.norm(z)[:, self.extra :].mean(1)))
        z = self.model.norm(z)
        if self.extra == 2:
            return (self.model.head(z[:, 0]) + self.model.head_dist(z[:, 1])) / 2
        return self.model.head(z[:, 0])


ROUTES = {
    "ours": Ours,
    "torchvision": Torchvision,
    "timm, fused": Timm,
    "timm, in steps": lambda: Timm(fused=False),
    "timm, distilled": lambda: Timm("deit_tiny_distilled_patch16_224", extra=2),
    "timm, mean of patches": lambda: Timm(pool=True),
    "timm, no class token": lambda: Timm(pool=True, extra=0),
}


def side_of(route):
    return (24, 32) if isinstance(route, Timm) else (32, 32) if isinstance(route, Torchvision) else (8, 12)


def attention_of(route, x, target):
    """The weights of all layers and the gradient of the target logit by them, [layers, n, heads, tokens, tokens]."""
    z, weights = route.enter(x), []
    for block in route.blocks:
        query, key, value, output = route.parts(block, z)
        weights.append((query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1))
        z = route.behind(block, z + output((weights[-1] @ value).transpose(1, 2).flatten(2)))
    logits = route.leave(z)
    torch.testing.assert_close(logits, route.model(x), **CLOSE)
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), weights)
    return np.stack([each.detach().numpy() for each in weights]), np.stack([each.numpy() for each in gradients])


def row_read(route, mixed, x):
    """The mean of the rows that are read, without the extra tokens, on the grid, at the size of the input."""
    row = np.mean([mixed[token] for token in route.read], 0)[route.extra :].reshape(route.grid)
    for axis, side in enumerate(x.shape[2:]):
        cells = row.shape[axis]
        centres = (np.arange(side) + 0.5) * cells / side - 0.5
        row = np.apply_along_axis(lambda line, at=centres: np.interp(at, np.arange(len(line)), line), axis, row)
    return row


def literal_raw(weights, _gradients):
    return sum(weights[-1]) / len(weights[-1])


def literal_rollout(weights, _gradients, residual=0.5):
    size = weights.shape[-1]
    rolled = np.eye(size)
    for layer in weights:
        mean = sum(layer) / len(layer)
        rolled = (residual * np.eye(size) + (1 - residual) * mean) @ rolled
    np.testing.assert_allclose(rolled.sum(1), 1, rtol=1e-12)
    return rolled


def literal_weighted(weights, gradients):
    relevance = np.eye(weights.shape[-1])
    for layer, gradient in zip(weights, gradients, strict=True):
        mean = sum(np.maximum(g * a, 0) for g, a in zip(gradient, layer, strict=True)) / len(layer)
        relevance = relevance + mean @ relevance
    return relevance - np.eye(len(relevance))


LITERAL = dict(zip(METHODS, (literal_raw, literal_rollout, literal_weighted), strict=True))


def expected_map(route, x, target, literal, **options):
    weights, gradients = attention_of(route, x, target)
    maps = [
        row_read(route, literal(weights[:, n], gradients[:, n], **options), x)  # One sample at a time.
        for n in range(len(x))
    ]
    return torch.from_numpy(np.stack(maps))[:, None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ROUTES)
def test_equals_a_loop_over_layers_and_heads(name, method):
    route = ROUTES[name]()
    x, target = normal(3, 3, *side_of(route)), torch.tensor([4, 0, 2])
    expected = expected_map(route, x, target, LITERAL[method])
    assert expected.std() > 0.02 * expected.mean()
    torch.testing.assert_close(method(route.model, x, target), expected, **CLOSE)


@pytest.mark.parametrize("residual", [0.0, 0.2, 1.0])
def test_rollout_weighs_the_residual(residual):
    route, x, target = Ours(), normal(3, 3, 8, 12), torch.tensor([4, 0, 2])
    expected = expected_map(route, x, target, literal_rollout, residual=residual)
    torch.testing.assert_close(attention_rollout(route.model, x, target, residual=residual), expected, **CLOSE)
    assert (expected.abs().sum() == 0) == (residual == 1)


def test_rollout_of_uniform_attention_has_a_closed_form():
    """With J / t at each of L layers the row of a token is (1 - r^L) / t, and r^L more at itself."""
    route, x = Ours(), normal(2, 3, 8, 12)
    for block in route.blocks:
        block.attention.query.weight.data.zero_()
        block.attention.query.bias.data.zero_()
    expected = torch.full((2, 1, 8, 12), (1 - 0.3**3) / 7, dtype=torch.float64)
    target = torch.tensor([0, 1])
    torch.testing.assert_close(attention_rollout(route.model, x, target, residual=0.3), expected, **CLOSE)
    torch.testing.assert_close(raw_attention(route.model, x, target), torch.full_like(expected, 1 / 7), **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_gradient_knows_the_class(method):
    route, x = Ours(), normal(2, 3, 8, 12)
    one, other = (method(route.model, x, torch.tensor(target)) for target in ([0, 1], [3, 2]))
    assert torch.equal(one, other) == (method is not gradient_weighted_attention)


def test_the_gradient_by_the_weights_is_that_of_finite_differences(monkeypatch):
    """Of one layer: then the map is the row of (gradient * weights)^+ itself."""
    model = lively(VisionTransformer((1, 4, 6), 5, patch=2, width=4, depth=1, heads=2))
    x, target, step, plain = normal(1, 1, 4, 6), torch.tensor([3]), 1e-6, torch.Tensor.softmax
    weighted, seen = torch.zeros(2, 6, dtype=torch.float64), []
    for head in range(2):
        for token in range(6):
            ends = []
            for sign in (1, -1):

                def perturbed(scores, dim, at=(0, head, 0, 1 + token), by=sign * step):
                    weights = plain(scores, dim)
                    seen.append(weights[at].item())
                    weights = weights.clone()
                    weights[at] += by
                    return weights

                with monkeypatch.context() as patch, torch.no_grad():
                    patch.setattr(torch.Tensor, "softmax", perturbed)
                    ends.append(model(x)[0, 3].item())
            weighted[head, token] = max((ends[0] - ends[1]) / (2 * step) * seen[-1], 0)
    rows = weighted.mean(0).view(1, 1, 2, 3)
    expected = torch.nn.functional.interpolate(rows, size=(4, 6), mode="bilinear", align_corners=False)
    maps = gradient_weighted_attention(model, x, target)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-9)
    assert maps.max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_built_in_network_of_the_suite_in_both_types(method):
    model, x, target = network("vit", torch.float64)
    maps = method(model, x, target)
    torch.testing.assert_close(method(model.float(), x.float(), target).double(), maps, rtol=1e-3, atol=1e-6)


class SignalAttention(nn.Module):
    """A transformer of PyTorch on a signal, whose fast path must not hide its attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 6, 4, stride=4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True) for _ in range(2))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        z = self.stem(x).transpose(1, 2)
        for block in self.blocks:
            z = block(z)
        return self.head(z.mean(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_torch_encoder_layers_on_a_signal(frozen):
    model, x, target = lively(SignalAttention()), normal(3, 2, 24), torch.tensor([3, 0, 2])
    z, weights = model.stem(x).transpose(1, 2), []
    for block in model.blocks:
        attended, each = block.self_attn(z, z, z, average_attn_weights=False)
        weights.append(each.detach().numpy())
        z = block.norm1(z + attended)
        z = block.norm2(z + block.linear2(block.linear1(z).relu()))
    torch.testing.assert_close(model.head(z.mean(1)), model(x), **CLOSE)
    rolled = torch.from_numpy(np.stack([literal_rollout(np.stack(weights)[:, n], None) for n in range(3)]))
    expected = nn.functional.interpolate(rolled.mean(1, keepdim=True), size=24, mode="linear", align_corners=False)
    model.requires_grad_(not frozen)
    with torch.no_grad():
        torch.testing.assert_close(attention_rollout(model, x, target), expected, **CLOSE)


class Squeezed(nn.Module):
    """A convolutional network whose channels are weighed by a softmax."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        z = self.stem(x).relu()
        return self.head((z * z.mean((2, 3), keepdim=True).softmax(1)).mean((2, 3)))


class Beside(VisionTransformer):
    """Its first layer runs once more, for nothing."""

    def forward(self, x):
        self.layers[0](self.position + self.embed(x).flatten(2).mT.mean(1, keepdim=True))
        return super().forward(x)


@pytest.mark.parametrize("method", METHODS)
def test_attention_that_the_logits_do_not_use_does_not_matter(method):
    plain, beside = (build((3, 8, 12), 5, patch=4, width=12, depth=2, heads=2) for build in (VisionTransformer, Beside))
    x, target = normal(2, 3, 8, 12), torch.tensor([4, 1])
    torch.testing.assert_close(*(method(lively(model), x, target) for model in (beside, plain)), **CLOSE)


PARTS = "the layers of the model do not attend from all positions to all, but in parts"
REFUSED = {
    "convolutions": (lambda: network("functional")[0], 2, 12, "the model has no attention between positions"),
    "softmax over channels": (Squeezed, 3, 12, PARTS),
    "windows": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=56,
            window_size=7,
            depths=(1, 1),
            num_heads=(2, 4),
            embed_dim=16,
        ),
        3,
        56,
        PARTS,
    ),
    "class attention": (lambda: timm.create_model("cait_xxs24_224", img_size=32, depth=2, num_classes=5), 3, 32, PARTS),
    "attention pooling": (
        lambda: timm.create_model(
            "vit_base_patch16_siglip_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, num_classes=5
        ),
        3,
        32,
        PARTS,
    ),
    "channels": (lambda: timm.create_model("xcit_nano_12_p16_224", depth=1, img_size=32, num_classes=5), 3, 32, PARTS),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", REFUSED)
def test_other_attention_is_refused_by_name(name, method):
    build, channels, side, message = REFUSED[name]
    with pytest.raises(NotApplicableError, match=f"{method.__name__}: {message}"):
        method(build().eval(), torch.rand(2, channels, side, side), torch.tensor([0, 1]))
