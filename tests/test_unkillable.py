"""Kills at random moments and disks that are full: nothing that was finished is lost or computed again. Slow."""

import multiprocessing
import os
import subprocess
import time

import numpy as np
import pytest
from test_engine import assert_same_rows, small

import harness
from harness.results import Results
from harness.types import StoppedError

pytestmark = pytest.mark.slow

KILLS = 20


def study():
    return small(metrics=["completeness", {"metric": "pixel_flipping", "steps": 8, "fill": ["black", "noise"]}])


def parts(folder):
    """When each finished part was written, and which file it is."""
    found = {}
    for path in (folder / "cells").glob("*.parquet"):
        state = path.stat()
        found[path.name] = (state.st_mtime_ns, state.st_ino)
    return found


@pytest.fixture(scope="module")
def processes():
    """What starts processes in no time: a server that has imported everything and forks."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["harness.api"])
    first = server.Process(target=str)
    first.start()
    first.join()
    return server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, processes):
    """The results of a run that nobody disturbs, and the seconds that a cell takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = processes.Process(target=harness.run, args=(study(), folder), kwargs={"views": False})
    process.start()
    process.join()
    moments = sorted(written / 1e9 for written, _ in parts(folder).values())
    return Results.load(folder), (moments[-1] - moments[0]) / (len(moments) - 1)


def kill_at(process, folder, finished, seconds):
    """Kill a run that many seconds after so many of its cells are finished."""
    deadline = time.time() + 120
    while process.is_alive() and len(parts(folder)) < finished:
        assert time.time() < deadline
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join()


def test_a_run_that_is_killed_at_random_moments_is_finished_with_the_same_bits(undisturbed, processes, tmp_path):
    expected, a_cell = undisturbed
    generator = np.random.default_rng(0)
    survived = []
    for position in range(KILLS):
        folder = tmp_path / str(position)
        process = processes.Process(target=harness.run, args=(study(), folder), kwargs={"views": False})
        process.start()
        kill_at(process, folder, int(generator.integers(len(expected.cells))), generator.uniform(0, 2 * a_cell))
        before = parts(folder)
        harness.run(study(), folder, views=False)
        after = parts(folder)
        assert {name: after[name] for name in before} == before
        assert_same_rows(expected.records, Results.load(folder).records)
        assert not list(folder.rglob(".*"))
        survived.append(len(before))
    # The moments fall between different cells, or nothing was tried.
    assert len(set(survived)) > KILLS // 4, survived


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KiB, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)]
    subprocess.run(mounted, check=True, capture_output=True)
    try:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_loses_nothing_that_was_finished(undisturbed, small_disk):
    folder, enlarge = small_disk
    expected, _ = undisturbed
    with pytest.raises(StoppedError, match=r"cannot write .* \(No space left on device\): what is finished is kept"):
        harness.run(study(), folder / "run", views=False)
    before = parts(folder / "run")
    half = Results.load(folder / "run")
    assert 0 < len(before) < len(half.cells)
    assert set(half.cells["status"]) == {"done", "not_applicable", "missing"}
    enlarge()
    harness.run(study(), folder / "run", views=False)
    after = parts(folder / "run")
    assert {name: after[name] for name in before} == before
    assert_same_rows(expected.records, Results.load(folder / "run").records)
