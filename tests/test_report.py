"""The report: one file that says what the tables say, escapes what it is given, and asks no network for anything."""

import base64
import json
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pages import HOSTILE, Page
from torch import nn

import harness
from harness import Results
from harness.curve_figures import draw_stages
from harness.figures import DIVERGING, limit_of, write_figures
from harness.glance import INDEX
from harness.kept_maps import KeptSamples
from harness.method_figures import draw_costs, draw_headlines, draw_residuals
from harness.plotted import residuals, seconds
from harness.report import maps as report_maps
from harness.report.charts import DESCRIBED, JUDGED, RANDOM, _stages, charts, styles
from harness.report.parts import counted, leaderboard, matrix
from harness.report.writing import page
from harness.store import Memory
from harness.words import conclusion, statements
from made_rows import VIEWS, cascades, classes, results_of


def small(folder, **changes):
    study = {
        "name": "small",
        "data": {"source": "mnist-5k", "samples": 5},
        "models": ["mnist-cnn"],
        "methods": ["gradient", {"method": "integrated_gradients", "steps": 4}],
        "metrics": [
            {"metric": "parameter_randomization", "full_draws": 2, "cascade_draws": 1},
            "completeness",
            {"metric": "pixel_flipping", "steps": 4},
        ],
        **changes,
    }
    return harness.run(study, folder, save_maps=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return small(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def read(results):
    return Page((results.store.path / "report.html").read_text())


def test_it_asks_no_network_for_anything(results, read):
    text = (results.store.path / "report.html").read_text()
    assert all(address.startswith(("#", "data:")) for address in read.addresses)
    assert {"link", "script", "img", "style"} <= set(read.tags)
    style = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert len(read.ids) == len(set(read.ids))


def test_its_tables_are_those_of_the_run(results, read):
    board = results.table("leaderboard")
    rows = {row[0][1]: row for row in read.tables["table-leaderboard"][2:]}
    metrics = [name for name in board.columns if name not in INDEX]
    values = results.table("headlines").set_index(["method", "metric"])["value"]
    shown = 0
    for _, row in board.iloc[1:].iterrows():
        for place, metric in enumerate(metrics, 1):
            value, text = rows[row["method"]][place]
            assert text.replace("✓ ", "").replace("? ", "").replace("⊘ ", "").replace("✗ ", "").replace(
                "· ", ""
            ) == str(row[metric])
            if np.isfinite(values[row["method"], metric]):
                assert float(value) == values[row["method"], metric]
                shown += 1
    assert shown > 10
    assert [row[0][1] for row in read.tables["table-glance"][2:]] == list(board["method"].iloc[1:])


def test_its_words_are_those_of_the_conclusion(results):
    said, text = statements(results), page(results)
    assert {title: "; ".join(parts) for title, parts in said.items()} == conclusion(results)
    for part in (part for parts in said.values() for part in parts):
        statement, _, methods = part.rpartition(": ")
        assert (statement or part).split(":")[0][:30] in text
        assert methods.split(", ")[0] in text


def test_the_gallery_holds_the_maps(results, monkeypatch):
    (model,) = report_maps.gallery(results)
    kept = results.maps("integrated_gradients").maps.sum(1)
    found = next(each for each in model["methods"] if each["name"] == "integrated_gradients")
    values = np.frombuffer(zlib.decompress(base64.b64decode(found["values"])), np.int8).reshape(5, *found["shape"])
    for row in range(5):
        limit = limit_of(kept[row])
        assert np.abs(values[row] / 127 * limit - np.clip(kept[row], -limit, limit)).max() <= limit / 254 * 1.001
        assert found["positive"][row] == pytest.approx(kept[row].clip(0).sum() / np.abs(kept[row]).sum(), abs=6e-4)
    assert [sample["id"] for sample in model["samples"]] == list(results.samples().ids)
    assert len(report_maps.gallery(results, 2)[0]["samples"]) == 2
    monkeypatch.setattr(report_maps, "NUMBERS", 9 * 32**2 * 3)  # methods and controls, for three samples each
    assert len(report_maps.gallery(results)[0]["samples"]) == 3
    assert report_maps.gallery(results)[0]["all"] == 5


def test_maps_that_are_too_large_are_averaged():
    maps = np.zeros((1, 3, 8, 8), np.float32)
    maps[0, :, :2, :2] = 1
    maps[0, 0, 4:6, 4:6] = -1
    values, positive = report_maps._small(maps, "image", 16)
    assert values.shape == (1, 4, 4)
    pooled = np.zeros((4, 4))
    pooled[0, 0], pooled[2, 2] = 3, -1
    assert values[0].tolist() == (pooled / limit_of(pooled) * 127).round().clip(-127, 127).tolist()
    assert positive == [0.75]
    assert report_maps._small(np.ones((2, 1, 4000), np.float32), "signal", 1000)[0].shape == (2, 512)
    assert report_maps._small(np.ones((2, 30, 20), np.float32), "signal", 1000)[0].shape == (2, 30, 20)
    assert report_maps._small(np.ones((2, 7), np.float32), "table", 1000)[0].shape == (2, 7)
    assert report_maps._small(np.zeros((2, 1, 4, 4), np.float32), "image", 1000)[0].any() == np.False_


def test_zero_is_white_and_signs_mirror():
    tables = {
        name: np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(256, 3)
        for name, packed in report_maps.colours().items()
    }
    assert DIVERGING == "RdBu_r"
    assert tables["signed"][127:129].min() > 240
    assert tables["signed"][0][2] > tables["signed"][0][0]
    assert tables["signed"][255][0] > tables["signed"][255][2]
    assert (np.diff(tables["absolute"].astype(int).sum(1)) <= 0).all()


@pytest.mark.parametrize(
    ("x", "kind", "given"),
    [
        (np.zeros((1, 28, 28), np.uint8), "image", "data:image/png"),
        (np.zeros((3, 224, 224), np.uint8), "image", "data:image/webp"),
        (np.zeros((4, 9, 9), np.uint8), "image", "data:image/png"),
        (np.random.default_rng(0).normal(size=(64, 90)), "signal", "data:image"),
        (np.random.default_rng(0).normal(size=(1, 8000)), "signal", 512),
        (np.arange(7.0), "table", 7),
    ],
)
def test_samples_of_any_kind_are_shown(x, kind, given):
    shown = report_maps._picture(x, kind)
    if isinstance(given, str):
        assert shown["picture"].startswith(given)
    else:
        assert len(shown["line"]) == given
        assert 0 <= min(shown["line"]) <= max(shown["line"]) <= 1


def test_names_are_text_and_never_markup():
    torch.manual_seed(0)
    entry = {"name": HOSTILE, "method": "gradient"}
    broken = {"name": "</script><b>", "method": lambda model, x, target: 1 / 0}
    results = harness.evaluate(
        network(), torch.rand(4, 1, 4, 4), methods=[entry, broken], metrics=["entropy"], build=network, save_maps=True
    )
    text = page(results)
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert "ZeroDivisionError" in text
    assert text.count("</script>") == text.count("<script")
    inside = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.DOTALL)
    assert len(inside) == 2
    assert json.loads(inside[1])["models"][0]["methods"][0]["name"] == HOSTILE


def test_a_run_that_is_not_finished_or_has_nothing_has_a_report(tmp_path, results):
    text = page(results_of({("a", "parameter_randomization"): list(cascades({"signed": [0.9] * 4}))}))
    assert "No maps were kept" in text
    assert "FAIL" in text
    cell = results.planned[0]
    copied = Results(results.manifest, (cell, *(c for c in results.planned if c.method == "gradient")), results.store)
    assert "What held" in page(copied)


def test_a_sample_kept_without_a_label_is_shown(results):
    kept = results.samples()
    assert isinstance(kept, KeptSamples)
    assert len(kept.labels) == len(kept.ids)


def test_charts_draw_the_numbers_of_the_tables(results):
    looks = {style.name: style for style in styles(["gradient", "integrated_gradients"], set())}
    found = {chart.title: chart for chart in charts(results, looks)}
    assert {chart.section for chart in found.values()} == {
        "randomization",
        "flipping",
        "completeness",
        "leaderboard",
        "cost",
    }
    flipped = next(chart for title, chart in found.items() if title.endswith("most relevant first"))
    (values,) = {id(v): v for v in _datasets(flipped.specification)}.values()
    end = [row["value"] for row in values if row["method"] == "gradient" and row["step"] == 1.0]
    table = results.records.query("method == 'gradient' and mode == 'most_first' and measure == 'probability'")
    assert end == [pytest.approx(table[table["step"] == 1.0]["value"].mean(), rel=1e-3)]
    assert all("http" not in json.dumps(chart.specification) for chart in found.values())


def _datasets(specification):
    """Every list of values in a specification, those that are equal once."""
    found = []

    def look(part):
        if isinstance(part, dict):
            if isinstance(part.get("values"), list) and part["values"] not in found:
                found.append(part["values"])
            for each in part.values():
                look(each)
        elif isinstance(part, list):
            for each in part:
                look(each)

    look(specification)
    return found


def test_lines_are_told_apart_by_colour_and_dashes():
    names = [f"m{index}" for index in range(20)]
    looks = styles(names, {"m1", "m5"})
    methods = [(style.colour, tuple(style.dashes)) for style in looks if style.name not in ("m1", "m5")]
    assert len(set(methods)) == 18
    assert looks[1].colour == looks[5].colour != looks[0].colour


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def drawn_of(results):
    looks = {style.name: style for style in styles(list(results.outcomes["method"].unique()), set())}
    return {chart.title: chart for chart in charts(results, looks)}


def test_maps_that_are_no_numbers_have_a_report():
    def nowhere(model, x, target):
        return x * torch.nan

    torch.manual_seed(0)
    methods = [{"name": "nowhere", "method": nowhere}, "gradient"]
    metrics = [{"metric": "pixel_flipping", "steps": 4}]
    results = harness.evaluate(
        network(), torch.rand(4, 1, 4, 4), methods=methods, metrics=metrics, build=network, save_maps=True
    )
    text = page(results)
    (model,) = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text, flags=re.DOTALL)[1])["models"]
    packed = {each["name"]: each for each in model["methods"]}
    assert packed["nowhere"]["positive"] == [None] * 4
    assert not any(zlib.decompress(base64.b64decode(packed["nowhere"]["values"])))
    assert all(0 < share < 1 for share in packed["gradient"]["positive"])
    # The first method has no curve, and the random order is drawn all the same.
    assert RANDOM in json.dumps(drawn_of(results)["pixel_flipping: most relevant first"].specification["layer"][0])


