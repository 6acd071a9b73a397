"""The notebook: it runs from the first cell to the last, and shows what it says; as committed and as run today."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from readmes import ROOT

from harness.html import COLOURS

TOUR = ROOT / "harness" / "tour.ipynb"
SECONDS = 120


def check(notebook):
    """No error, tables with verdicts in colour, and pictures, in the notebook and in the page made of it."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in codes for output in cell.outputs]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("guided_backprop: random_logit is FAIL" in output.get("text", "") for output in outputs)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count("<table") >= 6
    styled = re.search(r"<style[^>]*>(?:(?!</style>).)*" + COLOURS["FAIL"], page, flags=re.DOTALL)
    for verdict, name in (("PASS", "gradient"), ("FAIL", "guided_backprop"), ("FAIL", "sobel")):
        assert COLOURS[verdict] in page
        assert re.search(rf"<tr>(?:(?!</tr>).)*{name}(?:(?!</tr>).)*>{verdict}<", page, flags=re.DOTALL), name
    assert styled
    assert "Traceback" not in page


def test_the_notebook_is_committed_with_what_it_shows():
    notebook = nbformat.read(TOUR, 4)
    nbformat.validate(notebook)
    check(notebook)
    for place in (str(ROOT), "/home/", "/tmp/", "/usr/"):
        assert place not in TOUR.read_text()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:\\]+)", TOUR.read_text()))
def test_what_it_points_to_is_there(link):
    assert (TOUR.parent / link).exists()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert os.environ["OMP_NUM_THREADS"] == "1"
    notebook = nbformat.read(TOUR, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    context = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=context).execute()
    check(notebook)
