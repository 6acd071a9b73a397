"""Introspections in the report and in figures: what is said, drawn and shown side by side, and what is left out."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from pages import HOSTILE, Page
from PIL import Image

import harness
from harness import Artifact, InputError, InputSpace, Score, introspection
from harness.artifacts import as_shown, keep_artifacts
from harness.colouring import coloured, heat_map, pictures_of
from harness.figures import figures_of
from harness.introspection_figures import draw_artifacts, draw_layers, mosaic, spans_magnitudes
from harness.plotted import NETWORKS, layers, while_randomized
from harness.report import exhibits as report_exhibits
from harness.report.exhibits import exhibits_of
from harness.report.network_charts import network_charts
from harness.report.networks import asked, network_tables
from harness.report.writing import page
from made_rows import cascades, learning, networks, results_of

NULL = [0.08, 0.09, 0.1, 0.11, 0.12, 0.08, 0.09, 0.1, 0.11, 0.12]
RGB = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float() / 119


def every_kind():
    """An artifact of each kind, of three networks."""
    shown = [
        Artifact("pictures", "pictures", (RGB * 255).byte(), labels=("one", HOSTILE), caption="What is seen."),
        Artifact("maps", "maps", torch.tensor([[[[1.0, -3.0], [0.0, 0.0]]]]), stage="layer0"),
        Artifact("matrix", "matrix", torch.tensor([[1.0, -2.0]]), ("row",), (HOSTILE, "b"), ("mean", "unit"), "layer1"),
        Artifact(
            "named", "curves", torch.tensor([[0.1, 0.2], [0.3, torch.nan]]), ("a", "b"), ("x", "y"), ("", "layer")
        ),
        Artifact("numbers", "curves", torch.tensor([[0.1, 0.2, 0.4]]), (), (0.01, 1.0, 100.0), ("accuracy", "C")),
        Artifact("counted", "curves", torch.tensor([[1, 2, 3]])),
    ]
    return [
        Artifact(**{**each.__dict__, "network": network})
        for network in ("trained", "random", "shuffled")
        for each in shown
    ]


def made(artifacts=(), methods=False, **more):
    """A run of one introspection with two measures, by default without methods."""
    scores = [
        *networks(0.98, NULL, NULL, stages=(0.5, 0.1)),
        *networks(0.9, NULL, NULL, stage="layer1"),
        *networks(0.1, NULL, NULL, stage="layer0"),
        *networks(24.0, NULL, [24.0] * 10, measure="norm"),
    ]
    run = {("probe", "network_randomization"): scores}
    if methods:
        run |= {("gradient", "parameter_randomization"): list(cascades({"signed": [0.1] * 4}))}
    results = results_of(run, more={"probe": {**learning(accuracy="higher", norm="higher"), **more}})
    (cell,) = (cell for cell in results.planned if cell.method == "probe")
    keep_artifacts(list(artifacts), cell, results.store)
    return results


def test_without_introspections_nothing_is_said_of_them():
    run = results_of({("gradient", "parameter_randomization"): list(cascades({"signed": [0.1] * 4}))})
    text = page(run)
    assert 'id="global"' not in text
    assert 'href="#global"' not in text
    assert "which attribution maps can be trusted" in text


def test_with_introspections_only_nothing_is_said_of_maps():
    text = page(made(every_kind()))
    read = Page(text)
    assert {"outcome", "global", "cost", "failures", "provenance", "words"} <= set(read.ids)
    assert not {"verdicts", "maps", "leaderboard", "randomization", "flipping", "ranks", "gallery"} & set(read.ids)
    for address in read.addresses:
        assert address.startswith("data:") or address == "#" or address[1:] in read.ids
    assert len(read.ids) == len(set(read.ids))
    assert "what has this network learnt" in text
    assert "No maps were kept" not in text


def test_the_table_tells_levels_effects_and_reasons():
    whole, by_layer = network_tables(made())
    texts = [[cell.text or cell.word for cell in row.cells] for row in whole.rows]
    space = "\N{NO-BREAK SPACE}"
    sd = f"{np.std(NULL, ddof=1):.2g}"
    assert texts[0][:6] == ["probe", "accuracy", "PASS", "0.98", f"0.1{space}±{space}{sd}", f"0.1{space}±{space}{sd}"]
    assert texts[1][1:3] == ["norm", "FAIL"]
    assert texts[1][5] == f"24{space}±{space}0"
    assert texts[1][-1] == "nothing tells it from networks with shuffled weights"
    assert [row.cells[2].text for row in by_layer.rows] == ["layer1", "layer0"]
    assert [row.cells[2].value for row in by_layer.rows] == [1.0, 0.0]  # sorted by depth and not by name
    for table in (whole, by_layer):
        assert all(len(row.cells) == len(table.columns) == len(table.numeric) for row in table.rows)


def test_it_says_what_is_asked_and_why_it_does_not_apply():
    (said,) = asked(made())
    assert (said.question, said.misleads, said.reasons) == ("What is it?", "Always.", ())
    cells = {("probe", "network_randomization"): []}
    lacks = {("probe", "network_randomization"): ("not_applicable", "the samples have no labels")}
    run = results_of(cells, statuses=lacks, more={"probe": learning(accuracy="higher")})
    assert asked(run)[0].reasons == ("the samples have no labels",)
    assert "Not applicable: the samples have no labels." in page(run)


def test_introspections_stand_in_no_legend_matrix_or_chart_of_methods():
    text = page(made(methods=True))
    assert 'data-method="gradient"' in text
    assert 'data-method="probe"' not in text
    tables = Page(text).tables
    assert [row[0][1] for row in tables["table-glance"][2:]] == ["gradient"]
    assert [row[0][1] for row in tables["table-leaderboard"][2:]] == ["gradient"]
    assert "network_randomization" not in "".join(cell[1] for cell in tables["table-glance"][0])
    charts = json.loads(re.search(r'id="specifications">(.*?)</script>', text, flags=re.DOTALL)[1])
    drawn = [json.dumps(chart) for chart in charts.values()]
    assert sum("probe" in chart for chart in drawn) == 1  # what each took


def test_charts_draw_each_measure_by_layer_beside_other_networks():
    run = made()
    found = {chart.title: chart for chart in network_charts(run)}
    assert set(found) == {"accuracy, by layer", "accuracy, while the network is randomized"}
    encoded = json.dumps(found["accuracy, by layer"].specification)
    for network in NETWORKS:
        assert network in encoded
    assert '"sort": ["layer0", "layer1"]' in encoded
    assert "higher" in found["accuracy, by layer"].summary
    stages = json.dumps(found["accuracy, while the network is randomized"].specification)
    assert '"sort": ["trained", "block1", "block2"]' in stages
    lines = layers(run.table("global"))
    others = lines[(lines["stage"] == "layer1") & (lines["network"] == "re-initialized networks")].iloc[0]
    assert others["value"] == pytest.approx(np.mean(NULL))
    assert others["high"] - others["low"] == pytest.approx(4 * np.std(NULL, ddof=1))
    through = while_randomized(run.table("global"), run.table("partly_random"))
    assert through[through["measure"] == "accuracy"]["value"].tolist() == [0.98, 0.5, 0.1]


def test_artifacts_stand_side_by_side():
    run = made(every_kind())
    found = exhibits_of(run)
    assert [shown.title for shown in found.shown] == [
        *("pictures", "maps, layer0", "matrix, layer1", "named", "numbers", "counted")
    ]
    for shown in found.shown:
        assert [panel.network for panel in shown.panels] == ["trained", "re-initialized", "shuffled weights"]
    picture = found.shown[0].panels[0].pictures[0]
    assert picture.words == "pictures, trained: one"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2]))))
    assert (pixels == np.moveaxis((RGB[0] * 255).byte().numpy(), 0, -1)).all()
    assert found.shown[1].panels[0].pictures[0].words.endswith("25% of it positive")
    matrix = found.shown[2].panels[1]
    assert (matrix.rows, matrix.columns) == (["row"], [HOSTILE, "b"])
    assert matrix.scale == "blue -2, white at zero, red 2"
    assert len(found.charts) == 9


def test_names_are_text_and_never_markup():
    text = page(made(every_kind(), question=HOSTILE, misleads="</script><b>"))
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert text.count("</script>") == text.count("<script")


def test_pictures_have_alternative_texts():
    text = page(made(every_kind())).partition("<main>")[2].partition("</main>")[0]
    images = re.findall(r"<img [^>]*>", text)
    assert len(images) == 3 * (2 + 1 + 1)
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_a_report_stays_small(monkeypatch):
    many = [
        Artifact(f"noise {n}", "pictures", torch.randint(0, 256, (60, 3, 64, 64), dtype=torch.uint8)) for n in range(9)
    ]
    run = made(many)
    found = exhibits_of(run)
    assert all(len(shown.panels[0].pictures) == report_exhibits.MOST_PICTURES for shown in found.shown)
    assert "24 of 60 are shown." in found.shown[0].caption
    size = sum(len(p.address) for shown in found.shown for panel in shown.panels for p in panel.pictures)
    assert 0 < size <= report_exhibits.MOST_BYTES
    monkeypatch.setattr(report_exhibits, "MOST_BYTES", size // 3)
    fewer = exhibits_of(run)
    assert fewer.left_out == 9 - len(fewer.shown) > 0
    assert f"{fewer.left_out} exhibits had no room in this file" in page(run)


def test_strips_have_a_line_of_their_own_and_keep_their_shape():
    strips = Artifact("strips", "pictures", torch.randint(0, 256, (2, 1, 30, 300), dtype=torch.uint8), ("a", "b"))
    large = Artifact("large", "pictures", torch.randint(0, 256, (1, 3, 448, 224), dtype=torch.uint8))
    strip, picture = (shown.panels[0] for shown in exhibits_of(made([strips, large])).shown)
    assert (strip.wide, picture.wide) == (True, False)
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(panel.pictures[0].address.partition(",")[2]))).size
        for panel in (strip, picture)
    ]
    assert sizes == [(300, 30), (112, 224)]


def test_pictures_are_kept_within_the_valid_range():
    space = InputSpace("image", mean=(0.5,), std=(0.25,))
    given = Artifact("seen", "pictures", torch.tensor([[[[-2.0, 0.0, 2.0, 9.0, torch.nan]]]]))
    kept = as_shown(given, space).values
    assert kept.dtype == torch.uint8
    assert kept.flatten().tolist() == [0, 128, 255, 255, 0]
    undeclared = as_shown(Artifact("seen", "pictures", torch.tensor([[[[3.0, 4.0, 5.0]]]])), InputSpace("image"))
    assert undeclared.values.flatten().tolist() == [0, 128, 255]
    curve = Artifact("c", "curves", torch.tensor([[9.0]]))
    assert as_shown(curve, space) is curve
    # Low frequencies are at the bottom.
    rising = Artifact("seen", "maps", torch.tensor([[[[1.0], [2.0]]]]))
    assert as_shown(rising, InputSpace("bands")).values.flatten().tolist() == [2.0, 1.0]
    assert as_shown(rising, InputSpace("image")).values.flatten().tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="axes"):
        as_shown(Artifact("seen", "pictures", torch.zeros(3, 4)), space)


def test_colours_mirror_signs_and_zero_is_white():
    values = np.linspace(-1, 1, 5)
    shades = coloured(values, 1.0)
    assert shades[2].min() > 240
    assert shades[0][2] > shades[0][0]
    assert shades[4][0] > shades[4][2]
    signed = heat_map(Artifact("m", "matrix", torch.tensor([[-1.0, 0.0, 4.0, torch.nan]])))
    assert (signed.low, signed.high, signed.signed) == (-4, 4, True)
    assert signed.pixels[0, 3].tolist() == [128] * 3
    positive = heat_map(Artifact("m", "matrix", torch.tensor([[0.0, 2.0, 4.0]])))
    assert (positive.low, positive.high, positive.signed) == (0, 4, False)
    assert positive.pixels[0].astype(int).sum(1).tolist() == sorted(positive.pixels[0].astype(int).sum(1))[::-1]
    assert heat_map(Artifact("m", "matrix", torch.zeros(2, 3))).pixels.min() == 255
    two_channels = pictures_of(Artifact("p", "pictures", torch.tensor([[[[0]], [[100]]]], dtype=torch.uint8)))
    assert two_channels.tolist() == [[[[50, 50, 50]]]]


def test_figures_are_those_of_the_tables_and_artifacts(tmp_path):
    run = made(every_kind(), methods=True)
    figures = dict(figures_of(run, tmp_path))
    assert {"layers-probe-net", "artifacts-probe-net", "cost-net"} <= set(figures)
    panel = figures["layers-probe-net"].axes[0]
    lines = {line.get_label(): line for line in panel.lines}
    assert set(lines) == set(NETWORKS)
    assert lines["trained network"].get_ydata().tolist() == [0.1, 0.9]
    assert len({(line.get_marker(), line.get_linestyle(), line.get_color()) for line in lines.values()}) == 3
    assert [label.get_text() for label in panel.get_xticklabels()] == ["layer0", "layer1"]
    assert "probe" not in {t.get_text() for axis in figures["headlines-net"].axes for t in axis.get_yticklabels()}
    figures["artifacts-probe-net"].savefig(tmp_path / "a.png")
    assert not [name for name in dict(figures_of(made(), tmp_path)) if name.startswith("artifacts")]


def test_a_contact_sheet_has_a_row_for_each_artifact_and_one_scale_for_curves():
    exhibits = made(every_kind()).artifacts("probe")
    sheet = draw_artifacts(exhibits, "sheet")
    assert len(sheet.axes) == 3 * len(exhibits)
    assert [axis.get_title() for axis in sheet.axes[:3]] == ["trained", "re-initialized", "shuffled weights"]
    assert len({axis.get_ylim() for axis in sheet.axes[9:12]}) == 1
    assert sheet.axes[12].get_xscale() == "log"
    alone = [{"trained": beside["trained"]} for beside in exhibits]
    assert len(draw_artifacts(alone, "alone").axes) == len(exhibits)
    assert spans_magnitudes((0.001, 1.0))
    assert not spans_magnitudes((0.0, 1000.0))
    assert not spans_magnitudes(("a",))
    tiles = mosaic(np.zeros((5, 4, 6, 3), np.uint8))
    assert tiles.shape == (3 * 4 + 2, 2 * 6 + 1, 3)
    assert (tiles[4] == 200).all()
    assert mosaic(np.zeros((3, 5, 50, 3), np.uint8)).shape == (3 * 5 + 2, 50, 3)


def test_a_figure_without_layers_shows_the_randomization():
    run = made()
    table = run.table("global").query("measure == 'norm'")
    through = while_randomized(run.table("global"), run.table("partly_random"))
    figure = draw_layers(layers(table), through, "norm")
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == ["accuracy", "norm"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study of an introspection and a method on two models, as a user runs it."""
    if "shown_in_report" not in harness.INTROSPECTIONS:

        @introspection(compares={"accuracy": "higher"}, needs=("labels",), question="Is it right?", misleads="By luck.")
        def shown_in_report(model, space, data):
            """The accuracy, and the samples of which it is most sure."""
            out = model(data.x)
            yield Score("accuracy", (out.argmax(1) == data.labels).double().mean())
            surest = out.amax(1).argsort(descending=True)[:3]
            yield Artifact("surest", "pictures", data.x[surest], tuple(data.name(int(i)) for i in data.labels[surest]))

    study = {
        "name": "both",
        "data": {"source": "mnist-5k", "samples": 20},
        "models": ["mnist-cnn", {"name": "untrained", "source": "mnist-cnn", "weights": "random"}],
        "methods": ["gradient"],
        "metrics": ["entropy"],
        "introspections": ["shown_in_report"],
        "controls": True,
    }
    run = harness.run(study, tmp_path_factory.mktemp("both"), save_maps=True)
    assert run.failures.empty
    return run