def test_without_intervals_no_bands_and_no_bars_are_drawn():
    torch.manual_seed(0)
    metrics = [{"metric": "pixel_flipping", "steps": 4}, "entropy"]
    results = harness.evaluate(
        network(), torch.rand(1, 1, 4, 4), methods=["gradient"], metrics=metrics, build=network, save_maps=True
    )
    found = drawn_of(results)
    for title in ("pixel_flipping", "pixel_flipping: most relevant first"):
        encoded = json.dumps(found[title].specification)
        assert '"x2"' not in encoded
        assert '"y2"' not in encoded
    assert found["entropy"].summary.endswith(DESCRIBED)
    assert "Under the methods of one sample" not in page(results)


def test_charts_say_which_values_are_better_and_what_they_leave_out(results):
    found = drawn_of(results)
    assert found["pixel_flipping"].summary.endswith(" Higher is better.")
    assert found["completeness"].summary.endswith(" Lower is better.")
    assert found["parameter_randomization"].summary.endswith(JUDGED)
    judged = results.table("verdicts").query("sign == 'signed' and measure == 'spearman'")
    (survival,) = (chart for title, chart in found.items() if title.startswith("Another network"))
    for word, count in judged["verdict"].value_counts().items():
        assert f"{count} {word}" in survival.summary
    assert "INVALID" in survival.summary
    assert "constant" in survival.summary


