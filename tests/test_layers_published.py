"""The last layer with positions of published networks, untrained, against what a hook sees."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from closed_forms import normal
from harness.networks import CifarResNet, VisionTransformer, WaveformCNN
from layer_features import CLOSE, by_hook, first, found, in_row, last


def assert_features(seen, values, weights):
    torch.testing.assert_close(seen.activation, values.detach(), **CLOSE)
    torch.testing.assert_close(seen.gradient, weights.detach(), **CLOSE)


def seeded(build, **options):
    """A network in float64 of which no parameter is zero, as untrained heads and tokens often are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(**options)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def tiny(name="vit_tiny_patch16_224", **options):
    return seeded(timm.create_model, model_name=name, img_size=32, patch_size=8, depth=2, num_classes=5, **options)


def swin():
    sizes = {"img_size": 56, "window_size": 7, "embed_dim": 16}
    return seeded(
        timm.create_model, model_name="swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(2, 4), **sizes
    )


def torchvision_vit():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return seeded(torchvision.models.VisionTransformer, **sizes, num_classes=5)


# Name -> network, side of the image, the module that is the layer, how what it returns is arranged.
PUBLISHED = {
    "class token": (tiny, 32, "blocks.1.norm1", in_row(4, 4, extra=1)),
    "class token and registers": (lambda: tiny(reg_tokens=4), 32, "blocks.1.norm1", in_row(4, 4, extra=5)),
    "no class token": (lambda: tiny(class_token=False, global_pool="avg"), 32, "blocks", in_row(4, 4)),
    "mean of patches": (lambda: tiny(global_pool="avg"), 32, "blocks", in_row(4, 4, extra=1)),
    "distilled": (lambda: tiny("deit_tiny_distilled_patch16_224"), 32, "blocks.1.norm1", in_row(4, 4, extra=2)),
    "torchvision": (torchvision_vit, 32, "encoder.layers.encoder_layer_1.ln_1", in_row(4, 4, extra=1)),
    "attention pooling": (
        lambda: tiny("vit_base_patch16_siglip_224", embed_dim=48, num_heads=3),
        32,
        # Keys and values: all that the pooling reads.
        "attn_pool.kv",
        in_row(4, 4),
    ),
    "mixer": (lambda: seeded(timm.create_model, model_name="mixer_s32_224", img_size=96), 96, "norm", in_row(3, 3)),
    "swin": (swin, 56, "norm", last),
    "torchvision swin": (lambda: seeded(torchvision.models.swin_t), 64, "permute", first),
    "resnet18": (lambda: seeded(torchvision.models.resnet18), 64, "layer4", first),
    "mobilenet_v2": (lambda: seeded(torchvision.models.mobilenet_v2), 64, "features", first),
    "convnext_tiny": (lambda: seeded(torchvision.models.convnext_tiny), 64, "features", first),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_features_that_a_hook_sees(name):
    build, side, layer, arranged = PUBLISHED[name]
    model, x, target = build(), normal(2, 3, side, side), torch.tensor([3, 0])
    values, gradient = by_hook(model, x, target, layer, arranged)
    seen = found(model, x, target)
    assert (gradient != 0).any()
    if name in ("no class token", "mean of patches"):
        # What is found is a slice of them.
        assert seen.layer == "getitem in the network"
    else:
        assert seen.layer == layer
    assert_features(seen, values, gradient)
    named = found(model, x, target, layer=layer)
    assert named.layer == layer
    assert_features(named, values, gradient)


def test_densenet_ends_in_a_function():
    model, x = seeded(torchvision.models.densenet121), normal(1, 3, 64, 64)
    seen = found(model, x)
    assert seen.layer == "relu in the network"
    values = F.relu(model.features(x)).detach()
    assert_features(seen, values, (model.classifier.weight[0] / 4).view(1, -1, 1, 1).expand_as(values))


@pytest.mark.parametrize(
    ("model", "x", "layer", "arranged"),
    [
        (CifarResNet((3, 16, 20), 4, depth=8), normal(2, 3, 16, 20), None, first),
        (
            VisionTransformer((3, 8, 12), 4, patch=2, width=8, depth=3, heads=2),
            normal(2, 3, 8, 12),
            "layers.2.norm1",
            1,
        ),
        (
            VisionTransformer((3, 8, 12), 4, patch=2, width=8, depth=1, heads=2),
            normal(2, 3, 8, 12),
            "layers.0.norm1",
            1,
        ),
        (WaveformCNN((1, 1000), 4), normal(2, 1, 1000), None, first),
    ],
    ids=["resnet", "three layers", "one layer", "waveform"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_built_in_networks(model, x, layer, arranged, wrapped):
    model, target = model.double().eval(), torch.tensor([3, 0])
    outer, prefix = (nn.Sequential(nn.Identity(), model), "1.") if wrapped else (model, "")
    seen = found(outer, x, target)
    layer = layer or seen.layer.removeprefix(prefix)
    if layer not in dict(model.named_modules()):
        pytest.skip(f"the layer is {layer}")
    values, gradient = by_hook(model, x, target, layer, in_row(4, 6, extra=1) if arranged == 1 else arranged)
    assert seen.layer == prefix + layer
    assert_features(seen, values, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "tnt_s_patch16_224"])
def test_class_attention_has_a_gradient_at_all_positions(name):
    model = seeded(timm.create_model, model_name=name, num_classes=5)
    gradient = found(model, normal(1, 3, 224, 224)).gradient
    assert (gradient.abs().sum(1) > 0).all()
