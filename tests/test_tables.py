"""Tables and figures: the same numbers as from all rows at once, in the memory of one method and metric."""

import itertools
import subprocess
import sys
import zlib
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness import Results
from harness.figures import write_figures
from harness.glance import EXAM
from harness.plan import Cell
from harness.plotted import curves
from harness.rows import rows_of
from harness.series import series_of
from harness.statistics import mean_interval, median_interval, survival
from harness.store import Folder, Memory, Part
from harness.table_files import write_tables
from harness.tables import TABLES
from harness.types import Score
from harness.words import conclusion

VIEWS = (("spearman", "sum", "signed"), ("spearman", "abs_sum", "absolute"), ("ssim", "abs_sum", "absolute"))
ROLES = {"test": 0.2, "floor_shift": 0.05, "floor_random": 0.1}


def noise(n, generator, around=0.0):
    return around + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)


def randomization(n, generator, left=0.2):
    """150 rows a sample, as of `parameter_randomization`; a tenth of one role's draw 3 is undefined."""
    for measure, channels, sign in VIEWS:
        view = {"channels": channels, "sign": sign}
        yield Score(measure, noise(n, generator, 0.9), role="ceiling_rerun", stage="trained", stage_index=0, **view)
        for draw, (role, around) in itertools.product(range(10), (ROLES | {"test": left}).items()):
            score = noise(n, generator, around)
            broken = torch.rand(n, generator=generator) < (0.1 if (draw, role) == (3, "test") else 0)
            score[broken] = torch.nan
            where = {"role": role, "mode": "full", "stage": "all", "stage_index": 4, "draw": draw}
            if draw or role != "floor_random":
                yield Score(measure, score, {"constant map": broken} if broken.any() else {}, **where, **view)
        for draw, stage in itertools.product(range(3), range(1, 5)):
            where = {"mode": "top_down", "stage": f"conv{stage}", "stage_index": stage, "draw": draw}
            yield Score(measure, noise(n, generator, stage / 10), **where, **view)
        yield Score(measure, noise(n, generator, 0.05), role="floor_other", stage="trained", stage_index=0, **view)
    for draw in range(10):
        where = {"mode": "full", "stage": "all", "stage_index": 4, "draw": draw}
        yield Score("output_pearson", noise(n, generator, 0.1), **where)
        yield Score("prediction_kept", noise(n, generator, 0.1).gt(0.1).double(), **where)


def flipping(n, generator, gain=0.3):
    """Curves, the gain, and a number about the model."""
    for mode, step, measure in itertools.product(
        ("most_first", "least_first", "random"), np.arange(17) / 16, ("probability", "logit")
    ):
        yield Score(measure, noise(n, generator, 1 - step), mode=mode, step=float(step), channels="sum", sign="signed")
    yield Score("symmetric_relevance_gain", noise(n, generator, gain), channels="sum", sign="signed")
    yield Score("passes", torch.tensor(12.0, dtype=torch.float64))


def residual(n, generator, around=0.0):
    """A headline of which the median is reported."""
    yield Score("relative_residual", noise(n, generator, around).exp())


METRICS = {
    "parameter_randomization": (randomization, "spearman", "mean"),
    "pixel_flipping": (flipping, "symmetric_relevance_gain", "mean"),
    "completeness": (residual, "relative_residual", "median"),
}
BLOCKS = (256, 100, 7)
TWO = (("net", 0), ("net", 1))


def written(store, blocks=BLOCKS, models=(("net", 0),), methods=("gradient",), metrics=tuple(METRICS), given=None):
    """A run of blocks of these sizes, kept as the engine does. `given`: what a metric's scores are around."""
    cells = []
    for (model, seed), (block, n), method, metric in itertools.product(models, enumerate(blocks), methods, metrics):
        make, headline, statistic = METRICS[metric]
        key = f"{model}-{seed}-{block}-{method}-{metric}"
        labels = {"model": model, "model_seed": seed, "dataset": "data", "method": method, "metric": metric}
        cell = Cell(key=key, block=block, **labels)
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        around = [at for whose, at in (given or {}).items() if whose == (model, seed, metric)]
        samples = [f"{index:05}" for index in range(256 * block, 256 * block + n)]
        info = {
            "status": "done",
            "reason": "",
            "samples": n,
            "method_family": "control" if method == "sobel" else "gradient",
            "method_expected": {"parameter_randomization": "FAIL"} if method == "sobel" else {},
            "metric_function": metric,
            "metric_version": 1,
            "direction": "higher",
            "headline": headline,
            "summary_statistic": statistic,
            **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward"), n),
            **dict.fromkeys(("seconds", "maps_seconds"), 0.5),
        }
        rows = rows_of(make(n, generator, *around), samples, torch.zeros(n, dtype=torch.long))
        store.put(cell, Part(rows, info))
        cells.append(cell)
    manifest = {"study": {"name": "made"}, "run": "made"}
    if isinstance(store, Folder):
        store.write_manifest(manifest, cells)
    return Results(manifest, tuple(cells), store)


