"""Our methods against those of captum: the same model, samples and options, in one process and in turn."""

from functools import partial

import pandas as pd
import torch
from torch import nn

import harness
from bench_floor import SPACE, Floor, Spent, clocked, in_turn
from bench_ours import evaluated, explained, in_words
from bench_peers import compared
from harness.networks import CifarResNet
from harness.networks.resnet import ResidualBlock
from harness.units import superpixels

BASELINE = {"baseline": "mean"}
SAMPLES, STEPS, SUBSETS, UNITS, WINDOW = 8, 8, 64, 50, 8


class Block(ResidualBlock):
    """With rectifiers as modules, each used once: captum's rules follow nothing else."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


class ModuleResNet(CifarResNet):
    """The same network made of such blocks."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.relu = nn.ReLU()
        for stage in (self.layer1, self.layer2, self.layer3):
            for name, block in stage.named_children():
                convolution = block.conv1
                setattr(stage, name, Block(convolution.in_channels, convolution.out_channels, block.stride))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def peers(model, x, target):
    """Name of a method of ours -> its options, and what captum does for the same."""
    from captum import attr

    tunnel = {"nt_samples": SAMPLES, "nt_samples_batch_size": 1, "stdevs": 0.5, "target": target, "abs": False}
    window = {"sliding_window_shapes": (3, WINDOW, WINDOW), "strides": (3, WINDOW // 2, WINDOW // 2)}
    given = {"target": target}
    zeros = {**given, "baselines": 0}
    noisy = {"samples": SAMPLES}

    def smooth(kind):
        return lambda: attr.NoiseTunnel(attr.Saliency(model)).attribute(x, nt_type=kind, **tunnel)

    def each(method):
        """Sample by sample, because captum fits one at a time."""
        labels = superpixels(x, SPACE, UNITS)[:, None]

        def one(row):
            mask = labels[row : row + 1].expand(-1, 3, -1, -1)
            options = {"n_samples": SUBSETS, "perturbations_per_eval": SUBSETS, "feature_mask": mask, "baselines": 0}
            return method(model).attribute(x[row : row + 1], target=target[row : row + 1], **options)

        return lambda: torch.cat([one(row) for row in range(len(x))])

    return {
        "gradient": ({}, lambda: attr.Saliency(model).attribute(x, abs=False, **given)),
        "input_x_gradient": ({}, lambda: attr.InputXGradient(model).attribute(x, **given)),
        "integrated_gradients": (
            {"steps": STEPS, **BASELINE},
            lambda: attr.IntegratedGradients(model).attribute(x, n_steps=STEPS, internal_batch_size=64, **zeros),
        ),
        "smoothgrad": (noisy, smooth("smoothgrad")),
        "smoothgrad_squared": (noisy, smooth("smoothgrad_sq")),
        "vargrad": (noisy, smooth("vargrad")),
        "expected_gradients": (
            noisy,
            lambda: attr.GradientShap(model).attribute(x, baselines=x, n_samples=SAMPLES, **given),
        ),
        "deconvnet": ({}, lambda: attr.Deconvolution(model).attribute(x, **given)),
        "guided_backprop": ({}, lambda: attr.GuidedBackprop(model).attribute(x, **given)),
        "deeplift": (BASELINE, lambda: attr.DeepLift(model).attribute(x, **zeros)),
        "grad_cam": ({"layer": "layer3"}, lambda: attr.LayerGradCam(model, model.layer3).attribute(x, **given)),
        "guided_grad_cam": ({"layer": "layer3"}, lambda: attr.GuidedGradCam(model, model.layer3).attribute(x, **given)),
        "occlusion": (
            {"window": WINDOW, "stride": WINDOW // 2, **BASELINE},
            lambda: attr.Occlusion(model).attribute(x, **window, **zeros),
        ),
        "lime": ({"samples": SUBSETS, **BASELINE}, each(attr.Lime)),
        "kernel_shap": ({"samples": SUBSETS, **BASELINE}, each(attr.KernelShap)),
    }


def captum_table(floor, model, x, quick):
    """One row for each method that both have, and by how much maps differ that should be the same."""
    modular = ModuleResNet((3, 32, 32), 10).eval().to(x.device)
    modular.load_state_dict(model.state_dict())
    floor = Floor(modular, x, (floor.batch["forward"], floor.batch["both"]), quick)
    rows, target = [], explained(x)
    for name, (options, attribute) in peers(modular, x, target).items():
        entry = {"method": name, **options}
        runs = {"ours": partial(_maps, modular, x, entry), "captum": partial(clocked, floor, modular, attribute)}
        works = in_turn(floor, runs, rounds=2)
        row = compared({"method": name, "options": in_words(options)}, works["ours"], works["captum"])
        apart = harness.METHODS[name].stochastic or "layer" in options
        rows.append({**row, "difference": float("nan") if apart else _difference(modular, x, entry, attribute())})
    return pd.DataFrame(rows), {}


def _maps(model, x, entry):
    row = evaluated(model, x, [entry], ["zero_fraction"]).iloc[0]
    return Spent(row["maps_seconds"], int(row["maps_forward"]), int(row["maps_backward"]))


def _difference(model, x, entry, theirs):
    maps, theirs = harness.explain(model, x, explained(x), space=SPACE, **entry), theirs.detach()
    return float((maps - theirs[:, : maps.shape[1]]).norm() / theirs[:, : maps.shape[1]].norm())
