"""The tables in `methods/README.md` and `metrics/README.md`, made from the registries.

`python -m harness.handbook` writes them anew.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness.case import Case, Explainer, Passes, counted
from harness.catalogue import INTROSPECTIONS, METHODS, METRICS
from harness.entries import GLOBAL, Introspection, Method, Metric
from harness.models.analytic import Additive
from harness.models.loaded import LoadedModel
from harness.networks import VisionTransformer
from harness.space import InputSpace
from harness.text import sentence
from harness.types import NotApplicableError

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- table -->\n", "<!-- end of table -->\n")
OF_INTROSPECTIONS = ("<!-- introspections -->\n", "<!-- end of introspections -->\n")
CONSERVES = {"output": "$f_t(x)$", "difference": "$f_t(x) - f_t(b)$", None: ""}
FAMILIES = (
    "randomization",
    "invariance",
    "axioms",
    "faithfulness",
    "localization",
    "robustness",
    "descriptor",
    "complexity",
    "global",
)
SIDE, CLASSES, SAMPLES = 28, 10, 8


def table_of_methods() -> str:
    """Markdown, one row for each method of ours: definition, source, what its map sums to, cost."""
    lines = ["| method | definition | source | sums to | passes |", "| --- | --- | --- | --- | --- |"]
    for method in sorted(METHODS.values(), key=lambda method: (method.family == "control", method.family)):
        if method.function.__module__.startswith("harness."):
            cells = (f"`{method.name}`", method.summary, cited(method.cite), CONSERVES[method.conserves], cost(method))
            lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def table_of_introspections() -> str:
    """Markdown, one row for each introspection of ours: question, definition, source, measures, when it misleads."""
    lines = [
        "| introspection | question | definition | source | compared | misleads |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in INTROSPECTIONS.values():
        if each.function.__module__.startswith("harness."):
            cells = (f"`{each.name}`", each.question, each.summary, cited(each.cite), _compared(each))
            lines.append(_line((*cells, sentence(each.misleads))))
    return "\n".join(lines) + "\n"


def _compared(each: Introspection) -> str:
    return ", ".join(f"`{measure}` {side}" for measure, side in each.compares.items())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table_of_metrics() -> str:
    """Markdown, one row for each metric of ours: question, definition, source, direction, cost, when it misleads."""
    lines = [
        "| metric | question | definition | source | better | passes | misleads |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ours = [each for each in METRICS.values() if each.function.__module__.startswith("harness.")]
    for each in sorted(ours, key=lambda each: (FAMILIES.index(each.family), each.name)):
        better = f"`{each.headline}` {each.direction or 'describes'}" if each.headline else "what is compared"
        cells = (f"`{each.name}`", each.question, each.summary, cited(each.cite), better, cost_of_metric(each))
        lines.append(_line((*cells, each.misleads)))
    return "\n".join(lines) + "\n"


def cited(key: str) -> str:
    """Authors and year of an entry of references.bib."""
    entry = re.search(rf"@\w+\{{{key},(.*?)\n\}}", (Path(__file__).parent / "references.bib").read_text(), re.DOTALL)
    if not key or entry is None:
        return ""
    fields = dict(re.findall(r"(\w+) = \{(.*)\}", entry[1]))
    authors = [name.partition(",")[0] for name in fields["author"].split(" and ")]
    names = [re.sub(r"\\.|[{}]", "", name) for name in authors]
    return f"{' and '.join(names) if len(names) < 3 else f'{names[0]} et al.'} {fields['year']}"


def cost(method: Method) -> str:
    """Forward and backward passes for one sample, counted with default options on a picture and ten classes.

    On a small convolutional network with 16 channels, or on a small transformer for what needs attention.

    Raises:
        LookupError: the method applies to neither.
    """
    convolutional = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    x = torch.linspace(0, 1, SIDE**2).view(1, 1, SIDE, SIDE).repeat(SAMPLES, 1, 1, 1)
    space = InputSpace("image", mean=(0.0,), std=(1.0,))
    options = method.resolve({}) | ({"baseline": "black"} if "baseline" in method.options else {})
    target, ids = torch.zeros(SAMPLES, dtype=torch.long), [str(row) for row in range(SAMPLES)]
    explain = partial(Explainer(method, options).maps, background=1 - x, masks=x)
    known = Additive(torch.ones(()), 0.0)
    models = (convolutional, VisionTransformer((1, SIDE, SIDE), CLASSES)) if "truth" not in method.needs else (known,)
    for model in models:
        model.eval()
        passes = Passes()
        with counted(model, passes), suppress(NotApplicableError):
            explain(model, x, target, space, ids, 0)
            # What is done once a batch, and not for each of its samples, is left out.
            return f"{passes.forward // SAMPLES} + {passes.backward // SAMPLES}"
    raise LookupError(f"{method.name} applies to neither of the networks that passes are counted on")


def cost_of_metric(each: Metric) -> str:
    """Forward and backward passes for one sample beyond those of its map, counted with default options.

    On the same small network and picture as `cost`, on which it is the first method of its study; in words for a metric
    that trains networks or asks introspections.
    """
    if each.family == GLOBAL:
        return "of the introspection"
    if {"partner", "recipe"} & set(each.needs):
        return "training"
    model = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    x = torch.rand(SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    # Convergence is asked of what converges, completeness of what claims it.
    method = METHODS["integrated_gradients" if "claim" in each.needs else "gradient"]
    options = method.resolve({}) | ({"baseline": "black"} if "baseline" in method.options else {})
    case = Case(
        model=model.eval(),
        source=LoadedModel(model, None, 0, x[:1], lambda: x),
        explainer=Explainer(method, options),
        x=x,
        target=torch.arange(SAMPLES) % 2,
        samples=[str(row) for row in range(SAMPLES)],
        space=InputSpace("image", mean=(0.0,), std=(1.0,)),
        seed=0,
        chunk=SAMPLES,
        masks=(x > x.mean()).float(),
        parts=(torch.stack([x > x.mean(), x <= x.mean()], 1)[:, :, 0].float(), torch.stack([x, 1 - x], 1)),
    )
    case.maps  # noqa: B018 (computed once for all metrics, so not counted here)
    case.passes = Passes()
    with suppress(NotApplicableError):
        for _ in each.function(
            case, **{"fill": "black"} | each.resolve({}) if "fill" in each.options else each.resolve({})
        ):
            pass
    return f"{round(case.passes.forward / SAMPLES)} + {round(case.passes.backward / SAMPLES)}"


WRITTEN = (
    ("methods", MARKS, table_of_methods),
    ("methods", OF_INTROSPECTIONS, table_of_introspections),
    ("metrics", MARKS, table_of_metrics),
)
"""Folder of a README, the marks around a table in it, and what makes the table."""


def main() -> None:
    """Write the tables into the READMEs."""
    for folder, (first, last), table in WRITTEN:
        path = ROOT / folder / "README.md"
        before, _, rest = path.read_text().partition(first)
        _, _, after = rest.partition(last)
        path.write_text(before + first + table() + last + after)


if __name__ == "__main__":
    main()
