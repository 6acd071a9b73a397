"""A reproduction from end to end: a user's own, run twice, and everything that can be wrong with what is given."""

import re
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.claim_tables import BIBLIOGRAPHY
from harness.reproduction import Reproduction, reproduction_of
from harness.reproductions import BUILT_IN, NAMES
from harness.study import load_study
from harness.types import InputError

MINE = """
from functools import partial

from harness.claims import Claim, below
from harness.reproduction import Reproduction


def studies(given):
    return {
        "small": {
            "name": "small",
            "data": {"source": "digits", "samples": 12},
            "models": [{"name": "net", "source": "mlp", "weights": "random"}],
            "methods": ["gradient", "sobel"],
            "metrics": [{"metric": "parameter_randomization", "full_draws": 3, "cascade_draws": 2}, "edge_similarity"],
            "controls": False,
        }
    }


def forgets(evidence, method, bound):
    return below(evidence.left(method, "signed"), bound)


def claim(method):
    rule = f"less than {{bound:g}} of the {method} is left"
    check = partial(forgets, method=method)
    return Claim(method, f"the {method} forgets", "`adebayo2018sanity`", rule, check, {"bound": 0.5})


REPRODUCTION = Reproduction(
    name="mine", paper="adebayo2018sanity", title="Mine", studies=studies, claims=(claim("gradient"), claim("sobel"))
)
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


def test_a_reproduction_of_the_users_own_is_run_judged_and_written(mine, tmp_path):
    outcome = harness.reproduce(mine, tmp_path / "out", device="cpu")
    assert dict(zip(outcome.claims["claim"], outcome.claims["outcome"], strict=True)) == {
        "gradient": "reproduced",
        "sobel": "not reproduced",
    }
    assert list(outcome.claims["rule"]) == [f"less than 0.5 of the {m} is left" for m in ("gradient", "sobel")]
    written = {str(path.relative_to(outcome.folder)) for path in outcome.folder.rglob("*") if path.is_file()}
    assert {"claims.csv", "claims.md", "claims.tex", "citation.md", "small/manifest.json"} <= written
    assert {"figures/stages-net.png", "figures/edges-net.png"} <= written
    pd.testing.assert_frame_equal(pd.read_csv(outcome.folder / "claims.csv", keep_default_na=False), outcome.claims)
    assert not outcome.results["small"].failures.size


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_cites_the_same(mine, tmp_path):
    first = harness.reproduce(mine, tmp_path / "out", device="cpu")
    cells = {path: path.stat().st_mtime_ns for path in (first.folder / "small/cells").iterdir()}
    cited = (first.folder / "citation.md").read_text()
    second = harness.reproduce(reproduction_of(mine), tmp_path / "out", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in (second.folder / "small/cells").iterdir()} == cells
    assert (second.folder / "citation.md").read_text() == cited
    assert "title = {Sanity Checks for Saliency Maps}," in cited
    asked, answered = (re.search(rf"{word} (\w{{16}})", cited)[1] for word in ("asked", "answered"))
    assert asked != answered
    other = harness.reproduce(mine, tmp_path / "other", device="cpu", samples=6)
    assert asked not in (other.folder / "citation.md").read_text()


def test_what_is_given_wrong_is_refused_before_anything_is_computed(mine, tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    out = tmp_path / "out"
    for name, given, said in (
        ("adebayo", {}, "did you mean adebayo2018"),
        (str(tmp_path / "none.py"), {}, "no file"),
        (str(empty), {}, "expected a harness.Reproduction called REPRODUCTION, got NoneType"),
        (mine, {"cifar": tmp_path}, "mine takes no 'cifar'"),
        ("adebayo2018", {"cifar": tmp_path}, "no resnet20.safetensors, resnet56.safetensors, test, train there"),
    ):
        with pytest.raises(InputError, match=said):
            harness.reproduce(name, out, given=given)
    assert not out.exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_study_is_one_that_can_be_run(name):
    chosen = BUILT_IN[name]()
    assert isinstance(chosen, Reproduction)
    assert chosen.name == name
    assert f"{{{chosen.paper}," in BIBLIOGRAPHY.read_text()
    parts = chosen.studies({option: Path(option) for option in chosen.takes})
    assert set(chosen.studies({})) == {"digits"}
    assert set(parts) == {"digits", *chosen.takes}
    models = [model.name for study in parts.values() for model in load_study(study).models]
    assert len(models) == len(set(models))


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_names_its_bounds_and_every_figure_is_drawn_by_somebody(name):
    chosen = BUILT_IN[name]()
    ids = [claim.id for claim in chosen.claims]
    assert len(ids) == len(set(ids))
    for claim in chosen.claims:
        named = set(re.findall(r"{(\w+)", claim.rule))
        assert named == set(claim.tolerance), claim.id
        assert not claim.figure or claim.figure.partition("-")[0] in chosen.figures, claim.id