def test_no_line_of_a_cascade_is_cut_off(results):
    stages = results.table("cascade").query("sign == 'signed' and survival.notna()").assign(survival=-0.6)
    (chart,) = _stages(stages, "mnist-cnn", {})
    assert '"domain": [-0.6, 1.1]' in json.dumps(chart.specification)


def test_notes_are_counted_and_not_split():
    row = {"model": "m", "model_seed": 0, "method": "a", "one": "n/a", "two": "n/a"}
    reasons = ["one: it claims nothing; it never did; two: no", "one: no", ""]
    frame = pd.DataFrame([{**row, "reasons": each} for each in reasons])
    told = matrix(SimpleNamespace(table=lambda name: frame, subjects={("m", 0): "m"}, introspections=[]))
    assert [line.cells[-1].text for line in told.rows] == ["2 notes", "1 note", ""]
    assert told.rows[0].cells[-1].notes == ["one: it claims nothing; it never did", "two: no"]
    assert counted(0, "row") == "0 rows"


def test_verdicts_are_told_by_words_and_signs_and_not_by_colour_alone(results):
    cells = [cell for row in matrix(results).rows for cell in row.cells if cell.kind]
    assert cells
    assert all(cell.word and cell.sign for cell in cells)
    assert leaderboard(results).marks[0].text == "exam of the metric"


