"""Speed against the floor: the passes that the bare model needs for the same work. Prints a Markdown table.

The floor of a method or metric is its counted forward and backward sample-passes times what the bare model needs for
one at its best batch size. Times are of one machine and noisy; the ratios are of one run.
"""

import argparse
import platform
import time
from contextlib import suppress

import torch

import harness
from harness.api import torch_device
from harness.data.bundled import mnist_5k
from harness.models.builtin import mnist_cnn
from harness.types import NotApplicableError

BATCHES = (16, 32, 64, 128, 256)
TRIED = ("gradient", "integrated_gradients")
METRICS = [
    {"metric": "parameter_randomization", "full_draws": 3, "cascade_draws": 1},
    "completeness",
    {"metric": "pixel_flipping", "fill": "black"},
    {"metric": "occlusion_faithfulness", "fill": "black"},
    {"metric": "sensitivity_n", "fill": "black", "sizes": 3, "subsets": 20},
    {"metric": "infidelity", "fill": "black", "samples": 50},
    {"metric": "road", "fill": "noisy_linear"},
    {"metric": "max_sensitivity", "neighbours": 5},
]


def best(function, samples, device):
    """Seconds for one sample at the best batch size, the fastest of three tries each."""
    times = []
    for batch in BATCHES:
        x = samples[torch.arange(batch) % len(samples)]
        function(x)
        for _ in range(3):
            _wait(device)
            started = time.perf_counter()
            function(x)
            _wait(device)
            times.append((time.perf_counter() - started) / batch)
    return min(times)


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def floors(model, samples, device):
    """Seconds that the bare model needs for a forward sample-pass, and for a forward and a backward one."""

    def forward(x):
        with torch.no_grad():
            model(x)

    def both(x):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)

    return best(forward, samples, device), best(both, samples, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    device = torch_device(arguments.device)
    data, source = mnist_5k(), mnist_cnn()

    def build():
        return source.build(source.shape, 10)

    torch.manual_seed(0)
    model = build().eval().to(device)
    x = data.batch(range(arguments.samples)).to(device)
    forward, both = floors(model, x, device)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}")
    print(f"bare mnist-cnn: {1 / forward:,.0f} forward, {1 / both:,.0f} forward and backward sample-passes a second\n")

    def done(methods, metrics):
        results = harness.evaluate(model, x, methods=methods, metrics=metrics, space=data.space, build=build)
        return results.cells[results.cells["status"] == "done"]

    methods = []
    for name in [n for n, entry in harness.METHODS.items() if entry.family != "control"]:
        with suppress(NotApplicableError):
            harness.explain(model, x[:2], method=name, space=data.space)  # the first call of an operator is slower
            methods.append(name)
    maps, cells = done(methods, ["zero_fraction"]), done(list(TRIED), METRICS)

    def ratio(seconds, forwards, backwards):
        # What another method has paid for has no floor of its own.
        return seconds / ((forwards - backwards) * forward + backwards * both) if forwards else float("nan")

    print("| what | forward | backward | seconds | times the floor |\n| --- | --- | --- | --- | --- |")
    for method, row in maps.groupby("method", sort=False).first().iterrows():
        cost = (row["maps_seconds"], row["maps_forward"], row["maps_backward"])
        print(f"| maps of {method} | {cost[1]} | {cost[2]} | {cost[0]:.2f} | {ratio(*cost):.2f} |")
    for metric in cells["metric"].unique():
        for method in TRIED:
            row = cells[(cells["metric"] == metric) & (cells["method"] == method)]
            if len(row):
                cost = (row["seconds"].iloc[0], int(row["forward"].iloc[0]), int(row["backward"].iloc[0]))
                print(f"| {metric}, {method} | {cost[1]} | {cost[2]} | {cost[0]:.2f} | {ratio(*cost):.2f} |")


if __name__ == "__main__":
    main()
