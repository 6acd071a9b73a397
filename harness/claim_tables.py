"""The claims of a reproduction as tables for people: Markdown, LaTeX, and how to cite the run."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.digests import digest
from harness.latex import latex
from harness.results import Results
from harness.store import write_atomically
from harness.text import markdown

BIBLIOGRAPHY = Path(__file__).parent / "references.bib"
ARROW = " → "


def wide(claims: pd.DataFrame) -> pd.DataFrame:
    """One row for each claim, one column for each model: its outcome, or one for each protocol where they differ."""
    protocols = list(dict.fromkeys(claims["protocol"]))

    def told(outcomes: "pd.Series[str]") -> str:
        found = list(outcomes)
        return found[0] if len(set(found)) == 1 else ARROW.join(found)

    ordered = claims.sort_values("protocol", key=lambda names: names.map(protocols.index), kind="stable")
    table = ordered.groupby(["claim", "words", "model"], sort=False)["outcome"].agg(told).unstack("model")
    models = list(dict.fromkeys(claims["model"]))
    in_order = list(dict.fromkeys(zip(claims["claim"], claims["words"], strict=True)))
    return table.reindex(in_order)[models].reset_index().rename_axis(columns=None)


def counts(claims: pd.DataFrame) -> pd.DataFrame:
    """How many claims came out how, on each model by each protocol."""
    table = claims.groupby(["model", "protocol"], sort=False)["outcome"].value_counts().unstack(fill_value=0)
    return table.reset_index().rename_axis(columns=None)


def changes(claims: pd.DataFrame) -> pd.DataFrame:
    """The claims whose outcome depends on the protocol, by claim and model: a column for each protocol."""
    protocols = list(dict.fromkeys(claims["protocol"]))
    said = claims["outcome"] + ": " + claims["numbers"]
    table = claims.assign(said=said).pivot(index=["claim", "model"], columns="protocol", values="said")
    different = claims.groupby(["claim", "model"])["outcome"].nunique() > 1
    in_order = list(dict.fromkeys(zip(claims["claim"], claims["model"], strict=True)))
    found = table.reindex([key for key in in_order if different[key]])[protocols]
    return found.reset_index().rename_axis(columns=None)


def write_claims(claims: pd.DataFrame, title: str, paper: str, results: Mapping[str, Results], folder: Path) -> None:
    """The claims as `claims.csv`, `claims.md` and `claims.tex`, and `citation.md`."""
    cited = citation(title, paper, results, claims)
    pictures = sorted(path for name in results for path in (folder / name / "figures").glob("cascade-*.png"))
    shown = "".join(f"- [{path.stem}]({path.relative_to(folder).as_posix()})\n" for path in pictures)
    parts = [page_of(claims, title), f"## Maps, stage by stage\n\n{shown}" if shown else "", cited]
    files = {
        "claims.csv": claims.to_csv(index=False),
        "claims.md": "\n".join(filter(None, parts)),
        "claims.tex": latex(wide(claims).drop(columns="words")),
        "citation.md": cited,
    }
    for name, text in files.items():
        write_atomically(folder / name, text.encode())


def page_of(claims: pd.DataFrame, title: str) -> str:
    """The page of a reproduction: the table, what depends on the protocol, and each claim with rule and numbers."""
    protocols = list(dict.fromkeys(claims["protocol"]))
    both = f" Where protocols differ: {ARROW.join(protocols)}." if len(protocols) > 1 else ""
    parts = [
        f"# {title}\n",
        f"Rules were set down before the run; intervals are of 95 %.{both}\n",
        markdown(wide(claims)),
    ]
    if len(protocols) > 1:
        table = changes(claims)
        parts += ["## Where the protocol decides\n", markdown(table) if len(table) else "Nowhere.\n"]
    parts.append("## Claims, rules and numbers\n")
    for claim, rows in claims.groupby("claim", sort=False):
        first = rows.iloc[0]
        parts.append(f"### {claim}: {first['words']}\n\n{first['source']}. Reproduced if {first['rule']}.\n")
        shown = rows[["model", "protocol", "outcome", "numbers"]]
        parts.append(markdown(shown if len(protocols) > 1 else shown.drop(columns="protocol")))
        figures = [name for name in dict.fromkeys(rows["figure"]) if name]
        if figures:
            parts.append("Figures: " + ", ".join(f"[{name}](figures/{name})" for name in figures) + "\n")
    return "\n".join(parts)


def citation(title: str, paper: str, results: Mapping[str, Results], claims: pd.DataFrame) -> str:
    """How to cite the run: the paper, and hashes of what was asked and of what came out."""
    entry = re.search(rf"@\w+\{{{paper},.*?\n\}}\n", BIBLIOGRAPHY.read_text(), re.DOTALL)
    asked = digest(sorted(cell.key for part in results.values() for cell in part.planned))[:16]
    answered = digest(claims.to_csv(index=False))[:16]
    environment = next(iter(results.values())).manifest["environment"]
    versions = f"torch {environment['torch']}, {environment['device']}"
    weights = [
        f"| {subject['model']} | {subject['weights']} | {subject['dataset']} | {subject['samples']} |"
        for part in results.values()
        for subject in part.manifest["subjects"]
    ]
    return "\n".join(
        [
            "## How to cite this run\n",
            "```bibtex",
            *([entry[0].rstrip()] if entry else []),
            f"@misc{{attributionharness{asked},",
            f"  title = {{{title}: a reproduction with attribution-harness}},",
            f"  note = {{asked {asked}, answered {answered}, code {environment['code'][:16]}, {versions}}},",
            "}",
            "```\n",
            "`asked` is a hash of all cells (weights, samples, options, seeds), `answered` one of the claims.\n",
            "| model | weights | data | samples |",
            "| --- | --- | --- | --- |",
            *weights,
            "",
        ]
    )
