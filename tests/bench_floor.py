"""What the bare eager model needs for a pass, measured around the work that is compared with it."""

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import cpu_count
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from harness.case import Passes, counted
from harness.networks import CifarResNet
from harness.space import InputSpace

SPACE = InputSpace("image", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BATCHES = (16, 32, 64, 128, 256)
LEAST, ROUNDS = 1.0, 3
"""Seconds after which work is not repeated any more, and how often at most."""
WINDOW = 0.5
"""Seconds that the bare model runs on end whenever it is timed: the best single batch of a noisy machine is no
throughput, and work that takes a second never meets it throughout."""


def build():
    """The network that everything is measured on."""
    return CifarResNet((3, 32, 32), 10, depth=20)


def network(weights=None):
    """ResNet-20 with random weights or those of a safetensors file, in evaluation mode."""
    torch.manual_seed(0)
    model = build()
    if weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    return model.eval()


def pictures(count, folder=None, side=32):
    """So many pictures of a folder, spread evenly over its files; without one, smooth ones, which have superpixels."""
    if not folder:
        coarse = torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))
        pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").sigmoid()
        return normalized(pixels)
    from torchvision.io import ImageReadMode, read_image

    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < count:
        raise SystemExit(f"--images {folder}: {len(files)} pictures, but --samples {count}")
    chosen = [files[index * len(files) // count] for index in range(count)]
    return normalized(torch.stack([read_image(str(path), ImageReadMode.RGB) for path in chosen]) / 255)


def normalized(pixels):
    """Pixels in [0, 1] in the units of the model's input."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPACE.mean, SPACE.std))
    return (pixels - mean) / std


@dataclass(frozen=True)
class Spent:
    """What work took, and what parts of it took."""

    seconds: float
    forward: int
    backward: int
    parts: Mapping[str, "Spent"] = field(default_factory=dict)


@dataclass(frozen=True)
class Work(Spent):
    """The fastest of some rounds, and what the bare model would have needed for the same passes around that time."""

    floor: float = 0.0

    @property
    def times(self):
        """How many times the floor; not a number where there were no passes."""
        return self.seconds / self.floor if self.floor else float("nan")


class Floor:
    """Seconds of the bare model for a forward sample-pass, and for a forward and a backward one.

    All batch sizes are tried at first; later the best is timed again before and after all work, because machines are
    noisy and a ratio should be of one and the same minute. With `quick` everything is timed once.
    """

    def __init__(self, model, x, batches=BATCHES, quick=False):
        self.model, self.x, self.device, self.quick = model, x, x.device, quick
        self.passes = {"forward": self._forward, "both": self._both}
        swept = {kind: {batch: self._time(kind, batch) for batch in batches} for kind in self.passes}
        self.batch = {kind: min(times, key=times.__getitem__) for kind, times in swept.items()}
        self.first = tuple(min(times.values()) for times in swept.values())

    def now(self):
        """The two times."""
        return tuple(self._time(kind, self.batch[kind]) for kind in self.passes)

    def of(self, spent, times):
        """What was spent, beside the floor of its passes."""
        forward, both = times
        floor = (spent.forward - spent.backward) * forward + spent.backward * both
        parts = {name: self.of(part, times) for name, part in spent.parts.items()}
        return Work(spent.seconds, spent.forward, spent.backward, parts, floor)

    def clock(self):
        """The time when everything so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _time(self, kind, batch):
        inputs = self.x[torch.arange(batch, device=self.device) % len(self.x)]
        if not self.quick:
            self.passes[kind](inputs)
        started, done = self.clock(), 0
        while not done or (self.clock() < started + WINDOW and not self.quick):
            self.passes[kind](inputs)
            done += batch
        return (self.clock() - started) / done

    def _forward(self, inputs):
        with torch.no_grad():
            self.model(inputs)

    def _both(self, inputs):
        leaf = inputs.clone().requires_grad_()
        torch.autograd.grad(self.model(leaf).sum(), leaf)


def in_turn(floor: Floor, runs: Mapping[str, Callable[[], Spent]], rounds: int = 1) -> dict[str, Work]:
    """The fastest round of each, one after the other in every round, with the floor measured in between.

    What is short is repeated until it has taken `LEAST` seconds.

    Args:
        floor: of the model that they use.
        runs: name -> what does the work once and says what it took.
        rounds: at least, unless the floor is quick.
    """
    found: dict[str, list[Spent]] = {name: [] for name in runs}
    times = [floor.now()]
    while True:
        for name, run in runs.items():
            found[name].append(run())
            times.append(floor.now())
        done = max(map(len, found.values()))
        total = sum(spent.seconds for each in found.values() for spent in each)
        if floor.quick or (done >= rounds and (total >= LEAST * len(runs) or done >= ROUNDS)):
            break
    best = tuple(min(each) for each in zip(*times, strict=True))
    return {name: floor.of(min(each, key=lambda spent: spent.seconds), best) for name, each in found.items()}


def clocked(floor: Floor, model: nn.Module, work: Callable[[], object]) -> Spent:
    """What a call takes, with the passes through `model` and its copies."""
    passes = Passes()
    with counted(model, passes):
        started = floor.clock()
        work()
        seconds = floor.clock() - started
    return Spent(seconds, passes.forward, passes.backward)


def hardware(device):
    """The machine in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    parts = [f"{processor}, {cpu_count()} cores, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}"])


def markdown(frame: pd.DataFrame) -> str:
    """A table with numbers as short as they are read."""

    def cell(value):
        if not isinstance(value, float):
            return str(value)
        if math.isnan(value):
            return ""
        return f"{value:.0f}" if value >= 1000 or not value else f"{value:#.3g}".rstrip(".")

    rows = [frame.columns, ["---"] * len(frame.columns), *(map(cell, row) for row in frame.itertuples(index=False))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