@pytest.mark.slow
def test_the_same_figures_are_written_for_papers(results, tmp_path):
    names = {path.name for path in write_figures(results, results.store.path / "figures")}
    drawn = "cascade stages residuals pixel_flipping survival-parameter_randomization headlines cost"
    for each in drawn.split():
        assert {f"{each}-mnist-cnn.pdf", f"{each}-mnist-cnn.png"} <= names


def test_residuals_are_percentiles_of_the_rows(results):
    row = residuals(results).set_index("method").loc["integrated_gradients"]
    values = results.records.query("method == 'integrated_gradients' and measure == 'relative_residual'")["value"]
    assert row["p50"] == pytest.approx(values.median())
    assert row["p95"] == pytest.approx(np.percentile(values, 95))
    (axis,) = draw_residuals(residuals(results), "completeness").axes
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_yticklabels()] == list(residuals(results)["method"])


def test_headlines_and_seconds_are_those_of_the_tables(results):
    long = results.table("headlines")
    figure = draw_headlines(long, "headlines")
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert set(panels) == set(long[long["value"].notna()]["metric"])
    shown = panels["completeness"].lines[0].get_xdata()
    assert list(shown) == list(long[(long["metric"] == "completeness") & long["value"].notna()]["value"])
    spent, cost = seconds(results.table("cost")), results.table("cost")
    assert spent["metrics"].sum() == pytest.approx(cost["seconds"].sum())
    bars = draw_costs(spent, "cost").axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(spent[["maps", "metrics"]].sum().sum())


def test_stages_are_drawn_in_their_order(results):
    stages = results.table("cascade").query("sign == 'signed'")
    axis = draw_stages(stages, "stages").axes[0]
    order = stages.sort_values("stage_index")["stage"].unique()
    assert [label.get_text() for label in axis.get_xticklabels()] == list(order)


class Photographs(Memory):
    """Noise in the place of 200 photographs and their maps, which nothing packs well, made when it is asked for."""

    SHAPE = (200, 224, 224)

    def arrays(self, name, *wanted):
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        known = {"ids": np.array([f"photograph-{row:04}" for row in range(200)]), "target": np.zeros(200, np.int64)}
        if name.startswith("samples"):
            labels = [f"a class with a long name, {row}" for row in range(200)]
            meta = {"kind": "image", "explained": labels, "labels": labels[::-1]}
            x = generator.integers(0, 256, (200, 3, 224, 224), np.uint8)
            return {**known, "x": x, "meta": np.array(json.dumps(meta))}
        maps = {} if "meta" in wanted else {"maps": generator.standard_normal((200, 1, 224, 224), np.float32)}
        return {**known, **maps, "meta": np.array("{}")}


@pytest.mark.slow
def test_two_hundred_photographs_and_twenty_methods_stay_under_15_megabytes():
    made = {
        (f"method{index}", metric): list(scores)
        for index in range(20)
        for metric, scores in (
            ("parameter_randomization", cascades(dict.fromkeys(VIEWS, (0.3, 0.2, 0.1, 0.0)), n=200)),
            ("random_logit", classes(0.5, n=200)),
        )
    }
    run = results_of(made)
    photographs = Photographs(run.store.parts)
    text = page(replace(run, store=photographs))
    assert 5_000_000 < len(text.encode()) < 15_000_000
    found = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text, flags=re.DOTALL)[1])["models"][0]
    assert len(found["samples"]) == 200
    assert len(found["methods"]) == 20
    assert min(min(each["shape"]) for each in found["methods"]) >= report_maps.SMALLEST_SIDE
