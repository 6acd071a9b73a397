"""Runs survive failure and kill -9, compute nothing twice, and do not depend on chunk or order."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import harness
from cases import Functional, network
from harness import Results
from harness.data.bundled import mnist_5k
from harness.plan import content_of, plan
from harness.progress import silent
from harness.rows import RECORDS
from harness.store import Part, write_atomically
from harness.study import load_study
from harness.subjects import subject_of_entry

PLUGIN = """
import torch
from harness import method

@method(family="gradient")
def fails_on_purpose(model, x, target):
    "A method with a mistake."
    raise RuntimeError("a mistake in a method")

@method(family="gradient")
def writes_to_its_input(model, x, target):
    "A method that changes the samples it was given."
    return x.zero_() + torch.arange(x.numel()).view_as(x)
"""


def small(**changes):
    study = {
        "name": "small",
        "seed": 0,
        "data": {"source": "mnist-5k", "samples": 6},
        "models": ["mnist-cnn"],
        "methods": [
            "gradient",
            {"method": "integrated_gradients", "steps": 6},
            "guided_backprop",
            {"method": "smoothgrad", "samples": 4},
        ],
        "metrics": [
            {"metric": "parameter_randomization", "full_draws": 2, "cascade_draws": 1},
            "completeness",
            {"metric": "pixel_flipping", "steps": 8, "fill": ["black", "noise"]},
            {"metric": "occlusion_faithfulness", "patch": 7},
        ],
    }
    return {**study, **changes}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return harness.run(small(), tmp_path_factory.mktemp("undisturbed") / "run")


def assert_same_rows(a, b, columns=RECORDS):
    """Bit-identical values, and equal labels."""
    assert len(a) == len(b)
    for column in columns:
        if column != "run":
            left, right = (frame[column].to_numpy(dtype=object, na_value=None) for frame in (a, b))
            assert (left == right).all(), column


def test_records_have_their_columns_in_order_and_every_planned_cell_is_accounted_for(undisturbed):
    assert list(undisturbed.records.columns) == list(RECORDS)
    assert len(undisturbed.cells) == (4 + 6) * 5
    assert set(undisturbed.cells["status"]) == {"done", "not_applicable"}
    lacking = undisturbed.cells[undisturbed.cells["status"] == "not_applicable"]
    assert set(lacking["metric"]) == {"completeness"}
    assert undisturbed.failures.empty
    assert (undisturbed.records["value"].isna() == undisturbed.records["reason"].notna()).all()


def test_cells_record_what_they_cost_and_what_they_depend_on(undisturbed):
    cells = undisturbed.cells.set_index(["method", "metric"])
    flipping = cells.loc["gradient", "pixel_flipping[fill=black]"]
    assert (flipping["maps_forward"], flipping["maps_backward"]) == (6, 6)
    assert (flipping["forward"], flipping["backward"]) == (6 * (2 + 3 * 7), 0)
    integrated = cells.loc["integrated_gradients", "completeness"]
    assert (integrated["maps_forward"], integrated["forward"]) == (6 * 6, 12)
    assert integrated["method_options"] == {"baseline": "black", "steps": 6, "input_factor": True}
    assert integrated["chunk"] == 64
    assert integrated["twins"] == "twins by constructor"


def test_a_second_run_computes_nothing_and_changes_no_file(undisturbed):
    folder = undisturbed.store.path
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    again = harness.run(small(), folder, views=False)
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == before
    assert_same_rows(undisturbed.records, again.records)


@pytest.mark.slow
def test_the_same_seed_and_chunk_give_the_same_bits(undisturbed, tmp_path):
    assert_same_rows(undisturbed.records, harness.run(small(), tmp_path / "again", views=False).records)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_agree_in_float32_as_promised(undisturbed, tmp_path, chunk):
    other = harness.run(small(), tmp_path / "run", chunk=chunk, views=False)
    a, b = undisturbed.records["value"].to_numpy(), other.records["value"].to_numpy()
    assert (np.isnan(a) == np.isnan(b)).all()
    known = ~np.isnan(a)
    close = np.isclose(a[known], b[known], rtol=1e-3, atol=1e-3)
    assert close.mean() >= 0.99
    first, second = (r.table("summary")["value"].to_numpy() for r in (undisturbed, other))
    np.testing.assert_allclose(first, second, atol=1e-3 * np.nanmax(np.abs(first)), rtol=1e-3)


@pytest.mark.slow
def test_chunks_agree_in_float64_to_nine_digits():
    model, x, _ = network("functional", torch.float64, n=9)
    arguments = {
        "methods": [
            {"method": "integrated_gradients", "steps": 3},
            {"method": "smoothgrad", "samples": 3},
            {"method": "occlusion", "window": 4, "stride": 3},
            "guided_backprop",
            "random",
        ],
        "metrics": [
            {"metric": "parameter_randomization", "full_draws": 2, "cascade_draws": 1},
            "completeness",
            {"metric": "pixel_flipping", "steps": 5},
            "occlusion_faithfulness",
        ],
        "build": lambda: Functional().double(),
    }
    whole, *others = (harness.evaluate(model, x, chunk=chunk, **arguments).records["value"] for chunk in (64, 1, 7))
    for other in others:
        np.testing.assert_allclose(whole, other, rtol=1e-9, atol=1e-9)


def test_the_chunk_of_a_folder_is_kept(undisturbed, tmp_path):
    harness.run(small(methods=["gradient"], metrics=["completeness"]), tmp_path, chunk=5, views=False)
    again = harness.run(small(methods=["input_x_gradient"], metrics=["completeness"]), tmp_path, views=False)
    assert set(again.cells["chunk"]) == {5}


@pytest.mark.slow
def test_kill_minus_nine_loses_only_the_cell_it_hit(undisturbed, tmp_path):
    import yaml

    study = tmp_path / "small.yaml"
    study.write_text(yaml.safe_dump(small()))
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", str(study), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells, deadline = folder / "cells", time.time() + 120
    while len(list(cells.glob("*.parquet")) if cells.exists() else []) < 4 and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    survived = {path: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
    assert 4 <= len(survived) < len(undisturbed.cells)
    half = Results.load(folder)
    assert "missing" in set(half.cells["status"])
    resumed = harness.run(str(study), folder, views=False)
    assert {path: path.stat().st_mtime_ns for path in survived} == survived
    assert not list(cells.glob(".*"))
    assert_same_rows(undisturbed.records, resumed.records)


def test_a_failing_method_loses_only_its_own_cells(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    study = small(
        plugins=[str(tmp_path / "plugin.py")],
        methods=["fails_on_purpose", "writes_to_its_input", "gradient"],
        metrics=["occlusion_faithfulness", "pixel_flipping"],
        controls=False,
    )
    results = harness.run(study, tmp_path / "run", views=False)
    assert list(results.failures["method"]) == ["fails_on_purpose"] * 2
    assert set(results.failures["error"]) == {"RuntimeError: a mistake in a method"}
    assert "in fails_on_purpose" in results.failures["traceback"].iloc[0]
    states = results.cells.groupby("method")["status"].agg(set)
    assert states["gradient"] == states["writes_to_its_input"] == {"done"}
    assert results.table("leaderboard").set_index("method").loc["fails_on_purpose", "pixel_flipping"] == "failed"
    alone = harness.run(
        small(methods=["gradient"], metrics=["occlusion_faithfulness"], controls=False), tmp_path / "alone"
    )
    mine = results.records[
        (results.records["method"] == "gradient") & (results.records["metric"] == "occlusion_faithfulness")
    ]
    assert_same_rows(mine, alone.records)


def test_cells_that_the_study_no_longer_names_are_stale_and_not_mixed_in(tmp_path):
    harness.run(small(methods=["gradient", "smoothgrad"], metrics=["completeness"]), tmp_path, views=False)
    results = harness.run(small(methods=["gradient"], metrics=["completeness"]), tmp_path, views=False)
    assert len(results.stale) == 1
    assert "smoothgrad" not in set(results.cells["method"])


def test_labels_belong_to_the_study_and_not_to_the_stored_cell(tmp_path):
    first = harness.run(
        small(methods=["gradient"], metrics=["occlusion_faithfulness"], controls=False), tmp_path, views=False
    )
    named = [{"name": "plain", "method": "gradient"}]
    second = harness.run(
        small(methods=named, metrics=["occlusion_faithfulness"], controls=False), tmp_path, views=False
    )
    assert first.cells["key"].tolist() == second.cells["key"].tolist()
    assert set(second.records["method"]) == {"plain"}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"target": "label"},
        {"target": 3},
        {"methods": [{"method": "integrated_gradients", "steps": 4}]},
        {"methods": [{"method": "integrated_gradients", "baseline": "grey"}]},
        {"metrics": [{"metric": "occlusion_faithfulness", "patch": 3}]},
        {"data": {"source": "mnist-5k", "samples": 5}},
    ],
)
def test_the_key_holds_everything_that_the_values_depend_on(change):
    base = {"methods": ["integrated_gradients"], "metrics": ["occlusion_faithfulness"], "controls": False}
    if change.get("target") == "label":
        base["data"] = {"source": "mnist-5k", "samples": 60}  # enough that one prediction is wrong

    def key(study):
        resolved = load_study(study)
        options = {"device": torch.device("cpu"), "samples": None, "progress": silent}
        subjects = [subject_of_entry(entry, resolved, **options) for entry in resolved.models]
        (group,) = plan(subjects, resolved.methods, resolved.metrics, resolved.study.seed)
        return group.tasks[0].cell.key

    assert key(small(**base)) == key(small(**base))
    assert key(small(**base)) != key(small(**{**base, **change}))


def test_more_samples_than_a_block_make_several_cells():
    model, x, _ = network("table", n=300)
    results = harness.evaluate(model, x, methods=["input_x_gradient"], metrics=["completeness"])
    assert results.cells["block"].tolist() == [0, 1]
    assert results.cells["samples"].tolist() == [256, 44]
    assert len(results.records[results.records["measure"] == "residual"]) == 300


def test_results_of_another_torch_or_of_an_edited_plugin_warn(tmp_path):
    study = small(
        plugins=[str(tmp_path / "p.py")], methods=["mine"], metrics=["occlusion_faithfulness"], controls=False
    )
    plugin = "from harness import method\n\n@method(family='control')\ndef mine(model, x, target):\n    return x * {}\n"
    (tmp_path / "p.py").write_text(plugin.format(2))
    results = harness.run(study, tmp_path / "run", views=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harness.run(study, tmp_path / "run", views=False)
    (tmp_path / "p.py").write_text(plugin.format(3))
    content_of.cache_clear()
    with pytest.warns(UserWarning, match="1 finished cells .* were computed with another version of the code"):
        harness.run(study, tmp_path / "run", views=False)
    (cell,) = results.planned
    part = results.store.part(cell)
    results.store.put(cell, Part(part.rows, {**part.info, "torch": "0"}))
    with pytest.warns(UserWarning, match="1 finished cells .* were computed with another version of torch"):
        harness.run(study, tmp_path / "run", views=False)


def test_only_correctly_classified_samples_where_they_are_asked_for(tmp_path):
    data = {"source": "mnist-5k", "samples": 990, "select": "correct"}
    with pytest.raises(harness.InputError, match=r"990 samples asked for, mnist-5k has 9\d\d \(correct\)"):
        harness.run(small(data=data), tmp_path, views=False)
    resolved = load_study(small(data={**data, "samples": 60}))
    options = {"device": torch.device("cpu"), "samples": None, "progress": silent}
    subject = subject_of_entry(resolved.models[0], resolved, **options)
    plain = subject_of_entry(load_study(small(data="mnist-5k")).models[0], resolved, **options)
    labels = dict(zip(plain.samples, mnist_5k().labels.tolist(), strict=True))
    assert [labels[sample] for sample in subject.samples] == subject.target.tolist()
    predicted = dict(zip(plain.samples, plain.target.tolist(), strict=True))
    assert all(predicted[sample] == labels[sample] for sample in subject.samples)
    assert len(set(subject.samples)) == 60
    of_class = [list(map(labels.get, subject.samples)).count(digit) for digit in range(10)]
    assert min(of_class) >= 5  # one of each class after the other, less what is classified wrongly


def test_loading_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(harness.InputError, match="no run in"):
        Results.load(tmp_path)


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "part"
    write_atomically(path, b"old")

    def interrupted(_file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_beside_the_finished_files(undisturbed):
    folder = Path(undisturbed.store.path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells",
        "figures",
        "manifest.json",
        "report.html",
        "study.yaml",
        "tables",
    ]


class InPlace(torch.nn.Module):
    """Shifts its input in place, and normalizes by batch statistics that a randomization test re-estimates."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(x.sub_(0.5)).relu())


