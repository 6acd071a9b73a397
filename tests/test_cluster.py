"""On Ray: the bits of the process itself, whatever happens to a worker, and nothing is computed twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_engine import assert_same_rows

import harness
from harness import InputError, Results
from harness.cluster import _next, check_engine, execute_on_ray
from harness.plan import plan
from harness.plugins import load_file
from harness.preparation import CHUNK
from harness.progress import silent
from harness.study import load_study
from harness.subjects import subject_of_entry
from harness.worker import Job, Order, Worker

HARNESS = [sys.executable, "-P", "-c", "from harness.cli import main; main()"]

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
"""

PLUGIN = """
import os, signal, time
from pathlib import Path
from harness import Score, method, metric

HERE = Path(__file__).parent

@method(family="gradient")
def fails_on_purpose(model, x, target):
    "A method with a mistake."
    raise RuntimeError("a mistake in a method")

@metric(family="descriptor", direction=None, headline="none")
def deadly(case):
    "A metric that no process survives."
    os.kill(os.getpid(), signal.SIGKILL)
    yield

@metric(family="descriptor", direction=None, headline="largest")
def noted(case):
    "The largest value of each map; each call leaves a line."
    if len(case.samples) > 2:  # fewer are a trial of what it costs
        with (HERE / "calls").open("a") as file:
            file.write(f"{case.explainer.method.name} {case.source.model_seed} {case.samples[0]}\\n")
    yield Score("largest", case.maps.flatten(1).amax(1))

@metric(family="descriptor", direction=None, headline="smallest")
def sleepy(case):
    "The smallest value of each map; whoever calls it first, where that is wanted, says who he is and falls asleep."
    if len(case.samples) > 2 and (HERE / "sleep").exists():
        try:
            (HERE / "sleep").rename(HERE / "asleep")
        except FileNotFoundError:  # another one is asleep
            pass
        else:
            (HERE / "asleep").write_text(str(os.getpid()))
            time.sleep(600)
    yield Score("smallest", case.maps.flatten(1).amin(1))
"""


ONE = [{"source": "file:net.py:build", "weights": "random"}]


def written(folder, name="small", **changes):
    """A study of two models and two blocks, in a file; its paths are relative to it."""
    study = {
        "name": name,
        "data": {"source": "npz:data.npz", "mean": [0.0], "std": [1.0]},
        "models": [{"source": "file:net.py:build", "weights": "random", "model_seed": [0, 1]}],
        "methods": ["gradient", {"method": "smoothgrad", "samples": 3}, "fails_on_purpose"],
        "metrics": [
            "noted",
            "sleepy",
            "completeness",
            {"metric": "parameter_randomization", "full_draws": 1, "cascade_draws": 1},
            {"metric": "pixel_flipping", "steps": 4, "fill": ["black", "noise"]},
        ],
        "plugins": ["mine.py"],
        "controls": False,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}))
    return path


def calls(folder):
    """What was computed, a line for each call."""
    return sorted((folder / "calls").read_text().splitlines())


def forget_calls(folder):
    (folder / "calls").unlink(missing_ok=True)


def calls_of(results):
    """The calls that the cells of `noted` take, one each."""
    cells = results.cells[(results.cells["metric"] == "noted") & (results.cells["status"] == "done")]
    rows = results.records[results.records["cell"].isin(cells["key"])].drop_duplicates("cell")
    return sorted(f"{row['method']} {row['model_seed']} {row['sample']}" for _, row in rows.iterrows())


def prepare_to_sleep(folder):
    """Let the first who calls `sleepy` fall asleep."""
    (folder / "asleep").unlink(missing_ok=True)
    (folder / "sleep").touch()


