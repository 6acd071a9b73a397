"""Two runs of a study: what is red, what is not, why, and how often by mistake."""

import io
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import harness
from harness import InputError, Results, Score, Tolerance, compare
from harness.causes import causes
from harness.cli import app
from harness.control_chart import control_chart, draw_control_chart, runs_in
from harness.networks import MLP
from harness.plan import Cell
from harness.regression_report import as_junit, as_markdown, lines
from harness.rows import rows_of
from harness.store import Memory, Part

INFO = {
    "method_family": "gradient",
    "method_expected": {},
    "metric_version": 1,
    "headline": "score",
    "summary_statistic": "mean",
    "weights": "w" * 32,
    **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward", "seconds", "maps_seconds"), 1),
}


def run(values, *, seed=0, name="run", direction="higher", function="pixel_flipping", samples=None, **info):
    """A run in memory; `values`: (method, metric) -> [samples] or [samples, draws]."""
    store, cells = Memory(), []
    for (method, metric), numbers in values.items():
        cell = Cell(f"{seed}-{method}-{metric}-{info}", "net", 0, "data", method, metric, 0)
        numbers = torch.as_tensor(numbers, dtype=torch.float64)
        drawn = numbers.unbind(1) if numbers.ndim == 2 else None
        scores = (
            [Score("score", each, draw=draw) for draw, each in enumerate(drawn)] if drawn else [Score("score", numbers)]
        )
        ids = samples or [f"s{index}" for index in range(len(numbers))]
        told = {**INFO, "status": "done", "reason": "", "metric_function": function, "direction": direction, **info}
        store.put(cell, Part(rows_of(scores, ids, torch.zeros(len(ids), dtype=torch.long)), told))
        cells.append(cell)
    manifest = {"study": {"name": "made", "seed": seed}, "run": name, "environment": {}, "subjects": []}
    return Results(manifest, tuple(cells), store)


def outcomes(comparison):
    return {(row["method"], row["metric"]): row["outcome"] for _, row in comparison.rows.iterrows()}


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


ONE = ("gradient", "area")


@pytest.mark.parametrize(
    ("by", "direction", "outcome"),
    [
        (0.5, "higher", "better"),
        (-0.5, "higher", "worse"),
        (0.5, "lower", "worse"),
        (-0.5, "lower", "better"),
        (0.5, None, "changed"),
        (0.05, "lower", "same"),
        (0.0, "lower", "same"),
    ],
)
@pytest.mark.parametrize("draws", [(), (4,)])
def test_which_way_counts(by, direction, outcome, draws):
    base = noise(0, 60, *draws)
    found = compare(
        run({ONE: base}, direction=direction), run({ONE: base + by + 0.1 * noise(1, 60, *draws)}, direction=direction)
    )
    assert outcomes(found) == {ONE: outcome}
    row = found.rows.iloc[0]
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["difference"] == pytest.approx(row["new"] - row["base"])
    assert len(found.red) == (outcome == "worse")


def test_the_tolerance_is_of_the_measure_or_of_its_spread():
    base = 5 * noise(0, 80)
    runs = run({ONE: base}), run({ONE: base - 1 + 0.1 * noise(1, 80)})
    assert outcomes(compare(*runs)) == {ONE: "worse"}
    assert compare(*runs).rows["tolerance"].iloc[0] == pytest.approx(0.1 * base.std(ddof=1))
    assert outcomes(compare(*runs, tolerance=Tolerance(0.5))) == {ONE: "same"}
    assert outcomes(compare(*runs, tolerance=Tolerance(measures={"score": 1.5}))) == {ONE: "same"}
    assert outcomes(compare(*runs, tolerance=Tolerance(0.5, {"score": 0.5}))) == {ONE: "worse"}


def test_samples_are_paired_by_id_whatever_their_order():
    base, order = noise(0, 50), np.random.default_rng(1).permutation(50)
    ids = [f"s{index}" for index in order[:40]]
    found = compare(run({ONE: base}), run({ONE: base[order[:40]]}, samples=ids))
    assert outcomes(found) == {ONE: "same"}
    assert found.rows["samples"].iloc[0] == 40
    assert found.rows["difference"].iloc[0] == 0
    others = compare(run({ONE: base}), run({ONE: base}, samples=[f"t{index}" for index in range(50)]))
    assert others.rows["why"].iloc[0] == "no sample is in both runs"


def seeded(seed):
    """A study of three methods; draws and samples have effects that methods share, and all of them are of the seed."""
    own = np.random.default_rng(1000 + seed)
    images, draws = noise(0, 80, 1), own.standard_normal((1, 10))
    found = {}
    for index, method in enumerate(("gradient", "smoothgrad", "lrp")):
        drawn = index + images + 0.7 * draws + 0.3 * own.standard_normal((1, 10)) + 0.5 * own.standard_normal((80, 10))
        found[method, "randomization"] = drawn
        found[method, "area"] = index + images[:, 0] + 0.5 * own.standard_normal(80)
    return found


