"""How an introspection is asked of a network, and what it is told of the data."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.case import Case, Source, counted
from harness.entries import Introspection
from harness.random import seed_of
from harness.types import Artifact, Score

T = TypeVar("T")

KEPT = "introspection"
"""Where a source keeps what an introspection shares between networks."""


@dataclass(frozen=True)
class Samples:
    """The samples of a study, as an introspection sees them: all at once.

    Attributes:
        x: as the model takes them.
        labels: the true classes; None where nobody knows them.
        ids: a stable id for each.
        classes: names of the classes by index; empty where they have none.
    """

    x: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"] | None
    ids: Sequence[str]
    classes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """What a class is called: its name, else its number."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index)


def introspect(case: Case, model: nn.Module | None = None, call: object = 0) -> list[Score | Artifact]:
    """What the introspection of a case says of a network, by default of the trained one.

    All networks are asked with the same random numbers; a new `call` gives new ones.

    Raises:
        TypeError: it yielded something else than scores about the network and artifacts.
    """
    entry = case.explainer.method
    assert isinstance(entry, Introspection)
    model = case.model if model is None else model
    known: dict[str, Any] = {
        "seed": seed_of(case.seed, "introspection", entry.name, call),
        "source": case.source,
        "chunk": case.chunk,
        "reference": case.model,
    }
    # What it keeps by `once` is of no use to the next one.
    asked = (entry.name, repr(sorted(case.explainer.options.items())))
    if case.source.shared.get(KEPT, (None,))[0] != asked:
        case.source.shared[KEPT] = (asked, {})
    filled = {name: value for name, value in known.items() if name in entry.parameters}
    data = Samples(case.x, case.labels, case.samples, case.classes)
    with counted(model, case.passes), torch.no_grad():
        found = list(entry.function(model, case.space, data, **case.explainer.options, **filled))
    for each in found:
        if not isinstance(each, Artifact) and not (isinstance(each, Score) and each.values.ndim <= 1):
            raise TypeError(f"{entry.name} yielded a {type(each).__name__}, expected scores and artifacts")
    return found


def once(source: Source, key: Hashable, make: Callable[[], T]) -> T:
    """What does not depend on the network that is asked about, and is made for the first one of a source only.

    Args:
        source: keeps it, until another introspection is asked.
        key: what it depends on, and a name for it.
        make: makes it.
    """
    known = source.shared.setdefault(KEPT, (None, {}))[1]
    if key not in known:
        known[key] = make()
    made: T = known[key]
    return made