def test_a_model_that_writes_in_place_never_reaches_the_samples():
    x = torch.rand(300, 6)
    kept = x.clone()
    tests = [
        {"metric": "parameter_randomization", "full_draws": 2, "cascade_draws": 1},
        "completeness",
        "pixel_flipping",
    ]
    results = harness.evaluate(InPlace().eval(), x, methods=["gradient", "occlusion"], metrics=tests, build=InPlace)
    assert results.failures.empty
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_a_metric_that_writes_into_the_shared_maps_fails_alone(tmp_path):
    (tmp_path / "p.py").write_text(
        "from harness import Score, metric\n\n@metric(family='t', direction=None, headline='h')\n"
        "def vandal(case):\n    'Writes into what all metrics share.'\n"
        "    yield Score('h', case.maps.abs_().flatten(1).sum(1))\n"
    )
    study = {"methods": ["input_x_gradient"], "controls": False, "plugins": [str(tmp_path / "p.py")]}
    mixed = harness.run(small(metrics=["vandal", "completeness"], **study), tmp_path / "mixed", views=False)
    assert list(mixed.failures["metric"]) == ["vandal"]
    assert "vandal wrote into the maps" in mixed.failures["error"].iloc[0]
    alone = harness.run(small(metrics=["completeness"], **study), tmp_path / "alone", views=False)
    assert_same_rows(mixed.records, alone.records)


def test_maps_in_half_precision_are_measured():
    model, x, _ = network("modules", torch.bfloat16)
    tests = [{"metric": "parameter_randomization", "full_draws": 2}, "pixel_flipping", "occlusion_faithfulness"]
    results = harness.evaluate(model, x, methods=["gradient", "guided_backprop"], metrics=tests)
    assert results.failures.empty, results.failures["traceback"].iloc[0]
