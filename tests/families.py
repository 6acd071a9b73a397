"""One small member of each of torchvision's classification families, and what is right on it. Prints a Markdown table.

Random weights; biases and the shifts of batch norms are zero and everything is float64, so that relevance by
epsilon-LRP with a vanishing epsilon must add up to the logit, position embeddings and class tokens included.
"""

import warnings
from collections import Counter
from importlib import metadata

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.attribution
import zennit.canonizers
import zennit.composites
import zennit.rules
import zennit.torchvision
from torch import nn

from harness.methods.backward import guided_backprop
from harness.methods.composites import ruled_gradients
from harness.methods.deeplift import deeplift
from harness.methods.gradients import gradient
from harness.methods.relevance import LRP
from harness.methods.rules import Epsilon

SIDES = {
    "alexnet": 96,
    "convnext_tiny": 96,
    "densenet121": 96,
    "efficientnet_b0": 96,
    "efficientnet_v2_s": 96,
    "googlenet": 96,
    "inception_v3": 128,
    "maxvit_t": 224,
    "mnasnet0_5": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "regnet_x_400mf": 96,
    "regnet_y_400mf": 96,
    "resnet18": 96,
    "resnext50_32x4d": 96,
    "shufflenet_v2_x0_5": 96,
    "squeezenet1_0": 96,
    "swin_t": 96,
    "swin_v2_t": 96,
    "vgg11": 96,
    "vgg11_bn": 96,
    "vit_b_16": 224,
    "wide_resnet50_2": 96,
}
"""Name -> side of the input, the smallest that the network takes or that leaves all of its stages something to do."""

ADDED = ("class_token", "pos_embedding")
VANISHING = 1e-30


