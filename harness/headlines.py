"""The headlines of a run with all their numbers: what methods are compared and ranked by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from harness.catalogue import METRICS
from harness.series import Stack
from harness.statistics import Statistic, Values, over_draws

Direction = Literal["higher", "lower", ""]
Subject = tuple[str, int]


@dataclass(frozen=True)
class Headline:
    """The headline of one model, method and metric.

    Attributes:
        labels: model, model seed, method, metric.
        method_family: such as `control`.
        metric_family: such as `faithfulness`.
        direction: which values are better; empty where none are.
        measure: its name.
        statistic: what stands for its values.
        values: [samples, draws].
        targets: the class that was explained of each sample; -1 where that is not recorded.
    """

    labels: dict[str, Any]
    method_family: str
    metric_family: str
    direction: Direction
    measure: str
    statistic: Statistic
    values: Values
    targets: np.ndarray

    @property
    def subject(self) -> Subject:
        """The model and its seed."""
        return self.labels["model"], self.labels["model_seed"]

    @property
    def ranks(self) -> bool:
        """Whether methods can be ranked by it: not by randomization tests, which noise would win."""
        return bool(self.direction) and self.metric_family != "randomization"

    @property
    def scores(self) -> Float[np.ndarray, " samples"]:
        """A number for each sample, the mean over draws, higher for better."""
        each = over_draws(self.values)[:, 0]
        return -each if self.direction == "lower" else each


def headline(stack: Stack) -> Iterator[dict[str, Any]]:
    """The headline of a stack as a row that holds it; nothing where it has none about samples."""
    found = stack.headline
    if found is None or found.about_model:
        return
    info, targets = stack.info, stack.targets
    known = METRICS.get(info["metric_function"])
    # Runs of earlier versions have not recorded the family.
    family = info.get("metric_family") or (known.family if known else "")
    yield {
        "headline": Headline(
            stack.labels,
            info["method_family"],
            family,
            info["direction"] or "",
            info["headline"],
            info["summary_statistic"],
            found.values,
            np.array([targets.get(name, -1) for name in found.samples]),
        )
    }


def by_metric(headlines: Sequence[Headline]) -> dict[tuple[Subject, str], list[Headline]]:
    """The headlines of methods that are no controls, by model and metric."""
    found: dict[tuple[Subject, str], list[Headline]] = {}
    for each in headlines:
        if each.method_family != "control":
            found.setdefault((each.subject, each.labels["metric"]), []).append(each)
    return found


def matrix(headlines: Sequence[Headline]) -> tuple[list[str], Float[np.ndarray, "methods samples"]]:
    """The scores of methods on the samples where all have one; methods that have none are left out.

    Methods whose samples are others, because their cells are of another study, cannot be ranked with the rest.
    """
    some = [each for each in headlines if not np.isnan(each.values).all()]
    size = max((len(each.values) for each in some), default=0)
    some = [each for each in some if len(each.values) == size]
    scores = np.array([each.scores for each in some]).reshape(len(some), size)
    return [each.labels["method"] for each in some], scores[:, ~np.isnan(scores).any(0)] if len(some) else scores