def pid_of_sleeper(folder):
    """Who has fallen asleep; empty if nobody has."""
    asleep = folder / "asleep"
    return asleep.read_text() if asleep.exists() else ""


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two machines, as far as Ray can tell, with one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    machine = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=machine)
    made.add_node(**machine)
    yield made.address
    made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the studies name; the plugin is known to all tests of this module."""
    made = tmp_path_factory.mktemp("study")
    x, y = torch.rand(260, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(260) % 3
    np.savez(made / "data.npz", x=x.numpy(), y=y.numpy())
    (made / "net.py").write_text(NET)
    (made / "mine.py").write_text(PLUGIN)
    # A name that a library imports, and finds where it should.
    (made / "queue.py").write_text("raise SystemExit('the wrong queue')\n")
    load_file(made / "mine.py")
    return made


@pytest.fixture(scope="module")
def here(folder):
    """The study in the process itself."""
    forget_calls(folder)
    results = harness.run(written(folder), folder / "here", views=False, save_maps=True)
    assert calls(folder) == calls_of(results)
    assert len(calls_of(results)) == 2 * 2 * 2
    return results


@pytest.mark.slow
def test_two_machines_compute_the_same_bits_and_a_failing_cell_is_a_failure(folder, here, cluster, monkeypatch):
    monkeypatch.chdir(folder)
    forget_calls(folder)
    told = []
    there = harness.run(
        "small.yaml",
        "there",
        engine="ray",
        address=cluster,
        views=False,
        save_maps=True,
        progress=lambda *report: told.append(report),
    )
    kept = [path.relative_to(folder / "here") for path in (folder / "here").rglob("*.npz")]
    assert len(kept) > 2 * 2 * 2
    for path in kept:
        ours, theirs = np.load(folder / "here" / path), np.load(folder / "there" / path)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files)
    assert len(here.records) > 5000
    assert_same_rows(here.records, there.records)
    columns = ["key", "model", "method", "metric", "status", "maps_forward", "maps_backward", "code", "torch", "chunk"]
    assert here.cells[columns].equals(there.cells[columns])
    assert list(here.failures["key"]) == list(there.failures["key"])
    assert set(there.failures["error"]) == {"RuntimeError: a mistake in a method"}
    assert "in fails_on_purpose" in there.failures["traceback"].iloc[0]
    assert len(there.failures) == 2 * 2 * 5
    assert calls(folder) == calls_of(here)
    fractions = [fraction for task, fraction, _ in told if task == "cells"]
    assert fractions == sorted(fractions)
    assert ("cells", 1 - 11 / 12, "net · gradient") in told
    assert not list((folder / "there").rglob(".*"))


@pytest.mark.slow
def test_a_worker_is_killed_and_only_what_it_had_not_finished_is_computed_again(folder, here, cluster):
    forget_calls(folder)
    prepare_to_sleep(folder)
    cells, survived = folder / "killed" / "cells", {}

    def kill():
        # Everything else is done by the other worker in the meantime.
        wait_for(lambda: pid_of_sleeper(folder))
        wait_for(lambda: len(list(cells.glob("*.parquet"))) >= 20)
        survived.update({path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cells.glob("*.parquet")})
        os.kill(int(pid_of_sleeper(folder)), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = harness.run(folder / "small.yaml", folder / "killed", engine="ray", address=cluster, views=False)
    thread.join(1)
    assert 20 <= len(survived) < len(list(cells.glob("*.parquet")))
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in survived} == survived
    assert calls(folder) == calls_of(here)
    assert_same_rows(here.records, results.records)
    assert list(here.cells["status"]) == list(results.cells["status"])


@pytest.mark.slow
def test_a_cell_that_no_worker_survives_is_a_failure_and_the_others_of_its_group_are_computed(
    folder, cluster, monkeypatch
):
    monkeypatch.setattr("harness.cluster.RETRIES", 1)
    study = written(folder, "deadly", models=ONE, methods=["gradient"], metrics=["deadly", "noted", "completeness"])
    results = harness.run(study, folder / "deadly", engine="ray", address=cluster, samples=8, views=False)
    assert list(results.cells["status"]) == ["failed", "done", "not_applicable"]
    assert list(results.failures["error"]) == ["WorkerLost: 2 Ray workers died while they computed this cell"]
    assert results.failures["traceback"].str.len().min() > 50


@pytest.mark.slow
def test_a_connection_that_is_there_is_used_and_kept(folder, cluster):
    import ray

    study = written(folder, "borrowed", models=ONE, methods=["gradient"], metrics=["completeness"])
    with chdir("/"):
        ray.init(cluster, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(InputError, match="Ray is connected already"):
            harness.run(study, folder / "borrowed", engine="ray", address=cluster, views=False)
        results = harness.run(study, folder / "borrowed", engine="ray", samples=4, views=False)
        assert set(results.cells["status"]) == {"not_applicable"}
        groups, job = planned(study)
        with pytest.raises(InputError, match="no machine of the cluster has 1 GPU for a worker"):
            execute_on_ray(groups, replace(job, device=torch.device("cuda")), address=None, progress=silent)
        with pytest.raises(InputError, match="has 64 CPU for a worker, as many as torch has threads here"):
            execute_on_ray(groups, replace(job, threads=64), address=None, progress=silent)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_what_only_this_process_knows_is_an_error_that_says_so(folder, cluster):
    @harness.method(family="gradient")
    def mine_alone(model, x, target):
        """Known in this process."""
        return x

    study = written(folder, "alone", models=ONE, methods=["mine_alone"], metrics=["noted"])
    with pytest.raises(InputError, match=r"on a Ray worker: .*unknown method 'mine_alone'"):
        harness.run(study, folder / "alone", engine="ray", address=cluster, views=False)


@pytest.mark.slow
def test_the_command_line_starts_a_cluster_of_its_own_and_an_interrupt_ends_it(folder):
    written(folder, "told", models=ONE, methods=["gradient", "fails_on_purpose"], metrics=["noted", "sleepy"])
    forget_calls(folder)
    prepare_to_sleep(folder)
    command = [*HARNESS, "run", "told.yaml", "--engine", "ray", "--out", "told"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Whoever runs the tests in the background has it ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
        text=True,
    )
    cells = folder / "told" / "cells"
    wait_for(lambda: process.poll() is not None or (pid_of_sleeper(folder) and list(cells.glob("*.parquet"))))
    assert process.poll() is None, process.communicate()
    worker = Path("/proc", pid_of_sleeper(folder))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    printed, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "raylet" not in printed
    assert "finished cells are kept" in message
    wait_for(lambda: not worker.exists())
    survived = {path: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert survived
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert {path: path.stat().st_mtime_ns for path in survived} == survived
    assert calls(folder) == calls_of(Results.load(folder / "told"))
    assert "4 failed cells" in done.stdout
    for word in ("Traceback", "raylet", "Warning"):
        assert word not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("process", "10.0.0.1:6379", r"--address 10.0.0.1:6379 is that of a Ray cluster: it needs --engine ray"),
        ("ray", None, r"--engine ray needs ray: pip install 'attribution-harness\[ray\]'"),
    ],
)
def test_what_an_engine_lacks_is_said_before_anything_is_computed(tmp_path, monkeypatch, engine, address, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        harness.run("quickstart", tmp_path / "run", engine=engine, address=address)
    assert not (tmp_path / "run").exists()


def test_an_address_where_no_cluster_is_is_an_error_within_seconds(tmp_path):
    with pytest.raises(InputError, match=r"--address 127\.0\.0\.1:1: no Ray cluster there: .*refused"):
        harness.run("quickstart", tmp_path / "run", engine="ray", address="127.0.0.1:1")
    assert not (tmp_path / "run").exists()


def test_an_engine_that_there_is_none_of_is_an_error():
    with pytest.raises(InputError, match=r"--engine is process or ray, got 'dask'"):
        check_engine.__wrapped__("dask", None)


def planned(study):
    """The groups of a study, and what workers are told of it."""
    resolved = load_study(study)
    device = torch.device("cpu")
    subjects = [
        subject_of_entry(entry, resolved, device=device, samples=None, progress=silent) for entry in resolved.models
    ]
    groups = plan(subjects, resolved.methods, resolved.metrics, 0)
    return groups, Job(study, study.parent / "other", device, None, 0, CHUNK)


def test_a_worker_that_comes_to_another_plan_says_what_differs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = written(folder, "other")
    groups, job = planned(study)
    order = Order.of(groups[0])
    before = (folder / "data.npz").read_bytes()
    np.savez(folder / "data.npz", x=np.ones((260, 1, 8, 8), "float32"), y=np.arange(260) % 3)
    try:
        with pytest.raises(InputError, match=r"net · gradient is not what .* differs is the samples and .*the keys of"):
            Worker(job).compute(order)
    finally:
        (folder / "data.npz").write_bytes(before)
    changed = replace(order, made_of={**order.made_of, "torch": "1.0", "the weights": "others"})
    with pytest.raises(InputError, match=r"what differs is torch and the weights; give .* the same code, versions and"):
        Worker(job).compute(changed)
    with pytest.raises(InputError, match=r"net · gradient is not what"):
        Worker(job).compute(replace(order, block=2))
    assert not job.folder.exists()


def test_a_worker_goes_on_with_the_model_that_it_holds(folder):
    groups, _ = planned(written(folder, "models"))
    first, second = groups[:6], groups[6:]
    waiting = [*groups]
    assert _next(waiting, None, []) is first[0]
    assert _next(waiting, None, [first[0]]) is second[0]
    assert _next(waiting, second[0], [first[0]]) is second[1]
    waiting = [first[3], second[3]]
    assert _next(waiting, first[0], [second[0], second[1]]) is first[3]
    assert _next(waiting, first[0], []) is second[3]
    assert _next(waiting, first[0], []) is None
