"""The report of introspections in a real browser: silent, for screen readers, on a phone, in the dark and on paper."""

from contextlib import contextmanager

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from test_report_global import every_kind, made

from harness import Artifact
from harness.report.writing import write_report

WIDTHS = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": {"viewport": {"width": 390, "height": 844}}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    strips = Artifact("strips", "pictures", torch.randint(0, 256, (2, 1, 28, 900), dtype=torch.uint8), ("a", "b"))
    return write_report(made([*every_kind(), strips], methods=True), tmp_path_factory.mktemp("report") / "report.html")


@contextmanager
def opened(browser, path, how="light"):
    """The page with everything unfolded and drawn; nothing may be said on the console or asked of a network."""
    said, asked = [], []
    context = browser.new_context(**WIDTHS[how])
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    for summary in page.locator("details.more > summary").all():
        summary.click()
    page.evaluate("drawAllCharts()")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    context.close()


@pytest.mark.parametrize("how", WIDTHS)
def test_axe_finds_no_serious_violation_and_all_is_drawn(browser, report, how):
    with opened(browser, report, how) as page:
        found = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
        assert page.locator("#global .chart svg.marks").count() == page.locator("#global .chart").count() == 2 + 9
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_it_fits_a_phone(browser, report):
    with opened(browser, report, "phone") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        beside = page.evaluate("""[...document.querySelectorAll('.of-maps .network')]
            .map(network => network.getBoundingClientRect().top)""")
        assert len(beside) == 3
        assert len(set(beside)) == 1


def test_verdicts_are_sorted_and_filtered(browser, report):
    with opened(browser, report) as page:
        page.locator("#table-global thead th", has_text="trained").first.locator("button").click()
        values = (
            "[...document.querySelector('#table-global tbody').rows].map(row => Number(row.cells[3].dataset.value))"
        )
        assert page.evaluate(values) == [0.98, 24]
        page.locator("[data-filter='table-global']").fill("FAIL")
        assert page.locator("#table-global tbody tr:visible").count() == 1


def test_names_of_rows_stand_beside_their_rows(browser, report):
    with opened(browser, report) as page:
        image, name = (page.locator(f".heat {each}").first.bounding_box() for each in ("img", ".rows li"))
        assert image["y"] <= name["y"] + name["height"] / 2 <= image["y"] + image["height"]
        assert name["x"] + name["width"] <= image["x"]


def test_paper_shows_it(browser, report):
    with opened(browser, report, "dark") as page:
        page.emulate_media(media="print")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.network')).backgroundColor")
            == "rgb(246, 247, 249)"
        )
        assert page.locator(".of-pictures img").first.is_visible()
        assert len(page.pdf(format="A4")) > 50_000
