"""The benchmark runs and its tables have a row for each method and metric. Nothing is said of times."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness import METHODS, METRICS

SCRIPT = Path(__file__).parent / "bench.py"
ATTENTION = {"raw_attention", "attention_rollout", "gradient_weighted_attention"}
LEFT_OUT = {"label_randomization", "remove_and_retrain", "part_importance", "mask_leakage"}
"""Two need training, one parts, and the last five samples of a class, of which a quick run has fewer."""

OF_NETWORKS = {"introspection", "network_randomization"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The tables of a quick run, and what it wrote beside them."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(SCRIPT), "--quick", "--samples", "4", "--device", "cpu", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    frames = {path.stem: pd.read_csv(path) for path in (out / "cpu").glob("*.csv")}
    return frames, (out / "cpu" / "README.md").read_text()


def shipped(entries):
    """Those that come with the harness: other tests register their own."""
    return {name for name, entry in entries.items() if entry.function.__module__.startswith("harness.")}


@pytest.mark.slow
def test_every_method_that_applies_has_a_row(tables):
    rows = tables[0]["methods"]
    expected = {name for name in shipped(METHODS) if METHODS[name].family != "control"}
    assert set(rows["method"]) == expected - ATTENTION
    assert (rows["forward"] > 0).all()
    assert rows["times the floor"].notna().all()


@pytest.mark.slow
def test_every_metric_that_trains_nothing_has_a_row(tables):
    rows = tables[0]["metrics"]
    assert set(rows["metric"]) == shipped(METRICS) - LEFT_OUT - OF_NETWORKS
    cascades = rows[rows["metric"] == "parameter_randomization"]
    assert len(cascades) == 5
    assert (rows["times the floor"].notna() == (rows["forward"] > 0)).all()


@pytest.mark.slow
def test_other_libraries_are_given_the_same_work(tables):
    frames, _ = tables
    curves = frames["curves"]
    sixteen = curves[curves["ours"] == "pixel_flipping, 16 pixels a step, 64 steps, first method"]
    assert sixteen["our passes"].tolist() == [4 * (3 * 63 + 2)]
    assert sixteen["their passes"].tolist() == [4 * 192]
    assert set(frames["cascades"]["method"]) == {"gradient", "integrated_gradients"}
    study = frames["study"]
    assert study["ours"].iloc[[0, -1]].tolist() == ["maps", "all"]
    assert len(study) == 1 + 8 + 1
    assert study["our passes"].iloc[:-1].sum() == study["our passes"].iloc[-1]


@pytest.mark.slow
def test_maps_that_should_be_those_of_captum_are(tables):
    rows = tables[0]["captum"].set_index("method")
    exact = ["gradient", "integrated_gradients", "deconvnet", "guided_backprop", "deeplift", "occlusion"]
    assert rows.loc[exact, "difference"].max() < 1e-4


@pytest.mark.slow
def test_the_report_names_the_hardware_and_holds_all_tables(tables):
    frames, text = tables
    assert text.startswith("# Benchmarks: ")
    assert "torch" in text.splitlines()[0]
    assert text.count("\n## ") == len(frames) == 8
    assert "`label_randomization` (trains networks)" in text
