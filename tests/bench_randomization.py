"""The parameter randomization test against the passes that it counts. Prints a Markdown table.

The first method pays for what all share: statistics of randomized batch norms and outputs of randomized networks.
Times are of one machine and noisy; the ratios are of one run.
"""

import argparse
import platform

import torch
from bench import floors

import harness
from harness.api import torch_device
from harness.data.bundled import mnist_5k
from harness.models.builtin import mnist_cnn
from harness.networks import CifarResNet

METHODS = ("gradient", "input_x_gradient", "guided_backprop")
MEASURES = (["spearman"], ["spearman", "ssim", "hog"], ["spearman", "pearson", "cosine", "ssim", "hog", "top_k"])


def networks():
    source = mnist_cnn()
    yield "mnist-cnn, 200 digits", lambda: source.build(source.shape, 10), mnist_5k().batch(range(200))
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    yield "resnet20, 64 x 3 x 32 x 32", lambda: CifarResNet((3, 32, 32), 10, depth=20), x


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    device = torch_device(parser.parse_args().device)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}\n")
    print("| network | method | measures | forward | backward | seconds | times the floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, build, x in networks():
        torch.manual_seed(0)
        model, samples = build().eval().to(device), x.to(device)
        harness.explain(model, samples[:2], method="gradient")
        forward, both = floors(model, samples, device)
        for measures in MEASURES:
            metric = {"metric": "parameter_randomization", "full_draws": 3, "cascade_draws": 2, "measures": measures}
            cells = harness.evaluate(model, samples, methods=METHODS, metrics=[metric], build=build).cells
            for _, row in cells.iterrows():
                floor = (row["forward"] - row["backward"]) * forward + row["backward"] * both
                cost = (row["forward"], row["backward"], f"{row['seconds']:.2f}", f"{row['seconds'] / floor:.2f}")
                print(f"| {name} | {row['method']} | {len(measures)} | {' | '.join(map(str, cost))} |", flush=True)


if __name__ == "__main__":
    main()