@pytest.mark.slow
def test_two_seeds_of_one_study_are_red_in_at_most_five_of_a_hundred_pairs():
    red, tolerances = [0, 0], (Tolerance(), Tolerance(0.0))
    for pair in range(100):
        runs = run(seeded(2 * pair), seed=0), run(seeded(2 * pair + 1), seed=1)
        for index, tolerance in enumerate(tolerances):
            red[index] += len(compare(*runs, tolerance=tolerance).red) > 0
    # Of two-sided mistakes in one of twenty, half are for the worse; also without any tolerance.
    assert max(red) <= 5


def test_two_seeds_are_red_where_something_is_worse():
    worse = {key: value - 2 * (key[0] == "lrp") for key, value in seeded(1).items()}
    found = compare(run(seeded(0), seed=0), run(worse, seed=1))
    assert set(found.red["method"]) == {"lrp"}


def test_one_draw_of_each_seed_decides_nothing():
    base = noise(0, 50, 1)
    found = compare(run({ONE: base}, seed=0), run({ONE: base - 9}, seed=1))
    assert outcomes(found) == {ONE: "undecided"}
    assert "one draw each" in found.rows["why"].iloc[0]
    trained = {"function": "label_randomization"}
    found = compare(run({ONE: base[:, 0]}, seed=0, **trained), run({ONE: base[:, 0] - 9}, seed=1, **trained))
    assert "networks that the metric trains" in found.rows["why"].iloc[0]


def test_what_is_new_missing_failed_or_undefined():
    base, store = run({ONE: noise(0, 30), ("lrp", "area"): noise(1, 30)}), run({ONE: noise(0, 30)})
    assert outcomes(compare(base, store))["lrp", "area"] == "missing"
    assert outcomes(compare(store, base))["lrp", "area"] == "new"
    failed = run({ONE: noise(0, 30), ("lrp", "area"): noise(1, 30)})
    cell = failed.planned[1]
    del failed.store.parts[cell.key]
    failed.store.fail(cell, {"error": "RuntimeError: no", "traceback": ""})
    found = compare(base, failed)
    assert outcomes(found)["lrp", "area"] == "failed"
    assert found.rows["why"].iloc[1] == "RuntimeError: no"
    assert outcomes(compare(failed, failed))["lrp", "area"] == "failed before"
    assert len(compare(failed, failed).red) == 0


