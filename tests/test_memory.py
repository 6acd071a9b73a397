"""Memory does not grow with samples, steps, draws, methods or rows: the peaks of small and large runs. Slow.

Importing takes most of a small run's peak, so that a large one is so large that what it would hold, if it held it,
would be more than a fifth of that: 3 MB for each map, input or copy of a block.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from made_folder import made_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"),
]

NET = """\
from torch import nn


def build():
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, 4))
"""
STUDY = {
    "name": "pictures",
    "data": {"source": "folder:images", "select": "stratified", "mean": [0.5] * 3, "std": [0.25] * 3},
    "models": [{"name": "net", "source": "file:net.py:build", "weights": "random"}],
    "methods": ["gradient"],
    "metrics": ["sparseness"],
}
FLIPPING = {"metric": "pixel_flipping", "fill": "grey"}
RANDOMIZATION = {"metric": "parameter_randomization", "cascade_draws": 0, "measures": ["spearman"]}
LARGE = 4000
# The peak of a process that starts fresh: a child inherits the ru_maxrss of whoever starts it.
PEAK = """
import re, sys, time
from pathlib import Path

def told(**numbers):
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(json.dumps({"peak": int(peak) / 1024, **numbers}))
"""
RUN = f"""
import json
import harness
{PEAK}
results = harness.run(sys.argv[1], sys.argv[1] + ".run", samples=int(sys.argv[2]))
assert "done" in set(results.cells["status"]) and results.failures.empty, results.failures["traceback"]
told()
"""
VIEW = f"""
import json
from harness.figures import write_figures
from harness.results import Results
from harness.table_files import write_tables
{PEAK}
started = time.perf_counter()
folder = Path(sys.argv[1])
results = Results.load(folder)
write_tables(results, folder / "tables")
tables = time.perf_counter() - started
write_figures(results, folder / "figures")
told(tables=tables, figures=time.perf_counter() - started - tables)
"""


def said(script, *arguments, cwd):
    words = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in "abcd":
        (folder / "images" / name).mkdir(parents=True)
    for index in range(LARGE):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "abcd"[index % 4] / f"{index:05d}.jpg")
    (folder / "net.py").write_text(NET)
    return folder


def grows(folder, name, small, large):
    """How many times the memory of a small run a large one takes; each is a number of samples and parts of a study."""

    def peak(size, samples, **parts):
        study = folder / f"{re.sub('[^a-z]', '_', name)}-{size}.yaml"
        study.write_text(yaml.safe_dump(STUDY | parts))
        return said(RUN, study.name, samples, cwd=folder)["peak"]

    little, much = peak("small", small[0], **small[1]), peak("large", large[0], **large[1])
    print(f"{name}: {little:.0f} MiB, then {much:.0f} MiB")
    return much / little


def test_twenty_times_the_samples_take_at_most_a_fifth_more_memory(pictures):
    parts = {"methods": ["gradient", "input_x_gradient"], "metrics": ["completeness", {**FLIPPING, "steps": 8}]}
    assert grows(pictures, "samples", (200, parts), (LARGE, parts)) <= 1.2


TEN_TIMES = {
    "steps of a curve": (128, lambda ten: {"metrics": [{**FLIPPING, "steps": 16 * ten}]}),
    "draws of networks": (128, lambda ten: {"metrics": [{**RANDOMIZATION, "full_draws": 20 * ten}]}),
    "draws of a method": (256, lambda ten: {"methods": [{"method": "smoothgrad", "samples": 10 * ten}]}),
    "methods": (256, lambda ten: {"methods": [{"method": "gradient", "name": f"map{i}"} for i in range(10 * ten)]}),
}


@pytest.mark.parametrize("what", TEN_TIMES)
def test_ten_times_as_many_take_at_most_a_fifth_more_memory(pictures, what):
    samples, parts = TEN_TIMES[what]
    assert grows(pictures, what, (samples, parts(1)), (samples, parts(10))) <= 1.2


def test_tables_and_figures_of_ten_million_rows_take_half_a_minute_and_four_gibibytes(tmp_path):
    assert made_folder(tmp_path, blocks=6) >= 10_000_000
    found = said(VIEW, tmp_path, cwd=tmp_path)
    print(f"tables {found['tables']:.1f} s, figures {found['figures']:.1f} s, peak {found['peak']:.0f} MiB")
    assert found["tables"] + found["figures"] < 30
    assert found["peak"] < 4096
