"""The table of methods in `methods/README.md`, made from the registry: `python -m harness.handbook` writes it anew."""

import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness.case import Explainer, Passes, counted
from harness.catalogue import METHODS
from harness.networks import VisionTransformer
from harness.registry import Method
from harness.space import InputSpace
from harness.types import NotApplicableError

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- table -->\n", "<!-- end of table -->\n")
CONSERVES = {"output": "$f_t(x)$", "difference": "$f_t(x) - f_t(b)$", None: ""}
SIDE, CLASSES, SAMPLES = 28, 10, 8


def table_of_methods() -> str:
    """Markdown, one row for each method of ours: definition, source, what its map sums to, cost."""
    lines = ["| method | definition | source | sums to | passes |", "| --- | --- | --- | --- | --- |"]
    for method in sorted(METHODS.values(), key=lambda method: (method.family == "control", method.family)):
        if method.function.__module__.startswith("harness."):
            cells = (f"`{method.name}`", method.summary, cited(method.cite), CONSERVES[method.conserves], cost(method))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
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
    for model in (convolutional.eval(), VisionTransformer((1, SIDE, SIDE), CLASSES).eval()):
        passes = Passes()
        with counted(model, passes), suppress(NotApplicableError):
            explain(model, x, target, space, ids, 0)
            # What is done once a batch, and not for each of its samples, is left out.
            return f"{passes.forward // SAMPLES} + {passes.backward // SAMPLES}"
    raise LookupError(f"{method.name} applies to neither of the networks that passes are counted on")


def main() -> None:
    """Write the table into `methods/README.md`."""
    path = ROOT / "methods" / "README.md"
    before, _, rest = path.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path.write_text(before + MARKS[0] + table_of_methods() + MARKS[1] + after)


if __name__ == "__main__":
    main()
