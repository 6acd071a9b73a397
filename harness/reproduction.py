"""Reproductions of papers: studies with claims that are judged on their rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from harness.api import run
from harness.claim_figures import FIGURES, write_claim_figures
from harness.claim_tables import write_claims
from harness.claims import Claim, judge
from harness.entries import nearest
from harness.evidence import TODAY, Evidence, Protocol, evidence_of
from harness.plugins import load_file
from harness.preparation import RESULTS
from harness.progress import silent
from harness.reproductions import BUILT_IN
from harness.results import Results
from harness.study import load_study
from harness.training import Progress
from harness.types import InputError

DEFINITION = "REPRODUCTION"
"""The name under which a file of the user's own defines its reproduction."""

Given = Mapping[str, Path]


@dataclass(frozen=True)
class Reproduction:
    """A paper's claims, and the studies whose rows they are judged on.

    Attributes:
        name: also that of the folder of the results.
        paper: its key in references.bib.
        title: what it is about, in a line.
        studies: given folders -> name -> a study as a mapping; no two of their models have one name.
        claims: what is judged.
        protocols: the ways to do and read the tests, in the order of the table.
        takes: option -> what the folder given by it must hold, such as weights and pictures that are not ours.
        figures: name -> what draws it of the evidence of one model, one for each protocol; written as `NAME-MODEL.png`.
    """

    name: str
    paper: str
    title: str
    studies: Callable[[Given], Mapping[str, Mapping[str, Any]]]
    claims: Sequence[Claim]
    protocols: Sequence[Protocol] = (TODAY,)
    takes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Sequence[Evidence]], Figure | None]] = field(default_factory=lambda: FIGURES)

    def __post_init__(self) -> None:
        """Check that no two claims have one id.

        Raises:
            InputError: they do.
        """
        _no_name_twice([claim.id for claim in self.claims], f"{self.name}: claims")


@dataclass(frozen=True)
class Reproduced:
    """The outcome: `claims` has one row for each claim, model and protocol; `results` are those of each study."""

    reproduction: Reproduction
    claims: pd.DataFrame
    results: Mapping[str, Results]
    folder: Path


def reproduction_of(name: str) -> Reproduction:
    """A built-in reproduction, or that which a Python file defines as `REPRODUCTION`.

    Raises:
        InputError: there is none of this name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if not name.endswith(".py"):
        raise InputError(f"no reproduction {name!r}: neither built in nor a Python file; {nearest(name, BUILT_IN)}")
    found = getattr(load_file(Path(name)), DEFINITION, None)
    if not isinstance(found, Reproduction):
        raise InputError(f"{name}: expected a harness.Reproduction called {DEFINITION}, got {type(found).__name__}")
    return found


def reproduce(
    reproduction: str | Reproduction,
    out: str | Path | None = None,
    *,
    given: Mapping[str, str | Path] | None = None,
    device: str = "auto",
    samples: int | None = None,
    chunk: int | None = None,
    progress: Progress = silent,
) -> Reproduced:
    """Run the studies of a reproduction and judge its claims; what is finished in the folder is not computed again.

    Writes `claims.csv`, `claims.md`, `claims.tex`, `citation.md` and `figures/` beside the run folder of each study,
    anew after each of them, so that what is wrong in one takes nothing from those before it.

    Args:
        reproduction: a built-in name, a Python file that defines one, or one at hand.
        out: the folder; `results/<name>` by default.
        given: folders with what is not ours, by option, such as {"cifar": "cifar10"}.
        device: auto (CUDA where there is one), cpu or cuda.
        samples: overrides how many samples of each model's data are used.
        chunk: how many samples go through a model at once.
        progress: told what happens.

    Raises:
        InputError: there is no such reproduction, or what is given is not as it must be; nothing has been computed.
            Also if data or weights of a study cannot be used; the studies before it are finished and judged.
    """
    chosen = reproduction if isinstance(reproduction, Reproduction) else reproduction_of(reproduction)
    studies = chosen.studies(_checked(chosen, given or {}))
    models = [model.name for study in studies.values() for model in load_study(study).models]
    if not models:
        raise InputError(f"{chosen.name}: there is nothing to run without {', '.join(chosen.takes) or 'studies'}")
    _no_name_twice(models, f"{chosen.name}: models of its studies")
    folder = Path(out) if out else RESULTS / chosen.name
    options: dict[str, Any] = {"device": device, "samples": samples, "chunk": chunk, "progress": progress}
    results: dict[str, Results] = {}
    for name, study in studies.items():
        results[name] = run(study, folder / name, **options)
        claims = _judged(chosen, results, folder)
    return Reproduced(chosen, claims, results, folder)


def _judged(reproduction: Reproduction, results: Mapping[str, Results], folder: Path) -> pd.DataFrame:
    evidence = [each for part in results.values() for each in evidence_of(part, reproduction.protocols)]
    # Protocols side by side: all models by the first, then all by the next.
    evidence.sort(key=lambda each: reproduction.protocols.index(each.protocol))
    drawn = {path.name for path in write_claim_figures(reproduction.figures, evidence, folder / "figures")}
    claims = judge(reproduction.claims, evidence)
    claims["figure"] = claims["figure"].where(claims["figure"].isin(drawn), "")
    write_claims(claims, reproduction.title, reproduction.paper, results, folder)
    return claims


def _no_name_twice(names: Sequence[str], what: str) -> None:
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise InputError(f"{what}: two are called {twice[0]!r}")


def _checked(reproduction: Reproduction, given: Mapping[str, str | Path]) -> dict[str, Path]:
    folders = {option: Path(folder) for option, folder in given.items()}
    for option, folder in folders.items():
        if option not in reproduction.takes:
            known = nearest(option, reproduction.takes)
            raise InputError(f"{reproduction.name} takes no {option!r}; {known}")
        missing = [name for name in reproduction.takes[option] if not (folder / name).exists()]
        if missing:
            wanted = ", ".join(reproduction.takes[option])
            raise InputError(f"{option} {folder}: no {', '.join(missing)} there; expected a folder with {wanted}")
    return folders
