"""Cost of the perturbation methods against the bare forward passes that they need. Prints a Markdown table.

The floor is the number of passes times what the bare network needs for one at its best batch size; beside it stands the
same for batches of the chunk. Bare passes are timed before and after each method, in the same run, because machines are
noisy. Memory is the peak above that of the network with one batch.
"""

import argparse
import platform
import subprocess
import sys
import time

import torch
import torchvision

from harness import METHODS
from harness.api import torch_device
from harness.case import Explainer, Passes, counted
from harness.space import InputSpace

SPACE = InputSpace("image", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BATCHES, PASSES = (2, 4, 8, 64), 200
WORK = {
    "occlusion": {"window": 16, "stride": 8, "baseline": "mean"},
    "rise": {"samples": 4000, "baseline": "mean"},
    "lime": {"samples": 1000, "baseline": "mean"},
    "kernel_shap": {"samples": 1024, "baseline": "mean"},
    "score_cam": {"baseline": "mean"},
}


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bare(model, x, device, batch):
    """Seconds for one sample in batches of this size."""
    inputs, rounds = x.expand(batch, -1, -1, -1).contiguous(), max(3, PASSES // batch)
    with torch.no_grad():
        model(inputs)
        started = clock(device)
        for _ in range(rounds):
            model(inputs)
    return (clock(device) - started) / (rounds * batch)


def peak(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 2**10


def measure(name, side, chunk, share, device):
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None).eval().to(device)
    # Smooth, so that it has superpixels.
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 9, 9), size=(side, side), mode="bicubic").to(device)
    target = torch.zeros(1, dtype=torch.long, device=device)
    options = dict(WORK[name])
    if "samples" in options:
        options["samples"] = max(int(options["samples"] * share), 2 * chunk)
    explainer, passes = Explainer(METHODS[name], METHODS[name].resolve(options)), Passes()
    batches = sorted({*BATCHES, chunk})
    times = {batch: [bare(model, x, device, batch)] for batch in batches}
    memory, started = peak(device), clock(device)
    with counted(model, passes):
        explainer.maps(model, x, target, SPACE, ["one"], 0, chunk=chunk)
    seconds = clock(device) - started
    grown = peak(device) - memory
    for batch in batches:
        times[batch].append(bare(model, x, device, batch))
    mean = {batch: sum(found) / 2 for batch, found in times.items()}
    best = min(mean, key=mean.__getitem__)
    each = seconds / passes.forward
    print(
        f"| {name} | {passes.forward} | {seconds:.1f} | {1e3 * each:.2f} | {each / mean[chunk]:.2f} "
        f"| {each / mean[best]:.2f} (batches of {best}) | {grown:.0f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0, help="of the masks")
    parser.add_argument("--only", default="", help="one method, without the head of the table")
    arguments = parser.parse_args()
    device = torch_device(arguments.device)
    if arguments.only:
        measure(arguments.only, arguments.side, arguments.chunk, arguments.share, device)
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"MobileNetV2, {arguments.side} x {arguments.side}, one sample, chunk {arguments.chunk}, {name}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| method | passes | seconds | ms a pass | times bare passes | times the floor | MiB more |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for each in WORK:
        # Each in a process of its own, so that the peak of memory is its own.
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", each], check=True)


if __name__ == "__main__":
    main()
