"""Cost of the backward rules against a plain forward and backward pass of the same batch. Prints a Markdown table.

All on one network are timed in turn and the fastest of some rounds counts; ratios are of one run.
"""

import argparse
import math
import platform
import time
import warnings
from functools import partial

import torch
import torchvision

from harness import METHODS, NotApplicableError
from harness.api import torch_device
from harness.space import InputSpace

NETWORKS = ("resnet18", "vgg11_bn", "densenet121", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16")
RULED = [name for name, entry in METHODS.items() if entry.family == "backward rule"] + ["full_grad"]
SPACE = InputSpace("image", mean=(0.5,) * 3, std=(0.25,) * 3)


def seconds(function, device):
    """Of one call."""
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def plain(model, x, target):
    """What nobody can be faster than."""
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)


def explain(name, model, x, target):
    """One call of a method."""
    filled = {"space": SPACE, "baseline": torch.zeros_like(x)}
    entry = METHODS[name]
    entry.function(model, x, target, **{key: filled[key] for key in filled if key in entry.parameters})


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch_device(arguments.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {arguments.batch}, float32\n"
    )
    print(f"| method | {' | '.join(arguments.networks)} |\n| --- |{' --- |' * len(arguments.networks)}")
    columns = []
    for name in arguments.networks:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval().to(device)
        x = torch.randn(arguments.batch, 3, 224, 224, device=device)
        target = torch.arange(arguments.batch, device=device)
        runs = {"plain": partial(plain, model, x, target)}
        runs |= {method: partial(explain, method, model, x, target) for method in RULED}
        taken = {method: [] for method in runs}
        for _ in range(arguments.rounds + 1):  # the first call of an operator is slower
            for method, run in runs.items():
                try:
                    taken[method].append(seconds(run, device))
                except NotApplicableError:
                    taken[method].append(math.nan)
        columns.append({method: min(times[1:]) for method, times in taken.items()})
    print("| plain, seconds | " + " | ".join(f"{column['plain']:.2f}" for column in columns) + " |")
    for method in RULED:
        ratios = [column[method] / column["plain"] for column in columns]
        print(f"| {method} | {' | '.join('refused' if math.isnan(ratio) else f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