def test_runs_without_a_common_label_cannot_be_compared():
    with pytest.raises(InputError, match=r"gradient · area.*lrp · area"):
        compare(run({ONE: noise(0, 9)}), run({("lrp", "area"): noise(0, 9)}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two nights: in the second, one method has another option and one is new."""
    folder = tmp_path_factory.mktemp("runs")
    for night, steps, more in (("base", 32, []), ("night", 1, ["input_x_gradient"])):
        path = {"name": "path", "method": "integrated_gradients", "steps": steps}
        harness.run(study(["gradient", path, *more]), folder / night)
    return folder


def study(methods, **more):
    return {
        "name": "nightly",
        "data": {"source": "digits", "samples": 40},
        "models": [{"name": "mlp", "source": "mlp", "weights": "random"}],
        "methods": methods,
        "metrics": ["completeness", {"metric": "parameter_randomization", "full_draws": 10}],
        "controls": False,
    } | more


def test_a_method_whose_option_changed_is_red_and_the_option_is_named(runs):
    found = compare(runs / "base", runs / "night")
    assert set(found.red["method"]) == {"path"}
    assert "completeness" in set(found.red["metric"])
    assert found.changes == ["option steps of the method: 32 -> 1"]
    assert {row["outcome"] for _, row in found.rows.iterrows() if row["method"] == "input_x_gradient"} == {"new"}
    assert any("option steps of the method: 32 -> 1" in line for line in lines(found))


def test_the_command_says_so_in_every_form(runs, tmp_path):
    files = ["--junit", str(tmp_path / "junit.xml"), "--markdown", str(tmp_path / "summary.md")]
    done = CliRunner().invoke(app, ["compare", str(runs / "base"), str(runs / "night"), *files])
    assert done.exit_code == 1, done.output
    assert "RED" in done.output
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    cases = list(suite.iter("testcase"))
    red = [case.get("name") for case in cases if case.find("failure") is not None]
    assert set(red) == {"path"}
    assert (int(suite.get("tests")), int(suite.get("failures"))) == (len(cases), len(red))
    summary = (tmp_path / "summary.md").read_text()
    assert "RED" in summary
    assert "- option steps of the method: 32 -> 1" in summary
    same = CliRunner().invoke(app, ["compare", str(runs / "base"), str(runs / "base")])
    assert same.exit_code == 0
    assert "green" in same.output
    allowed = ["--tolerance", "relative_residual=100", "--tolerance", "spearman=2"]
    assert CliRunner().invoke(app, ["compare", str(runs / "base"), str(runs / "night"), *allowed]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "nothing"], "no run in"),
        (["base"], "a folder of two runs or more"),
        (["base", "night", "--tolerance", "spearman=much"], "spearman=much"),
        (["base", "night", "--level", "5"], "between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_done(runs, arguments, words, monkeypatch):
    monkeypatch.chdir(runs)
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)


@pytest.mark.slow
def test_other_weights_and_other_data_are_named(tmp_path):
    nights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = MLP((1, 8, 8), 10)
        save_file(network.state_dict(), tmp_path / f"{seed}.safetensors")
        model = {"name": "mlp", "source": "mlp", "weights": str(tmp_path / f"{seed}.safetensors")}
        nights.append(harness.run(study(["gradient"], models=[model]), tmp_path / str(seed)))
    old, new = (night.cells["weights"].iloc[0] for night in nights)
    assert old != new
    changes = compare(*nights).changes
    assert any(change.startswith("weights: ") and old[:8] in change and new[:8] in change for change in changes)
    assert not any("option" in change or "data" in change for change in changes)
    fewer = harness.run(study(["gradient"], data={"source": "digits", "samples": 20}), tmp_path / "fewer")
    assert any(change.startswith("data: ") for change in compare(nights[0], fewer).changes)


def test_a_control_chart_compares_every_night_with_the_first(runs, tmp_path):
    for night in ("2026-01-01", "2026-01-02", "2026-01-03"):
        shutil.copytree(runs / ("night" if night.endswith("3") else "base"), tmp_path / night)
    found = runs_in(tmp_path)
    assert len(found) == 3
    nights = control_chart(found)
    assert list(nights["position"].unique()) == [1, 2]
    assert set(nights[nights["outcome"] == "worse"]["position"]) == {2}
    draw_control_chart(nights, "base").savefig(tmp_path / "chart.png")
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert (tmp_path / "control_chart.png").stat().st_size > 10_000
    assert set(pd.read_csv(tmp_path / "control_chart.csv")["run"]) <= {"base", "night"}


def test_reports_of_nothing_to_report():
    same = compare(run({ONE: noise(0, 9)}), run({ONE: noise(0, 9)}))
    assert lines(same) == []
    assert 'failures="0"' in as_junit(same)
    assert "green" in as_markdown(same)


def test_causes_by_what_is_recorded():
    cell = {"weights": "a" * 32, "torch": "2.11", "method_options": {"steps": 8}, "device": "cpu"}

    def changed(same_key=False, seeds=(0, 0), **other):
        return causes(cell, {**cell, **other}, seeds=seeds, same_key=same_key)

    assert changed(same_key=True) == []
    assert changed(weights="b" * 32) == [f"weights: {'a' * 12} -> {'b' * 12}"]
    assert changed(device="cuda", seeds=(0, 3)) == ["seed: 0 -> 3", "device: cpu -> cuda"]
    assert changed(method_options={"baseline": "blur"}) == [
        "option steps of the method: 8 -> default",
        "option baseline of the method: default -> blur",
    ]
    # Code and versions are no part of a key: a key that changed, too, has another reason.
    assert changed(same_key=True, torch="2.12") == ["torch: 2.11 -> 2.12"]
    assert [each.partition(":")[0] for each in changed(torch="2.12")] == ["torch", "something else in the key"]


def test_tables_with_a_smallest_effect_and_as_text(runs):
    def told(*arguments):
        return CliRunner().invoke(app, ["table", str(runs / "night"), *arguments])

    done = told("--name", "comparisons", "--smallest-effect", "spearman=2", "--format", "csv")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(io.StringIO(done.output))
    assert set(table.loc[table["measure"] == "spearman", "outcome"]) == {"equivalent"}
    paper = told("--name", "comparisons", "--test", "sign_flip", "--format", "latex")
    assert paper.output.startswith("\\begin{tabular}")
    assert "equivalent" not in told("--name", "comparisons", "--format", "markdown").output
    for arguments, words in (
        (["--format", "csv"], "--name of one table"),
        (["--smallest-effect", "spaerman=1"], "did you mean spearman"),
        (["--smallest-effect", "0.1"], "0.1 alone"),
        (["--smallest-effect", "spearman=-1"], "a number from 0 on"),
    ):
        assert words in str(told(*arguments).exception)
