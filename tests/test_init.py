"""The five-minute path: a fresh folder with a network, weights and samples, `harness init`, `harness run`."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import wavfile
from torch import nn

from harness.arguments import entry_of, guess_data
from harness.init import init_study
from harness.progress import silent
from harness.study import load_study
from harness.types import InputError

NET = """\
from torch import nn
import torch.nn.functional as F
from layers import Block


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(self.block(x)).mean((2, 3)))


def build():
    return Net()
"""
LAYERS = """\
from torch import nn


class Block(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 6, 5, 2)
"""
HARNESS = [sys.executable, "-c", "from harness.cli import main; main()"]


def call(*arguments, cwd):
    return subprocess.run([*HARNESS, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def fresh(tmp_path):
    """A folder as somebody has it: a network in a file, its weights as a training script left them, pictures."""
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "layers.py").write_text(LAYERS)
    generator = np.random.default_rng(0)
    for name in "cat", "dog", "owl":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.jpg")
    torch.manual_seed(0)
    network = nn.ModuleDict({"block": nn.Conv2d(3, 6, 5, 2), "head": nn.Linear(6, 3)})
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "w.pt")
    return tmp_path


@pytest.mark.slow
def test_init_and_run_in_a_fresh_folder(fresh):
    preprocessed = "{source: folder:photos, resize: 24, crop: 24, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"
    done = call("init", "file:mynet.py:build", preprocessed, "--weights", "w.pt", cwd=fresh)
    assert done.returncode == 0, done.stderr
    study = load_study(fresh / "study.yaml")
    assert study.models[0].name == "mynet"
    assert study.models[0].data.options["resize"] == 24
    assert {"gradient", "guided_backprop", "occlusion"} <= {method.label for method in study.methods}
    done = call("run", "study.yaml", "--samples", 4, cwd=fresh)
    assert done.returncode == 0, done.stderr
    assert "held:" in done.stdout
    assert (fresh / "results" / "study" / "figures" / "cascade-mynet.png").is_file()
    again = call("init", "file:mynet.py:build", "photos", "--weights", "w.pt", cwd=fresh)
    assert (again.returncode, "study.yaml exists already" in again.stderr) == (2, True)


def test_what_had_to_be_assumed_is_said_in_the_study(fresh):
    entry, assumed = entry_of("file:mynet.py:build", "photos", "w.pt", fresh)
    assert entry.data.options["mean"] == [0.0, 0.0, 0.0]
    assert "nothing says how the model was trained" in assumed[0]
    _, assumed = entry_of("torchvision:resnet18", "photos", "IMAGENET1K_V1", fresh)
    assert assumed == []  # these weights bring their preprocessing


def study_of(model, data, folder, weights=None):
    cpu = torch.device("cpu")
    text = init_study(model, data, weights, "mine", folder, device=cpu, progress=silent)
    return text, load_study({**yaml.safe_load(text)})


@pytest.mark.slow
def test_a_table_gets_what_applies_to_tables(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 4))
    label = (rows[:, 0] > 0).astype(int)
    held_out = np.arange(60) % 3 == 0
    table = np.column_stack([rows, label, held_out])
    np.savetxt(tmp_path / "table.csv", table, delimiter=",", header="a,b,c,d,label,test", comments="", fmt="%.4g")
    text, study = study_of("mlp", "{source: csv:table.csv, held_out: test}", tmp_path)
    assert "grad_cam does not apply: needs positions, got a table" in text
    assert "grad_cam" not in {method.label for method in study.methods}
    assert {metric.label for metric in study.metrics} >= {"random_logit", "completeness", "pixel_flipping"}


@pytest.mark.slow
def test_recordings_become_a_study_of_signals(tmp_path):
    time = np.arange(800) / 800
    for digit in range(2):
        for index in range(4):
            wave = (20000 * np.sin(2 * np.pi * (20 + 30 * digit + index) * time)).astype(np.int16)
            wavfile.write(tmp_path / f"{digit}_{index}.wav", 800, wave)
    data = "{source: audio:., rate: 800, labels: '(\\d)_', held_out: '_[01].wav'}"
    _, study = study_of("waveform-cnn", data, tmp_path, "random")
    assert study.models[0].data.options["labels"] == r"(\d)_"
    assert "occlusion" in {method.label for method in study.methods}


@pytest.mark.parametrize(
    ("name", "source"),
    [("x.npz", "npz:x.npz"), ("x.csv", "csv:x.csv"), ("p/a.JPG", "folder:p"), ("w/a.wav", "audio:w")],
)
def test_a_bare_path_is_recognized(tmp_path, name, source):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert guess_data(source.partition(":")[2], tmp_path) == source


def test_paths_that_say_nothing_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="empty: no pictures"):
        guess_data("empty", tmp_path)
    with pytest.raises(InputError, match=r"notes.txt: expected a folder, or a file that ends in .npz or .csv"):
        guess_data("notes.txt", tmp_path)
    assert guess_data("mnist-5k", tmp_path) == "mnist-5k"


@pytest.mark.slow
def test_pictures_of_one_size_keep_it_and_the_doctor_tells_what_was_assumed(fresh):
    for picture in (fresh / "photos").rglob("*.jpg"):
        Image.open(picture).resize((24, 24)).save(picture)
    entry, assumed = entry_of("file:mynet.py:build", "photos", "w.pt", fresh)
    assert entry.data.options["resize"] == 24
    assert "24 x 24 pixels, their own size" in assumed[0]
    done = call("doctor", "file:mynet.py:build", "photos", "--weights", "w.pt", cwd=fresh)
    assert (done.returncode, "finding: nothing says how the model was trained" in done.stdout) == (1, True)
