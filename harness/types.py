"""The small shared vocabulary: scores, and the ways in which there can be none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from jaxtyping import Bool, Float, Shaped
from pydantic import AfterValidator, Field
from torch import Tensor

Role = Literal["test", "floor_shift", "floor_random", "floor_other", "ceiling_rerun", "ceiling_retrain"]
"""What a row is for: the test itself, a level that chance would give, or the best that could be reached."""

Mode = Literal[
    "top_down",
    "bottom_up",
    "independent",
    "full",
    "shuffled",
    "most_first",
    "least_first",
    "random",
    "runner_up",
    "least_likely",
]
"""How a network was randomized, in which order an input was perturbed, or which other class was explained."""

Network = Literal["trained", "random", "shuffled"]
"""Whose artifact it is: the trained network's, or that of one which has learnt nothing."""


Count = Annotated[int, Field(ge=1)]
"""An option that must be at least 1."""

NonNegative = Annotated[int, Field(ge=0)]
"""An option that must be at least 0."""

S = TypeVar("S", bound=Sequence[str])


def _distinct(names: S) -> S:
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} named twice")
    return names


Distinct = AfterValidator(_distinct)
"""Of an option that is a list of names: none may be named twice, for then scores are yielded twice."""


class NotApplicableError(Exception):
    """The method or metric makes no claim here; the message is the recorded reason. Not a failure."""


class InputError(ValueError):
    """Something the user gave is wrong; nothing was computed. The message says what, where and what instead."""


class StoppedError(RuntimeError):
    """A run cannot go on. What is finished is kept; the message says what to do."""


@dataclass(frozen=True)
class Score:
    """One named number for each sample (`values` of shape [n]), or one about the model (0-d).

    Attributes:
        measure: what the number is, a standard term in full.
        values: the numbers; NaN exactly where `undefined` gives a reason.
        undefined: reason -> the samples it holds for. No sample has two reasons.
        channels: how the channels of the maps were reduced (`sum`, `abs_sum`, or `kept`).
        sign: whether the sign of the maps counted (`signed`, `absolute`).
        normalization: what was done to the maps before comparing them.
        role: see `Role`.
        mode: see `Mode`.
        stage: the block down to which the network was randomized, `trained` or `all`; of an introspection the layer, or
            class, that the number is about.
        stage_index: its position; of randomized blocks 0 for the trained network.
        step: the fraction removed, or that of the training which is done.
        draw: the realisation of randomness.
    """

    measure: str
    values: Float[Tensor, "*n"]
    undefined: Mapping[str, Bool[Tensor, "*n"]] = field(default_factory=dict)
    channels: str | None = None
    sign: str | None = None
    normalization: str | None = None
    role: Role = "test"
    mode: Mode | None = None
    stage: str | None = None
    stage_index: int | None = None
    step: float | None = None
    draw: int | None = None


@dataclass(frozen=True)
class Artifact:
    """Something to look at that an introspection yields beside its scores; it is stored beside its cell.

    Attributes:
        name: what it is, unique among the artifacts of one layer.
        kind: how it is drawn. `pictures` [k, c, h, w] as the model takes them; `maps` [k, c, h, w], signed numbers of
            which zero is the middle; `matrix` [rows, columns]; `curves` [lines, points].
        values: the numbers.
        labels: of the pictures, rows or lines; empty where they have no names.
        columns: of the columns of a matrix or the points of a curve, names or numbers; empty: they are counted.
        axes: what the values are, and what the columns are, in words.
        stage: the layer it is about; None for the whole network.
        caption: what is seen, in a sentence.
        network: see `Network`.
    """

    name: str
    kind: Literal["pictures", "maps", "matrix", "curves"]
    values: Shaped[Tensor, "..."]
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] | tuple[float, ...] = ()
    axes: tuple[str, str] = ("", "")
    stage: str | None = None
    caption: str = ""
    network: Network = "trained"