@pytest.fixture(scope="module", params=["folder", "memory"])
def results(request, tmp_path_factory):
    store = Folder(tmp_path_factory.mktemp("run")) if request.param == "folder" else Memory()
    return written(store, methods=("gradient", "sobel"))


def whole(frame):
    """[samples, draws] of all rows at once."""
    return frame.fillna({"draw": -1}).pivot(index="sample", columns="draw", values="value").to_numpy()


def same(frame, expected):
    """The rows of `expected` in its columns, in this order."""
    expected = pd.DataFrame(expected)
    pd.testing.assert_frame_equal(
        frame[list(expected)].astype(object).fillna("-"),
        expected.astype(object).fillna("-"),
        check_exact=False,
        rtol=1e-12,
        atol=1e-15,
    )


KIND = ["model", "model_seed", "method", "metric", "measure", "channels", "sign", "role", "mode", "stage"]
LIMITS = ["value", "low", "high"]


def kinds(results, *fields):
    frame = results.records.astype({name: object for name in results.records.select_dtypes("category")})
    frame["planned"] = pd.factorize(frame["method"] + frame["metric"])[0]
    groups = frame.groupby(["planned", *KIND, *fields], sort=False, dropna=False)
    return sorted(groups, key=lambda item: item[0][0])


def test_the_summary_is_that_of_all_rows_at_once(results):
    expected = []
    for (_, *labels), rows in kinds(results, "step"):
        if np.isnan(labels.pop()):
            matrix = whole(rows.drop_duplicates(["sample", "draw"]))
            reason = rows["reason"].dropna()
            expected.append(
                dict(zip(KIND, labels, strict=True))
                | dict(zip(LIMITS, astuple(mean_interval(matrix)), strict=True))
                | {
                    "median": np.nanmedian(matrix),
                    "samples": matrix.shape[0],
                    "draws": matrix.shape[1],
                    "undefined": np.isnan(matrix).sum(),
                    "reason": reason.iloc[0] if len(reason) else "",
                }
            )
    frame = results.table("summary")
    same(frame, expected)
    assert set(frame["samples"]) == {sum(BLOCKS), 1}
    assert frame["undefined"].sum() == results.scalars["value"].isna().sum() > 0
    assert set(frame.loc[frame["undefined"] > 0, "reason"]) == {"constant map"}


def test_headlines_and_the_cascade_are_those_of_all_rows_at_once(results):
    cascade, headlines = [], []
    for (_, *labels), rows in kinds(results):
        row = dict(zip(KIND, labels, strict=True))
        if row["mode"] == "top_down" and (row["measure"], row["sign"]) == ("spearman", "signed"):
            cascade.append(row | dict(zip(LIMITS, astuple(mean_interval(whole(rows))), strict=True)))
        headline = row["measure"] == METRICS[row["metric"]][1] and row["sign"] != "absolute"
        if headline and row["role"] == "test" and row["mode"] != "top_down":
            median = row["measure"] == "relative_residual"
            interval = median_interval(whole(rows)[:, 0]) if median else mean_interval(whole(rows))
            headlines.append(row | dict(zip(LIMITS, astuple(interval), strict=True)))
    same(results.table("cascade"), pd.DataFrame(cascade)[[*KIND[:4], *LIMITS, "stage"]])
    same(results.table("headlines"), pd.DataFrame(headlines)[[*KIND[:4], *LIMITS, "measure"]])
    assert list(results.table("stages").columns[5:]) == ["conv1", "conv2", "conv3", "conv4"]


def test_verdicts_are_those_of_all_rows_at_once(results):
    frame = results.table("verdicts")
    assert len(frame) == 2 * len(VIEWS)
    records = results.records
    for _, row in frame.iterrows():
        rows = records[(records["method"] == row["method"]) & (records["metric"] == row["metric"])]
        output = whole(rows[rows["measure"] == "output_pearson"])
        rows = rows[(rows["measure"] == row["measure"]) & (rows["sign"] == row["sign"]) & (rows["mode"] != "top_down")]
        found = {role: whole(rows[rows["role"] == role]) for role in (*ROLES, "floor_other", "ceiling_rerun")}
        twins = {"floor_random": found["floor_random"], "output": output}
        expected = survival(found["test"], found["floor_shift"], found["ceiling_rerun"], **twins)
        assert (row["verdict"], row["reason"]) == (expected.verdict, expected.reason)
        assert tuple(row[["survival", "low", "high"]]) == pytest.approx(astuple(expected.survival), rel=1e-12)
        assert row["chance"] == pytest.approx(expected.chance, nan_ok=True)
        means = {role: np.nanmean(values) for role, values in found.items()}
        assert row["similarity"] == pytest.approx(means["test"])
        assert row["floor_other"] == pytest.approx(means["floor_other"])
        above = (means["test"] - means["floor_random"]) / (means["ceiling_rerun"] - means["floor_random"])
        assert row["above_random"] == pytest.approx(above)
        assert np.isnan(row["of_retrained"])
        assert row["output_pearson"] == pytest.approx(np.nanmean(output))
        assert row["expected"] == ("FAIL" if row["method"] == "sobel" else "")


