"""How a run ends before it is done, and what is kept: time, memory, devices, interrupts, full disks, other runs."""

import errno
import os
import signal
import time

import pytest
import torch

import harness
from harness import engine, interrupts
from harness.results import Results
from harness.store import Folder, write_atomically
from harness.types import StoppedError

PLUGIN = """
import os, signal, time
from pathlib import Path
import torch
from harness import Score, method, metric

HERE = Path(__file__).parent
SWITCH = {"device": True}

@method(family="test", cite="")
def small_batches_only(model, x, target):
    "Runs out of memory with more than three samples."
    if len(x) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return x * 1.0

@method(family="test", cite="")
def never_fits(model, x, target):
    "Runs out of memory with one sample."
    raise MemoryError("no room at all")

@method(family="test", cite="")
def slow(model, x, target):
    "Takes its time, and swallows what it can."
    try:
        time.sleep(30)
    except Exception:
        pass
    return x * 1.0

@method(family="test", cite="")
def loses_the_device(model, x, target):
    "As long as it is switched on."
    if SWITCH["device"]:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return x * 1.0

@method(family="test", cite="")
def interrupted(model, x, target):
    "Somebody presses Ctrl-C, and once more when there is a file."
    os.kill(os.getpid(), signal.SIGINT)
    if (HERE / "twice").exists():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    return x * 1.0

@metric(family="test", direction=None, headline="chunk")
def chunk(case):
    "How many samples go through at once."
    case.maps
    yield Score("chunk", torch.full((len(case.x),), float(case.chunk)))

@metric(family="test", direction=None, headline="chunk")
def again(case):
    "The same once more."
    yield from chunk(case)

@metric(family="test", direction=None, headline="chunk")
def greedy(case):
    "Needs a chunk of two."
    case.maps
    if case.chunk > 2:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    yield Score("chunk", torch.full((len(case.x),), float(case.chunk)))

@metric(family="test", direction=None, headline="seconds")
def sleepy(case):
    "Sleeps."
    time.sleep(30)
    yield Score("seconds", torch.zeros(len(case.x)))
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)

    def made(methods, metrics=("chunk",), **more):
        return {
            "name": "ends",
            "data": {"source": "digits", "samples": 12},
            "models": [{"name": "mlp", "source": "mlp", "weights": "random"}],
            "methods": list(methods),
            "metrics": list(metrics),
            "controls": False,
            "plugins": [str(tmp_path / "plugin.py")],
            **more,
        }

    return made


def states(results):
    return {(row["method"], row["metric"]): row["status"] for _, row in results.cells.iterrows()}


@pytest.mark.slow
def test_a_cell_that_does_not_fit_begins_again_with_half_the_chunk(study, tmp_path):
    metrics = ["chunk", "greedy", "again"]
    results = harness.run(study(["gradient", "small_batches_only"], metrics), tmp_path / "run")
    chunks = {(row["method"], row["metric"]): row["chunk"] for _, row in results.cells.iterrows()}
    assert chunks == {
        ("gradient", "chunk"): 64,
        ("gradient", "greedy"): 2,
        ("gradient", "again"): 2,
        ("small_batches_only", "chunk"): 2,
        ("small_batches_only", "greedy"): 2,
        ("small_batches_only", "again"): 2,
    }
    records = results.records.groupby(["method", "metric"], observed=True)["value"].first()
    assert {key: records[key] for key in chunks} == chunks


@pytest.mark.slow
def test_after_a_kill_the_chunk_is_the_one_that_was_found(study, tmp_path):
    metrics = ["chunk", "greedy", "again"]
    whole = harness.run(study(["gradient"], metrics), tmp_path / "run")
    last = whole.cells.set_index("metric").loc["again", "key"]
    (tmp_path / "run" / "cells" / f"{last}.parquet").unlink()
    resumed = harness.run(study(["gradient"], metrics), tmp_path / "run")
    assert resumed.cells["chunk"].tolist() == [64, 2, 2]
    assert resumed.records.equals(whole.records)


@pytest.mark.slow
def test_two_labels_of_one_cell_are_computed_once(study, tmp_path):
    results = harness.run(study(["gradient"], ["greedy", {"name": "too", "metric": "greedy"}]), tmp_path / "run")
    assert results.cells["key"].nunique() == 1
    assert results.cells["seconds"].nunique() == 1


@pytest.mark.slow
def test_what_does_not_fit_one_by_one_is_a_failure(study, tmp_path):
    results = harness.run(study(["never_fits", "gradient"]), tmp_path / "run")
    assert states(results) == {("never_fits", "chunk"): "failed", ("gradient", "chunk"): "done"}
    assert results.failures["error"].tolist() == ["MemoryError: no room at all"]


def test_a_cell_has_its_time_and_no_more(study, tmp_path):
    started = time.time()
    metrics = ["zero_fraction", "sleepy", "chunk"]
    results = harness.run(study(["slow", "gradient"], metrics), tmp_path / "run", cell_seconds=0.5)
    assert time.time() - started < 15
    assert states(results) == {
        ("slow", "zero_fraction"): "failed",
        ("slow", "sleepy"): "failed",
        ("slow", "chunk"): "failed",
        ("gradient", "zero_fraction"): "done",
        ("gradient", "sleepy"): "failed",
        ("gradient", "chunk"): "done",
    }
    assert set(results.failures["error"]) == {"TimeoutError: took longer than the 0.5 seconds that a cell may take"}
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_limit_must_be_positive(study, tmp_path):
    with pytest.raises(harness.InputError, match=r"cell_seconds must be more than 0, got 0\.0"):
        harness.run(study(["gradient"]), tmp_path / "run", cell_seconds=0.0)
    assert not (tmp_path / "run").exists()


def test_a_lost_device_stops_the_run_and_its_cell_comes_last(study, tmp_path):
    methods = ["loses_the_device", "gradient", "input_x_gradient"]
    with pytest.raises(StoppedError, match=r"device was lost in mlp · loses_the_device · chunk .* comes last then"):
        harness.run(study(methods), tmp_path / "run")
    assert set(states(Results.load(tmp_path / "run")).values()) == {"failed", "missing"}
    with pytest.raises(StoppedError):
        harness.run(study(methods), tmp_path / "run")
    second = Results.load(tmp_path / "run")
    assert states(second) == {
        ("loses_the_device", "chunk"): "failed",
        ("gradient", "chunk"): "done",
        ("input_x_gradient", "chunk"): "done",
    }


@pytest.mark.parametrize(
    ("error", "lost", "memory"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory."), False, True),
        (MemoryError(), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error: in a text"), False, False),
    ],
)
def test_errors_are_told_apart(error, lost, memory):
    assert engine.is_lost_device(error) == lost
    assert engine.is_out_of_memory(error) == memory


def test_the_first_interrupt_finishes_the_cell_and_the_run_goes_on_from_there(study, tmp_path):
    told = []
    methods = ["gradient", "interrupted", "input_x_gradient"]
    with pytest.raises(KeyboardInterrupt):
        harness.run(study(methods), tmp_path / "run", progress=lambda *words: told.append(words))
    assert ("interrupted", 0.0, "finishing this cell; Ctrl-C again stops at once") in told
    assert states(Results.load(tmp_path / "run")) == {
        ("gradient", "chunk"): "done",
        ("interrupted", "chunk"): "done",
        ("input_x_gradient", "chunk"): "missing",
    }
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert set(states(harness.run(study(methods), tmp_path / "run")).values()) == {"done"}


def test_the_second_interrupt_stops_at_once(study, tmp_path):
    (tmp_path / "twice").touch()
    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        harness.run(study(["interrupted", "gradient"]), tmp_path / "run")
    assert time.time() - started < 5
    assert set(states(Results.load(tmp_path / "run")).values()) == {"missing"}


def test_interrupts_that_somebody_else_handles_stay_theirs():
    def theirs(*_):
        return None

    before = signal.signal(signal.SIGINT, theirs)
    try:
        with interrupts.finishing(lambda: None) as stopping:
            assert signal.getsignal(signal.SIGINT) is theirs
            assert not stopping()
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_runs_do_not_write_into_one_folder(study, tmp_path):
    with (
        Folder(tmp_path / "run").taken(),
        pytest.raises(harness.InputError, match=r"another run is writing into .*run: wait for it"),
    ):
        harness.run(study(["gradient"]), tmp_path / "run")
    assert not (tmp_path / "run" / "cells").exists()
    assert set(states(harness.run(study(["gradient"]), tmp_path / "run")).values()) == {"done"}


def test_what_a_killed_run_left_half_written_is_swept_away(study, tmp_path):
    harness.run(study(["gradient"]), tmp_path / "run")
    left = tmp_path / "run" / "cells" / ".key.parquet.0123456789abcdef.scratch"
    left.write_bytes(b"half")
    harness.run(study(["gradient"]), tmp_path / "run")
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more_stops_the_run_and_loses_nothing(study, tmp_path, monkeypatch, code):
    written, sync = [], os.fsync

    def full(file):
        written.append(file)
        if len(written) > 10:
            raise OSError(code, os.strerror(code))
        sync(file)

    methods = ["gradient", "input_x_gradient", "small_batches_only"]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoppedError, match=rf"cannot write .* \({os.strerror(code)}\): what is finished is kept"):
        harness.run(study(methods, ["chunk", "zero_fraction"]), tmp_path / "run")
    monkeypatch.undo()
    half = Results.load(tmp_path / "run")
    assert set(states(half).values()) == {"done", "missing"}
    assert not list((tmp_path / "run").rglob(".*"))
    assert set(states(harness.run(study(methods, ["chunk", "zero_fraction"]), tmp_path / "run")).values()) == {"done"}


def test_other_errors_of_the_system_are_what_they_are(tmp_path, monkeypatch):
    def odd(_file):
        raise OSError(errno.EINVAL, "odd")

    monkeypatch.setattr(os, "fsync", odd)
    with pytest.raises(OSError, match="odd"):
        write_atomically(tmp_path / "file", b"content")
