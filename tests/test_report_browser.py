"""Reports in a real browser: silent, without a network, by keyboard and screen reader, at any width, on paper."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from torch import nn

import harness
from harness import Results
from harness.report.writing import write_report

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
WIDTHS = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": {"viewport": {"width": 390, "height": 844}}}
MOST_BYTES = 15_000_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of two networks, with a failed cell."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "broken.py").write_text(
        "from harness import method\n\n@method(family='gradient')\ndef breaks(model, x, target):\n"
        "    'A method with a mistake.'\n    raise RuntimeError('a mistake')\n"
    )
    study = {
        "name": "two",
        "plugins": [str(folder / "broken.py")],
        "data": {"source": "mnist-5k", "samples": 30},
        "models": ["mnist-cnn", {"name": "untrained", "source": "mnist-cnn", "weights": "random"}],
        "methods": ["gradient", {"method": "integrated_gradients", "steps": 4}, "guided_backprop", "breaks"],
        "metrics": [
            {"metric": "parameter_randomization", "full_draws": 10, "cascade_draws": 1},
            "completeness",
            {"metric": "pixel_flipping", "steps": 6, "fill": ["black", "blur"]},
        ],
    }
    harness.run(study, folder / "run", save_maps=True)
    return folder / "run" / "report.html"


def written(folder, x, methods):
    """A report of a linear network on samples of any shape."""

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).eval()

    torch.manual_seed(0)
    metrics = ["completeness", {"metric": "pixel_flipping", "steps": 4}]
    results = harness.evaluate(build(), x, methods=methods, metrics=metrics, build=build, save_maps=True)
    return write_report(results, folder / "report.html")


@pytest.fixture(params=["made", "quickstart", "imagenet", "cifar"])
def report(request):
    return request.getfixturevalue("made") if request.param == "made" else REFERENCE / request.param / "report.html"


@contextmanager
def opened(browser, path, how="light"):
    """The page with all its charts drawn; nothing may be said on the console or asked of a network while it is open."""
    said, asked = [], []
    context = browser.new_context(**WIDTHS[how])
    page = context.new_page()
    # Only the tests read pixels back, and the browser remarks on it.
    page.on("console", lambda message: None if "getImageData" in message.text else said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("drawAllCharts()")
    page.wait_for_function("document.querySelector('#gallery figure:nth-child(2) canvas')")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    context.close()


def test_it_is_silent_whole_and_small(browser, report):
    assert report.stat().st_size < MOST_BYTES
    with opened(browser, report) as page:
        drawn = page.locator("figure:not([hidden]) > .chart svg.marks")
        assert drawn.count() == page.locator("figure:not([hidden]) > .chart").count() > 3
        pictures = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert pictures
        assert all(pictures)


@pytest.mark.parametrize("how", WIDTHS)
def test_axe_finds_no_serious_violation(browser, report, how):
    with opened(browser, report, how) as page:
        for summary in page.locator("details.more > summary").all():
            summary.click()
        found = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def test_it_fits_a_phone(browser, report):
    with opened(browser, report, "phone") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("Math.max(...[...document.querySelectorAll('.chart svg')].map(s => s.clientWidth))") < 390
        cut = """[...document.querySelectorAll('.chart svg.marks text')].filter(text =>
            text.getBoundingClientRect().right > text.ownerSVGElement.getBoundingClientRect().right + 1
        ).map(text => text.textContent)"""
        assert page.evaluate(cut) == []


def test_tables_are_sorted_by_mouse_and_keyboard(browser, report):
    with opened(browser, report) as page:
        page.locator("#table-leaderboard thead th", has_text="pixel_flipping").first.locator("button").focus()
        column = page.evaluate("document.activeElement.closest('th').cellIndex")
        values = f"""[...document.querySelectorAll('#table-leaderboard tbody tr:not([hidden])')]
            .map(row => row.cells[{column}].dataset.value).filter(Boolean).map(Number)"""
        before = page.evaluate(values)
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
        assert page.evaluate(values) == sorted(before)
        page.locator(f"#table-leaderboard thead tr:first-child th:nth-child({column + 1}) button").click()
        assert page.evaluate(values) == sorted(before, reverse=True)
        unknown = page.evaluate(values.replace(".filter(Boolean).map(Number)", ""))
        assert unknown == sorted(unknown, key=lambda value: value == "")


def test_tables_are_filtered(browser, report):
    with opened(browser, report) as page:
        rows = page.locator("#table-glance tbody tr:visible")
        everything = rows.count()
        page.locator("[data-filter='table-glance']").fill("grad PASS")
        assert 0 < rows.count() < everything
        assert all("grad" in text and "PASS" in text for text in rows.all_inner_texts())
        assert page.locator("[data-count='table-glance']").inner_text() == f"{rows.count()} rows"
        page.locator("[data-filter='table-glance']").fill("")
        assert rows.count() == everything


PIXELS = """() => {
    const canvas = document.querySelector('#gallery figure:nth-child(%d) canvas');
    return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_the_gallery_switches_method_sample_and_sign(browser, report):
    with opened(browser, report) as page:
        form = page.locator("#gallery-controls")

        def changed(action, place=2):
            before = page.evaluate(PIXELS % place)
            action()
            page.wait_for_function(
                f"before => String(({PIXELS % place})()) !== String(before)", arg=before, timeout=5000
            )
            return page.evaluate(PIXELS % place)

        signed = page.evaluate(PIXELS % 2)
        negative = changed(lambda: form.locator("[name=sign]").select_option("negative"))
        red, blue = negative[0::4], negative[2::4]
        assert all(r <= b + 1 for r, b in zip(red, blue, strict=True))
        positive = changed(lambda: form.locator("[name=sign]").select_option("positive"))
        assert all(r + 1 >= b for r, b in zip(positive[0::4], positive[2::4], strict=True))
        absolute = changed(lambda: form.locator("[name=sign]").select_option("absolute"))
        assert all(max(absolute[i : i + 3]) - min(absolute[i : i + 3]) <= 2 for i in range(0, len(absolute), 4))
        changed(lambda: form.locator("[name=over]").check())
        changed(lambda: form.locator("[name=over]").uncheck())
        assert changed(lambda: form.locator("[name=sign]").select_option("signed")) == signed
        changed(lambda: form.locator("[data-step='1']").click())
        assert changed(lambda: form.locator("[data-step='-1']").click()) == signed
        form.locator("[name=by]").select_option("method")
        page.wait_for_function("document.querySelectorAll('#gallery figure img').length === 0")
        first = page.evaluate(PIXELS % 1)
        assert first == signed
        changed(lambda: form.locator("[name=method]").select_option(index=1), place=1)
        name = form.locator("[name=method] option").nth(1).inner_text()
        assert f"{name}, samples 1 to" in page.locator("#gallery-note").inner_text()


def test_a_map_is_seen_on_black_and_its_colours_are_told(browser, made):
    with opened(browser, made) as page:
        form, bar = page.locator("#gallery-controls"), page.locator(".bar")
        assert bar.inner_text().split() == ["against", "for"]
        form.locator("[name=sign]").select_option("absolute")
        form.locator("[name=over]").check()
        page.wait_for_function("document.querySelector('#gallery .over img')")
        assert page.evaluate("getComputedStyle(document.querySelector('#gallery .over img')).opacity") == "0.4"
        assert "against" not in bar.inner_text().replace("for or against", "")
        grey = page.evaluate(
            "[...document.querySelector('#colour-bar').getContext('2d').getImageData(0, 0, 256, 1).data]"
        )
        assert grey[0::4] == sorted(grey[0::4], reverse=True)
        assert (grey[0], grey[-4]) == (255, 0)


def test_one_signal_of_many_channels_with_a_map_of_no_numbers(browser, tmp_path):
    def nowhere(model, x, target):
        return x * torch.nan

    torch.manual_seed(0)
    methods = [{"name": "nowhere", "method": nowhere}, {"method": "integrated_gradients", "steps": 4}]
    with opened(browser, written(tmp_path, torch.randn(1, 12, 100), methods)) as page:
        tiles = page.locator("#gallery figure")
        assert "not everywhere a number" in tiles.nth(1).inner_text()
        box = tiles.nth(2).locator(".frame").bounding_box()
        assert box["width"] > 400
        assert box["height"] > 60


def test_values_of_a_table_are_above_their_places_in_the_map(browser, tmp_path):
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    with opened(browser, written(tmp_path, x, ["gradient"])) as page:
        inked = """column => {
            const data = document.querySelector('#gallery canvas').getContext('2d').getImageData(column, 0, 1, 96).data;
            return [...data.filter((_, place) => place % 4 === 3).keys()].filter(row => data[4 * row + 3] > 60);
        }"""
        assert min(page.evaluate(inked, 20)) == min(page.evaluate(inked, 240)) > 85
        assert max(page.evaluate(inked, 270)) == max(page.evaluate(inked, 490)) < 10


def test_what_is_unknown_stands_last_in_columns_of_words(browser, made):
    with opened(browser, made) as page:
        page.evaluate("""() => {
            const cell = document.querySelector('#table-glance tbody').rows[1].cells[1];
            cell.dataset.value = cell.textContent = '';
        }""")
        for _ in ("ascending", "descending"):
            page.locator("#table-glance thead th").nth(1).locator("button").click()
            texts = page.evaluate(
                "[...document.querySelector('#table-glance tbody').rows].map(row => row.cells[1].textContent.trim())"
            )
            assert texts.index("") == len(texts) - 1


def test_a_method_is_told_apart_in_every_chart(browser, report):
    with opened(browser, report) as page:
        faint = "document.querySelectorAll('#flipping svg.marks path[opacity=\"0.08\"]').length"
        assert page.evaluate(faint) == 0
        button = page.locator("#flipping .legend button[data-method=gradient]")
        button.press("Enter")
        page.wait_for_function(f"{faint} > 0")
        pressed = page.locator(".legend button[aria-pressed=true]")
        assert set(pressed.all_inner_texts()) == {"gradient"}
        page.locator("#randomization .legend button[data-all]").click()
        page.wait_for_function(f"{faint} === 0")


def test_one_of_several_models_is_shown_at_a_time(browser, made):
    with opened(browser, made) as page:
        panels, rows = page.locator("#flipping .panel:visible"), page.locator("#table-glance tbody tr:visible")
        one, first = panels.count(), rows.count()
        texts = panels.all_inner_texts()
        page.locator("#subject").select_option("untrained")
        page.evaluate("drawAllCharts()")
        assert page.locator("figure:not([hidden]) > .chart svg.marks").count()
        assert (panels.count(), rows.count()) == (one, first)
        assert [text.split("\n")[0] for text in texts] == [text.split("\n")[0] for text in panels.all_inner_texts()]
        page.locator("#subject").select_option("")
        assert (panels.count(), rows.count()) == (2 * one, 2 * first)
        assert "RuntimeError: a mistake" in page.locator("#failures").inner_text()
        names = [text.split("\n")[1].split(".")[0] for text in panels.all_inner_texts()]
        assert names == ["mnist-cnn"] * one + ["untrained"] * one


def test_a_model_without_maps_shows_not_those_of_another(browser, made, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(made.parent, copied)
    with opened(browser, made) as page:
        assert page.locator("#gallery-note").inner_text().startswith("mnist-cnn: ")
    shutil.rmtree(copied / "maps" / "untrained")
    with opened(browser, write_report(Results.load(copied), copied / "report.html")) as page:
        page.locator("#subject").select_option("untrained")
        page.wait_for_function("!document.querySelector('#gallery figure')")
        assert page.locator("#gallery-note").inner_text() == "No maps of this model were kept."
        page.locator("#subject").select_option("")
        page.wait_for_function("document.querySelector('#gallery figure')")


def test_paper_gets_everything_but_the_controls(browser, report):
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        for hidden in ("nav", ".tools", "#gallery-controls"):
            assert not page.locator(hidden).first.is_visible()
        mark, cell = (
            f"getComputedStyle(document.querySelector('{each}')).fontSize" for each in ("tr.marks td", "tbody td")
        )
        assert page.evaluate(mark) == page.evaluate(cell)
        wide = "[...document.querySelectorAll('main table, main svg.marks, main img')].filter(e => e.offsetParent)"
        assert len(page.pdf(format="A4")) > 100_000
        assert page.evaluate(f"{wide}.length") > 0


def test_a_dark_page_on_paper_is_light(browser, report):
    with opened(browser, report, "dark") as page:
        colour = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(colour) == "rgb(20, 24, 29)"
        page.emulate_media(media="print")
        assert page.evaluate(colour) == "rgb(255, 255, 255)"