def test_points_of_curves_are_those_of_all_rows_at_once(results):
    expected = []
    for (_, *labels, step), rows in kinds(results, "step"):
        row = dict(zip([*KIND, "step"], [*labels, step], strict=True))
        if row["measure"] == "probability":
            expected.append(row | dict(zip(LIMITS, astuple(mean_interval(whole(rows))), strict=True)))
    same(curves(results), pd.DataFrame(expected)[[*KIND[:4], "mode", "step", *LIMITS]])
    assert len(expected) == 2 * 3 * 17


def test_costs_are_summed_over_blocks(results):
    frame = results.table("cost")
    assert set(frame["forward"]) == {sum(BLOCKS)}
    assert set(frame["seconds"]) == {0.5 * len(BLOCKS)}


def test_nothing_that_is_written_or_said_takes_all_rows(tmp_path):
    results = written(Folder(tmp_path))
    write_tables(results, tmp_path / "tables")
    assert drawn_by(results, tmp_path / "figures") == DRAWN
    conclusion(results)
    assert not {"records", "scalars", "cells"} & set(vars(results))


DRAWN = [
    "pixel_flipping-net",
    "survival-parameter_randomization-net",
    "stages-net",
    "residuals-net",
    "headlines-net",
    "cost-net",
]


def drawn_by(results, folder):
    """The names of the figures, each of which is there as PNG and as PDF."""
    written = write_figures(results, folder)
    names = list(dict.fromkeys(path.stem for path in written))
    assert written == [folder / f"{name}.{form}" for name in names for form in ("png", "pdf")]
    assert all(path.stat().st_size for path in written)
    return names