def test_a_run_with_methods_and_introspections_has_both(run):
    text = (run.store.path / "report.html").read_text()
    read = Page(text)
    assert {"maps", "global", "table-glance", "table-global"} <= set(read.ids)
    verdicts = {row[0][1]: row[2][1] for row in read.tables["table-global"][1:]}
    assert verdicts["mnist-cnn shown_in_report"] == "✓ PASS"
    assert verdicts["untrained shown_in_report"] in ("✗ FAIL", "? INCONCLUSIVE")
    gallery = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text, flags=re.DOTALL)[1])
    assert "shown_in_report" not in {each["name"] for model in gallery["models"] for each in model["methods"]}
    assert "surest, re-initialized: " in text
    assert text.count('class="exhibit of-pictures" data-subject="untrained"') == 1
    kept = run.artifacts("shown_in_report")[0]["trained"]
    shown = run.samples().x[:, 0]
    assert all((shown == picture[0].numpy()).all((1, 2)).any() for picture in kept.values)
    names = {path.name for path in (run.store.path / "figures").iterdir()}
    assert {"artifacts-shown_in_report-mnist-cnn.png", "artifacts-shown_in_report-mnist-cnn.pdf"} <= names


def test_descriptors_beside_introspections_still_say_that_they_grade_nothing(run):
    assert "descriptors say nothing of quality" in "".join(harness_said(run))


def harness_said(results):
    from harness.words import statements

    return statements(results)["look at"]
