"""Memory does not grow with the number of samples: a study of a folder of pictures, small and large. Slow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

NET = """\
from torch import nn


def build():
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, 4))
"""
STUDY = """\
name: pictures
data: {source: "folder:images", select: stratified, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
models: [{name: net, source: "file:net.py:build", weights: random}]
methods: [gradient, input_x_gradient]
metrics: [completeness, {metric: pixel_flipping, steps: 8, fill: grey}]
"""
SMALL, LARGE = 200, 4000
# The peak of a process that starts fresh: a child inherits the ru_maxrss of whoever starts it.
RUN = """\
import re, sys
from pathlib import Path
import harness
harness.run("study.yaml", sys.argv[1], samples=int(sys.argv[1]))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak(folder, samples):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(samples)], cwd=folder, capture_output=True, text=True, check=True, timeout=900
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_twenty_times_the_samples_take_at_most_a_fifth_more_memory(tmp_path):
    generator = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "images" / name).mkdir(parents=True)
    for index in range(LARGE):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "abcd"[index % 4] / f"{index:05d}.jpg")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "study.yaml").write_text(STUDY)
    assert peak(tmp_path, LARGE) <= 1.2 * peak(tmp_path, SMALL)
