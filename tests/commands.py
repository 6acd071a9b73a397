"""The commands that the READMEs show, and a folder in which a user could type them."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stdout

import numpy as np
import torch
from PIL import Image
from readmes import READMES, block, blocks
from safetensors.torch import save_file
from torch.nn import functional

import harness
from harness.cli import main

NET = """\
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )
"""
STUDY = """\
name: study
data: {source: folder:photos, samples: 6, select: stratified, resize: 16, crop: 16, mean: [0, 0, 0], std: [1, 1, 1]}
models:
  - {name: net, source: "file:net.py:build", weights: w.pt}
methods: [gradient, guided_backprop]
metrics: [parameter_randomization, completeness]
"""
METRIC = """

@metric(family="localization", direction="higher", headline="mine", needs=("masks",))
def mine(case):
    \"\"\"The share of the map that lies on the mask.\"\"\"
    on = (case.maps.clamp(min=0).sum(1, keepdim=True) * case.masks).flatten(1).sum(1)
    yield Score("mine", on / case.maps.clamp(min=0).flatten(1).sum(1).clamp(min=1e-9))
"""
KINDS = 3


def commands(readme):
    """The commands in the blocks of shell of a README, without comments; scripts are left out."""
    texts = [text for text in blocks("sh", readme) if not text.startswith("#!")]
    lines = "".join(texts).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", line)).strip())]


def scripts():
    """The scripts in the blocks of shell of all READMEs."""
    return [text for readme in READMES for text in blocks("sh", readme) if text.startswith("#!")]


def shell(command, folder):
    """Run a command in a folder as a user would, where `harness` is the installed command."""
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "200"}
    return subprocess.run(["sh", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def typed(command, folder):
    """Run a command in a folder, within this process, as importing all anew takes longer; its exit code."""
    words, _, file = command.strip().partition(" > ")
    *module, verb = shlex.split(words)[: 3 if words.startswith("python -m") else 1]
    arguments = shlex.split(words)[1 + len(module) :]
    before, sys.argv = sys.argv, [verb, *arguments]
    try:
        with chdir(folder), open(folder / file if file else os.devnull, "w") as out, redirect_stdout(out):
            runpy.run_module(verb, run_name="__main__") if module else main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def photographs(folder, side, count, seed=0):
    """Pictures of three kinds of waves, in one folder for each kind; returns them and their classes as tensors."""
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / 2
    waves = {
        "across": lambda phase: np.sin(across + phase),
        "checks": lambda phase: np.sin(across + phase) * np.sin(down + phase),
        "down": lambda phase: np.sin(down + phase),
    }
    pictures = []
    for name, wave in waves.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shades = wave(draw.uniform(0, 6))[..., None] * draw.uniform(0.3, 1, 3)
            pixels = (128 + 80 * shades + draw.normal(0, 10, (side, side, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
            pictures.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    return torch.stack(pictures), torch.arange(KINDS).repeat_interleave(count)


def trained(source, x, y, steps):
    """The network that `build` in a text returns, trained, and its accuracy."""
    scope = {}
    exec(source, scope)
    torch.manual_seed(0)
    network = scope["build"]()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network, float((network(x).argmax(1) == y).double().mean())


def furnish(folder):
    """What the pages presuppose: a network with weights, pictures, a plugin, studies, and runs of some nights."""
    (folder / "net.py").write_text(NET)
    x, y = photographs(folder / "photos", side=16, count=6)
    network, _ = trained(NET, x, y, steps=60)
    torch.save(network.state_dict(), folder / "w.pt")
    save_file(network.state_dict(), folder / "w.safetensors")
    Image.fromarray(np.uint8(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3))).save(folder / "dog.jpg")
    (folder / "mine.py").write_text(block("python", "def squared_gradient") + METRIC)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "fills.yaml").write_text(block("yaml", "name: fills"))
    results = folder / "results"
    harness.run(folder / "study.yaml", results / "study", views=False)
    harness.run(folder / "fills.yaml", results / "fills", samples=4, views=False)
    for run in ("base", "tonight", "nightly/1", "nightly/2"):
        shutil.copytree(results / "study", results / run)
