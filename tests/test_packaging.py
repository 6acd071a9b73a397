"""The house: names, layers, sizes, and that it lives well with other people's modules."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import METHODS, METRICS
from harness.entries import GLOBAL
from harness.plan import NEEDS, USES

ROOT = Path(__file__).parents[1]
GROUND = {
    "entries",
    "introspecting",
    "registry",
    "types",
    "random",
    "space",
    "case",
    "remarks",
    "digests",
    "edges",
    "units",
    "inference",
    "inplace",
    "snapshot",
    "heap",
    "tensors",
}
SOURCES = sorted(path for folder in ("harness", "methods", "metrics") for path in (ROOT / folder).rglob("*.py"))


def ours(registry):
    """The entries that ship with the harness; other tests may have registered plugins."""
    return [entry for entry in registry.values() if entry.function.__module__.startswith("harness.")]


def imports(path):
    """The modules of ours that a file imports at run time, as dotted names."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "harness":
            found |= {
                f"{node.module}.{alias.name}" if node.module == "harness" else node.module for alias in node.names
            }
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "harness"}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_point_one_way(path):
    package, module = path.parent.name, path.stem
    used = imports(path)
    parts = {name.split(".")[1] for name in used if "." in name}
    if package == "harness" and module in GROUND:
        assert parts <= GROUND
    elif package in ("methods", "metrics"):
        assert parts <= GROUND | {package}
    elif package in ("networks", "statistics"):
        assert parts <= {package}
    elif package == "data":
        assert parts <= GROUND | {"data", "digests"}
    elif package == "guests":
        assert parts <= GROUND | {"guests", "methods", "plugins"}
    elif package == "models":
        assert not parts & {"study", "subjects", "plan", "engine", "store", "results", "tables", "api", "cli"}
    elif module == "__init__":
        assert not parts


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_files_hold_one_idea(path):
    assert len(path.read_text().splitlines()) <= 400


def test_a_file_says_what_it_is_for():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_public_names_resolve_and_unknown_ones_do_not():
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = harness.nonsense


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, harness; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_need_is_known_and_every_entry_documented():
    for entry in ours(METHODS) + ours(METRICS):
        assert set(entry.needs) <= set(NEEDS), entry.name
        assert len(entry.summary) > 20, entry.name
    for entry in ours(METRICS):
        assert set(entry.uses) <= set(USES), entry.name
    for entry in ours(METHODS):
        assert set(entry.expected) <= set(METRICS), entry.name


def test_every_metric_names_a_headline_that_it_yields():
    import torch

    from cases import case_of, network, rows, with_truth

    model, x, _ = network("modules", n=12)
    target = torch.arange(12) % 2
    for entry in ours(METRICS):
        name = entry.name
        if {"partner", "recipe"} & set(entry.needs) or entry.family == GLOBAL:
            continue  # test_label_randomization, test_remove_and_retrain and test_introspections have them
        claims = "claim" in entry.needs
        explainer = ("integrated_gradients", {"baseline": "grey", "steps": 8}) if claims else "input_x_gradient"
        options = {"full_draws": 2, "cascade_draws": 0} if name == "parameter_randomization" else {}
        options |= {"fill": "black"} if "fill" in entry.options else {}
        case = with_truth(case_of(model, x, target, explainer, build=lambda: network("modules")[0]))
        frame = rows(case, name, **options)
        assert entry.headline in set(frame["measure"]), name
        assert entry.direction in ("higher", "lower", None)
        assert torch.tensor(frame.loc[frame["measure"] == entry.headline, "value"].to_numpy()).isfinite().all()


def test_every_metric_says_what_it_answers_and_when_it_misleads():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "harness" / "references.bib").read_text()))
    for entry in ours(METRICS):
        assert entry.question.endswith("?"), entry.name
        assert entry.misleads.endswith("."), entry.name
        assert not entry.cite or entry.cite in known, entry.name


def test_doctests():
    for module in pkgutil.walk_packages(harness.__path__, "harness."):
        assert doctest.testmod(importlib.import_module(module.name)).failed == 0


@pytest.mark.slow
def test_a_script_with_its_own_metrics_and_methods_works_with_ours(tmp_path):
    """Theirs is found as `metrics`, ours as `harness.metrics`, in either order of import."""
    (tmp_path / "metrics.py").write_text("mine = 'their metrics'\n")
    (tmp_path / "methods.py").write_text("mine = 'their methods'\n")
    lines = [
        "import metrics, methods",
        "import harness.metrics.similarity, harness.methods.gradients",
    ]
    for order in (lines, lines[::-1]):
        script = tmp_path / "script.py"
        check = (
            "print(metrics.mine, methods.mine, len(harness.METHODS) > 5, harness.metrics.similarity.spearman.__name__)"
        )
        script.write_text("\n".join([*order, check]))
        printed = subprocess.check_output([sys.executable, str(script)], text=True, cwd=tmp_path)
        assert printed.split() == ["their", "metrics", "their", "methods", "True", "spearman"]


def test_committed_files_name_no_place_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needles = ["python" + "hosted", "pypi" + ".org", "/wo" + "rk/", "/ro" + "ot/"]
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".npz", ".parquet"):
            text = path.read_text()
            assert not [needle for needle in needles if needle in text], name
