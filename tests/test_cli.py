"""The command line: exit codes, messages and files, as a user meets them."""

import io
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import yaml
from test_engine import PLUGIN, small

from harness.cli import main

HARNESS = [sys.executable, "-c", "from harness.cli import main; main()"]


def call(*arguments, cwd="."):
    """Run the command within this process, as importing all anew takes longer than most of what it does."""
    out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["harness", *map(str, arguments)]
    try:
        with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(small(**changes)))
    return path


@pytest.mark.slow
def test_a_run_writes_tables_and_figures_and_ends_in_three_lines(tmp_path):
    study = written(tmp_path, methods=["gradient", "guided_backprop"])
    done = call("run", study, "--samples", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
    assert [line.partition(":")[0] for line in last] == ["held", "did not hold", "look at"]
    folder = tmp_path / "results" / "small"
    names = (
        "glance leaderboard headlines verdicts thresholds sensitivity cascade stages global partly_random "
        "comparisons rankings families left_out across_models classes agreement fills summary cost"
    ).split()
    assert sorted(p.name for p in (folder / "tables").iterdir()) == sorted(
        f"{n}.{e}" for n in names for e in ("csv", "md", "parquet", "tex")
    )
    for figure in ("cascade-mnist-cnn", "pixel_flipping-mnist-cnn", "survival-parameter_randomization-mnist-cnn"):
        assert (folder / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    shown = call("table", folder, "--name", "verdicts")
    assert shown.returncode == 0
    assert "parameter_randomization" in shown.stdout
    strict = ("--pass-below", "0.01", "--fail-above", "0.02")
    assert call("table", folder, "--name", "verdicts", *strict).returncode == 0
    refused = call("table", folder, "--pass-below", "0.6", "--fail-above", "0.3")
    assert refused.returncode == 2
    assert "expected 0 < --pass-below <= --fail-above < 1, got 0.6 and 0.3" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quickstrat"), "did you mean quickstart"),
        (("run", "quickstart", "--samples", "0"), "samples must be at least 1, got 0"),
        (("run", "quickstart", "--samples", "5000", "--out", "x"), "5000 samples asked for, mnist-5k has 1000"),
        (("table", "nowhere"), "no run in 'nowhere'"),
        (("reproduce", "adebayo2019"), "did you mean adebayo2018"),
        (("reproduce", "bluecher2024", "--imagenet", "."), "bluecher2024 takes no 'imagenet'; known: cifar"),
        (("reproduce", "sixt2020", "--given", "cifar"), "--given: expected NAME=DIR, got 'cifar'"),
        (("reproduce", "sixt2020", "--given", "cifar=x"), "expected a folder with resnet20.safetensors, test, train"),
    ],
)
def test_wrong_input_exits_with_two_and_one_message(tmp_path, arguments, message):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_misspelt_option_exits_with_two_and_says_where(tmp_path):
    study = written(tmp_path, methods=[{"method": "smoothgrad", "nois": 0.1}])
    done = call("run", study, cwd=tmp_path)
    assert done.returncode == 2
    assert "methods[0].nois: smoothgrad has no option 'nois'; did you mean noise?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_failing_method_exits_with_one_and_the_study_ends(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    study = written(
        tmp_path,
        plugins=["mine.py"],
        methods=["fails_on_purpose", "gradient"],
        metrics=["completeness", "pixel_flipping"],
    )
    done = call("run", study, cwd=tmp_path)
    assert done.returncode == 1
    assert "fails_on_purpose · pixel_flipping: RuntimeError: a mistake in a method" in done.stderr
    assert "1 failed cell" in done.stdout or "2 failed cells" in done.stdout
    assert "held:" in done.stdout


@pytest.mark.slow
def test_a_broken_control_exits_with_one_and_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from harness import method\n\n\n"
        "@method(family='control', expected={'parameter_randomization': 'FAIL'})\n"
        "def liar(model, x, target):\n"
        "    'Says that it ignores the network, and does not.'\n"
        "    from harness.methods.gradients import input_gradient\n"
        "    return input_gradient(model, x, target)\n"
    )
    study = written(tmp_path, plugins=["mine.py"], methods=["gradient"], metrics=["parameter_randomization"])
    done = call("run", study, cwd=tmp_path)
    assert done.returncode == 1
    assert "BROKEN CONTROL: liar is PASS, must be FAIL" in done.stdout


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", ["integrated_gradients", "baseline=<fill>", "steps=32", "sobel"]),
        ("metrics", ["parameter_randomization", "full_draws=10", "pixel_flipping"]),
        ("models", ["mnist-cnn"]),
        ("data", ["mnist-5k"]),
        ("studies", ["quickstart"]),
    ],
)
def test_list_names_what_is_there(kind, names):
    done = call("list", kind)
    assert done.returncode == 0
    for name in names:
        assert name in done.stdout


def test_help_has_worked_examples():
    assert "harness run quickstart" in call("run", "--help").stdout


@pytest.mark.slow
def test_an_interrupt_exits_with_130_and_keeps_what_is_finished(tmp_path):
    study = written(tmp_path)
    process = subprocess.Popen(
        [*HARNESS, "run", str(study)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Whoever runs the tests in the background has it ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    cells, deadline = tmp_path / "results" / "small" / "cells", time.time() + 120
    while not list(cells.glob("*.parquet")):
        assert time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"finished cells are kept" in message
    assert not list(cells.glob(".*"))


def test_it_is_a_command_of_its_own():
    done = subprocess.run([*HARNESS, "rum"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "No such command 'rum'" in done.stderr


def test_an_unknown_verb_or_option_exits_with_two():
    assert call("rum").returncode == 2
    assert call("run", "quickstart", "--smaples", "5").returncode == 2
