"""LaTeX tables: what they are, and that they compile."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from harness.latex import escaped, latex
from harness.table_files import FORMATS, write_tables
from made_rows import cascades, results_of

HARD = pd.DataFrame(
    {
        "a_b": ["50 % & more → ±", r"C:\path~1^2 {x} #1 $5", "< 0.05 > · \N{MULTIPLICATION SIGN} ≥ ≤"],
        "value": [1.23456789, np.nan, 1e-9],
        "words": ["short", "a text that is much longer than forty characters, and so is wrapped", ""],
    }
)


def test_numbers_stand_right_words_left_and_long_ones_are_wrapped():
    lines = latex(HARD).splitlines()
    assert lines[0] == r"\begin{tabular}{lrp{5cm}}"
    assert lines[1] == r"\toprule"
    assert lines[2] == r"a\_b & value & words \\"
    assert lines[4].startswith(r"50 \% \& more $\rightarrow$ $\pm$ & 1.235 & short")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_nothing_in_a_text_means_anything_to_latex():
    assert escaped(r"\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert escaped("a\nb") == "a b"
    left = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$\\?[a-z<>]+\$", "", escaped("&%$#_{}\\~^<>→"))
    assert left == ""


def test_a_table_without_columns_is_a_comment():
    assert latex(pd.DataFrame()) == "% no rows\n"


@pytest.mark.slow
def test_every_table_of_a_run_compiles(tmp_path):
    assert shutil.which("pdflatex"), "pdflatex is needed: apt-get install texlive-latex-recommended"
    levels = dict.fromkeys(("signed", "absolute"), (0.5, 0.3, 0.1, 0.0))
    run = results_of(
        {(method, "parameter_randomization"): cascades(levels) for method in ("gradient", "lrp_0", "sobel")}
    )
    write_tables(run, tmp_path)
    (tmp_path / "hard.tex").write_text(latex(HARD))
    inputs = "\n".join(rf"\input{{{path.name}}}\par" for path in sorted(tmp_path.glob("*.tex")))
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_every_form_is_text_of_the_whole_table():
    for name, form in FORMATS.items():
        text = form(HARD)
        assert "short" in text, name
        assert text.endswith("\n"), name


def test_parquet_reads_back(tmp_path):
    run = results_of({("gradient", "parameter_randomization"): cascades({"signed": (0.5, 0.3, 0.1, 0.0)})})
    write_tables(run, tmp_path)
    for name in ("verdicts", "rankings", "glance"):
        back = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(back.columns) == list(run.table(name).columns)
        assert len(back) == len(run.table(name))