def build(name):
    """The network and one sample with its target: the class with the largest logit."""
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **options).double().eval()
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                nn.init.zeros_(parameter)
            elif key.endswith("layer_scale"):
                nn.init.ones_(parameter)
            elif key == "heads.head.weight":  # zeros by default
                nn.init.normal_(parameter, std=0.02)
        x = torch.randn(1, 3, SIDES[name], SIDES[name], dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def logit(model, x, target):
    with torch.no_grad():
        return model(x)[0, target[0]]


def conservation(model, x, target):
    """Relative difference of the logit and the relevance of the input and of all that the model adds to it."""
    added = [parameter for name, parameter in model.named_parameters() if name.endswith(ADDED)]
    rules = LRP(Epsilon(VANISHING), Epsilon(VANISHING)).rules()
    gradients = ruled_gradients(model, x, target, rules, "lrp_epsilon", also=added)
    total = sum((value * g).sum() for value, g in zip((x, *added), gradients, strict=True))
    return float((total.detach() / logit(model, x, target) - 1).abs())


def completeness(model, x, target):
    """Relative residual of DeepLIFT against a black image."""
    baseline = torch.zeros_like(x) - 1
    claim = logit(model, x, target) - logit(model, baseline, target)
    return float((deeplift(model, x, target, baseline=baseline).sum() / claim - 1).abs())


ACTIVATIONS = [
    *((F, name) for name in ("relu", "relu6", "hardtanh", "silu", "hardswish", "gelu", "hardsigmoid")),
    *((torch, name) for name in ("relu", "sigmoid", "tanh")),
]


def intercepted(function, counted):
    """An activation whose output has a hook: an interception that has nothing in common with ours."""

    def activation(z, *args, **kwargs):
        out = function(z.clone(), *args, **kwargs)
        if out.requires_grad:
            counted.append(function)
            out.register_hook(lambda gradient: gradient.clamp(min=0))
        return out

    return activation


def guided_by_patching(model, x, target, monkeypatch):
    """Guided backprop, and at how many activations it acted."""
    counted = []
    with monkeypatch.context() as patch:
        for module, name in ACTIVATIONS:
            patch.setattr(module, name, intercepted(getattr(module, name), counted))
        return gradient(model, x, target), len(counted)


def difference(maps, others):
    return float((maps - others).norm() / others.norm())


def by_captum(model, x, target):
    """Conservation of captum's LRP, by its epsilon rule wherever it lets us set one."""
    lrp = captum.attr.LRP(model)
    for module in model.modules():
        if not list(module.children()) and any(True for _ in module.parameters(recurse=False)):
            module.rule = captum.attr._utils.lrp_rules.EpsilonRule(epsilon=VANISHING)
    return float((lrp.attribute(x, target=target).sum() / logit(model, x, target) - 1).abs())


CANONIZERS = {
    "resnet18": zennit.torchvision.ResNetCanonizer,
    "resnext50_32x4d": zennit.torchvision.ResNetCanonizer,
    "wide_resnet50_2": zennit.torchvision.ResNetCanonizer,
    "vgg11": zennit.torchvision.VGGCanonizer,
    "vgg11_bn": zennit.torchvision.VGGCanonizer,
}


def by_zennit(name, model, x, target):
    """Conservation of zennit's epsilon-LRP with the canonizer that it has for the family."""
    rules = [
        *zennit.composites.layer_map_base(stabilizer=VANISHING),
        (zennit.types.Linear, zennit.rules.Epsilon(epsilon=VANISHING)),
    ]
    canonizer = CANONIZERS.get(name, zennit.canonizers.SequentialMergeBatchNorm)()
    composite = zennit.composites.LayerMapComposite(rules, canonizers=[canonizer])
    start = logit(model, x, target) * F.one_hot(target, model(x).shape[1]).to(x.dtype)
    with zennit.attribution.Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(x, start)
    return float((relevance.sum() / start.sum() - 1).abs())


def guided_by_captum(name, expected):
    """Difference of captum's guided backprop."""
    model, x, target = build(name)
    return difference(captum.attr.GuidedBackprop(model).attribute(x, target=target), expected)


def guided_by_zennit(name, expected):
    """Difference of zennit's."""
    model, x, target = build(name)
    with zennit.composites.GuidedBackprop().context(model) as hooked:
        return difference(gradient(hooked, x, target), expected)


def told(function, *arguments):
    """The number, or that there is none."""
    try:
        return f"{function(*arguments):.0e}"
    except Exception as error:
        return f"refused ({type(error).__name__})"


COLUMNS = {
    "LRP-epsilon": 1e-3,
    "DeepLIFT": 1e-6,
    "guided backprop": 1e-10,
    "LRP, captum": 1e-3,
    "LRP, zennit": 1e-3,
    "guided, captum": 1e-10,
    "guided, zennit": 1e-10,
}
"""What is measured -> the largest error that counts as right."""


def main():
    """Print the table."""
    warnings.simplefilter("ignore")
    versions = {"torch": torch, "torchvision": torchvision, "captum": captum, "zennit": zennit}
    found = {name: getattr(module, "__version__", metadata.version(name)) for name, module in versions.items()}
    print(", ".join(f"{name} {version}" for name, version in found.items()), "\n")
    print(f"| network | activations | {' | '.join(COLUMNS)} |")
    print(f"| --- | --- |{' --- |' * len(COLUMNS)}")
    counts = {column: Counter() for column in COLUMNS}
    for name in SIDES:
        model, x, target = build(name)
        expected, activations = guided_by_patching(model, x, target, pytest.MonkeyPatch())
        cells = [
            told(conservation, model, x, target),
            told(completeness, model, x, target),
            told(difference, guided_backprop(model, x, target), expected),
            told(by_captum, *build(name)),
            told(by_zennit, name, *build(name)),
            told(guided_by_captum, name, expected),
            told(guided_by_zennit, name, expected),
        ]
        for (column, limit), cell in zip(COLUMNS.items(), cells, strict=True):
            counts[column][
                "refused" if cell.startswith("refused") else "right" if float(cell) < limit else "silently wrong"
            ] += 1
        print(f"| {name} | {activations} | {' | '.join(cells)} |", flush=True)
    for outcome in ("right", "silently wrong", "refused"):
        print(f"| **{outcome}** | | {' | '.join(f'**{counts[column][outcome]}**' for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