PEAK = """
import sys
from pathlib import Path
from harness.figures import write_figures
from harness.results import Results
from harness.table_files import write_tables
from harness.words import conclusion

folder = Path(sys.argv[1])
results = Results.load(folder)
write_tables(results, folder / "tables")
write_figures(results, folder / "figures")
conclusion(results)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
# Not ru_maxrss: a process inherits that of the one that started it, here of pytest.


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_hundred_times_the_samples_take_the_same_memory(tmp_path):
    def peak(blocks):
        written(Folder(tmp_path / str(blocks)), [256] * blocks)
        done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / str(blocks)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout) / 1024

    few, many = peak(1), peak(80)
    print(f"peak with 256 samples: {few:.0f} MiB, with 20480: {many:.0f} MiB")
    assert many < 1.2 * few


@pytest.mark.slow
def test_seeds_of_a_model_are_kept_apart(tmp_path):
    given = {("net", 1, "parameter_randomization"): 0.8, ("net", 1, "pixel_flipping"): -0.3}
    both = written(Folder(tmp_path), models=TWO, given=given)
    alone = [written(Memory(), models=[model], given=given) for model in TWO]
    assert set(both.table("across_models")["models"]) == {2}
    for name in set(TABLES) - {"across_models", "global", "partly_random"}:  # the study has no introspections
        parts = [results.table(name) for results in alone]
        # The marks of the metrics stand above them once.
        parts[1] = parts[1][parts[1]["method"] != EXAM] if name in ("glance", "leaderboard") else parts[1]
        expected, found = pd.concat(parts, ignore_index=True), both.table(name)
        assert list(expected.columns[:2]) == ["model", "model_seed"]
        if name == "comparisons":
            # They are adjusted for the whole table.
            assert (found["p_holm"] >= expected["p_holm"]).all()
            expected, found = (frame.drop(columns=["p_holm", "outcome"]) for frame in (expected, found))
        pd.testing.assert_frame_equal(found, expected, check_dtype=name != "families")
    assert list(both.table("verdicts")["verdict"].unique()) == ["PASS", "FAIL"]
    assert drawn_by(both, tmp_path / "figures") == [f"{name}-seed{seed}" for seed in (0, 1) for name in DRAWN]


def test_what_holds_on_some_models_only_is_said_with_the_model():
    models = [*TWO, ("other", 0)]
    given = {("net", 1, "parameter_randomization"): 0.8, ("other", 0, "pixel_flipping"): -0.3}
    said = conclusion(written(Memory(), models=models, methods=["gradient", "sobel"], given=given))
    learnt, survives = "the map depends on what the network has learnt", "the map survives the randomization"
    more, less = ("removing what it calls relevant costs " + word for word in ("more", "less"))
    assert said["held"] == "nothing was tested that can hold"
    assert said["did not hold"] == (
        f"{survives} of the network: gradient (net-seed1); does not add up to within 1 %: gradient; "
        f"{less} than removing the rest: gradient (other)"
    )
    assert f"on some models only: {learnt}: gradient (net-seed0), gradient (other)" in said["look at"]
    assert (
        f"on some models only: {more} than removing the rest: gradient (net-seed0), gradient (net-seed1)"
        in said["look at"]
    )
    assert "BROKEN CONTROL: sobel (other) is PASS, must be FAIL" in said["look at"]
    assert said["look at"].endswith("of 18 verdicts at most 0.5 are expected to be false by chance")


def test_what_holds_on_every_model_is_said_by_name():
    said = conclusion(written(Memory(), models=TWO))
    assert said["held"] == (
        "the map depends on what the network has learnt: gradient; "
        "removing what it calls relevant costs more than removing the rest: gradient"
    )
    assert "on some models only" not in said["look at"]


def test_a_method_that_holds_on_the_only_model_on_which_it_was_tested_does_not_hold_on_all():
    results = written(Memory(), models=TWO, metrics=["pixel_flipping"])
    for cell in results.planned:
        if cell.model_seed == 1:
            part = results.store.part(cell)
            info = {**part.info, "status": "not_applicable", "reason": "needs images"}
            results.store.put(cell, Part(part.rows.slice(0, 0), info))
    frame = results.table("headlines").set_index("model_seed")
    assert tuple(frame.loc[1, ["status", "reason"]]) == ("not_applicable", "needs images")
    assert conclusion(results)["held"] == "nothing was tested that can hold"
    assert "on some models only" in conclusion(results)["look at"]


@pytest.mark.parametrize("status", ["missing", "failed"])
@pytest.mark.parametrize("block", [0, 1])
def test_a_block_that_is_not_there_leaves_a_status_and_no_headline_or_verdict(status, block):
    results = written(Memory(), methods=["gradient", "smoothgrad"])
    whole = written(Memory(), methods=["gradient", "smoothgrad"])
    name = ("gradient", "parameter_randomization")
    (cell,) = (cell for cell in results.planned if (cell.method, cell.metric, cell.block) == (*name, block))
    del results.store.parts[cell.key]
    if status == "failed":
        results.store.fail(cell, {"error": "RuntimeError: no", "traceback": ""})
    frame = results.table("headlines").set_index(["method", "metric"])
    assert frame.loc[name, "status"] == status
    assert np.isnan(frame.loc[name, "value"])
    assert set(results.table("verdicts")["method"]) == {"smoothgrad"}
    assert results.table("leaderboard").set_index("method").loc[name] == status
    expected = whole.table("headlines").set_index(["method", "metric"])
    pd.testing.assert_frame_equal(frame.drop(index=[name]), expected.drop(index=[name]), check_dtype=False)
    # What is there is summarised all the same.
    samples = results.table("summary").set_index(["method", "metric"]).loc[name, "samples"]
    assert set(samples) == {sum(BLOCKS) - BLOCKS[block]}
    assert conclusion(results)["look at"].startswith(f"1 {status} cells")


def table(scores, *samples):
    return rows_of(scores, samples, torch.zeros(len(samples), dtype=torch.long))


def test_series_join_blocks_by_draw_and_count_reasons():
    def score(numbers, draw, **undefined):
        return Score("h", torch.tensor(numbers), {k: torch.tensor(v) for k, v in undefined.items()}, draw=draw)

    nan = float("nan")
    first = table([score([1.0, nan], 7, a=[False, True]), score([2.0, 3.0], 2)], "s0", "s1")
    second = table([score([nan], None, b=[True]), score([4.0], 2)], "s2")
    (series,) = series_of([first, table([], "s9"), second])
    np.testing.assert_equal(series.values, [[2, 1, nan], [3, nan, nan], [4, nan, nan]])
    assert series.reasons == {"a": 1, "b": 1}
    assert not series.about_model


def test_a_number_about_the_model_is_one_however_many_blocks_say_it():
    blocks = [table([Score("h", torch.tensor(value)), Score("k", torch.ones(2))], "s0", "s1") for value in (1.0, 2.0)]
    about, each = series_of(blocks)
    np.testing.assert_equal(about.values, [[2]])
    assert each.values.shape == (4, 1)


def test_a_run_of_which_nothing_is_finished_has_tables(tmp_path):
    results = Results({}, written(Memory()).planned, Memory())
    write_tables(results, tmp_path)
    assert write_figures(results, tmp_path) == []
    assert set(results.table("headlines")["status"]) == {"missing"}
    assert conclusion(results)["held"] == "nothing was tested that can hold"
