"""The rows of a run as evidence: quantities with intervals, read by the protocol of a paper or by that of today."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.results import Results
from harness.series import Series, Stack, commonest
from harness.statistics import DEFAULT, Interval, Values, mean_interval, mean_of, over_draws, shares_above

VIEWS: Mapping[str, Mapping[str, str]] = {
    "signed": {"measure": "spearman", "sign": "signed"},
    "absolute": {"measure": "spearman", "sign": "absolute"},
    "up_to_sign": {"measure": "spearman", "sign": "up_to_sign"},
    "ssim": {"measure": "ssim"},
    "hog": {"measure": "hog"},
    "cosine": {"measure": "cosine"},
}
"""How two maps are compared -> the labels of the rows."""

LEVELS: Mapping[str, tuple[str, str | None]] = {
    "parameter_randomization": ("floor_shift", "ceiling_rerun"),
    "random_logit": ("floor_shift", "ceiling_rerun"),
    "label_randomization": ("floor_random", "ceiling_retrain"),
    "edge_similarity": ("floor_shift", None),
}
"""Test -> the roles of chance and of the best that can be; the latter is 1 where there is none."""

FULL: Mapping[str, Mapping[str, str | None]] = {
    "parameter_randomization": {"mode": "full", "stage": "all"},
    "random_logit": {"mode": "random", "stage": None},
    "label_randomization": {"mode": None, "stage": None},
    "edge_similarity": {"mode": None, "stage": None},
    "cosine_convergence": {"mode": None, "stage": None},
}
"""Test -> where the rows of its levels stand, and those of the test itself if nothing else is said."""

WHOLE: Mapping[str, str] = {
    "parameter_randomization": "all random",
    "random_logit": "another class",
    "label_randomization": "labels permuted",
    "edge_similarity": "with edges",
    "cosine_convergence": "lowest layer",
}
"""Test -> what the similarity is to, in a word or two."""

ROLES: Mapping[str, str] = {"floor_random": "two random networks"}

NOTHING = np.full((0, 1), np.nan)


@dataclass(frozen=True)
class Protocol:
    """One way to do a paper's tests, and to read them.

    Attributes:
        name: as in the table of claims.
        prefix: of the labels of its metrics in the study.
        above_chance: read the share of the similarity above chance and below the ceiling, with an interval over samples
            and random networks; else the similarity itself, over samples, as papers report it.
    """

    name: str
    prefix: str = ""
    above_chance: bool = True


TODAY = Protocol("today")


@dataclass(frozen=True)
class Reading:
    """A quantity with its interval.

    Attributes:
        name: what it is.
        values: numbers [samples, draws] whose mean it is.
        lacks: why there is none, if so.
        limits: its interval where it is no such mean.
    """

    name: str
    values: Values = field(default_factory=lambda: NOTHING)
    lacks: str = ""
    limits: Interval | None = None

    @property
    def interval(self) -> Interval:
        """The value with its interval."""
        return self.limits or mean_interval(self.values)

    def __str__(self) -> str:
        if self.lacks:
            return f"{self.name}: {self.lacks}"
        each = self.interval
        return f"{self.name} {each.value:.3f} [{each.low:.3f}, {each.high:.3f}]"


@dataclass(frozen=True)
class Evidence:
    """The rows of one model, read by one protocol.

    Attributes:
        model: what to call it.
        protocol: how to read them.
        stacks: (method, label of the metric) -> its rows.
    """

    model: str
    protocol: Protocol
    stacks: Mapping[tuple[str, str], Stack]

    def labels(self, test: str) -> list[str]:
        """The labels of all entries of this metric in the study, whatever the protocol."""
        found = [label for (_, label), stack in self.stacks.items() if stack.info.get("metric_function") == test]
        return list(dict.fromkeys(found))

    def series(self, method: str, test: str, **labels: str | None) -> list[Series]:
        """The series of a method in a test of this protocol that have these labels."""
        return self.rows(method, self.protocol.prefix + test, **labels)

    def rows(self, method: str, label: str, **labels: str | None) -> list[Series]:
        """The series of a method under one entry of the study's metrics that have these labels."""
        stack = self.stacks.get((method, label))
        scalars = stack.scalars if stack and stack.status == "done" else []
        return [each for each in scalars if all(each.labels[name] == value for name, value in labels.items())]

    def applying(self, methods: Sequence[str], test: str = "parameter_randomization") -> list[str]:
        """Those of the methods that are in the study and apply to this model: a claim is judged on no others."""
        stacks = {method: self.stacks.get((method, self.protocol.prefix + test)) for method in methods}
        return [method for method, stack in stacks.items() if stack and stack.status != "not_applicable"]

    def stages(self, method: str, mode: str = "top_down") -> list[str]:
        """The stages of a cascade, from the output down."""
        found = self.series(method, "parameter_randomization", mode=mode, role="test", **VIEWS["signed"])
        return [each.labels["stage"] for each in sorted(found, key=lambda each: each.labels["stage_index"])]

    def upper_half(self, method: str, mode: str = "top_down") -> list[str]:
        """The stages of the higher layers: the first half of them, from the output down."""
        stages = self.stages(method, mode)
        return stages[: len(stages) // 2]

    def similarity(self, method: str, view: str, test: str = "parameter_randomization", **where: str | None) -> Reading:
        """The similarity of maps as it is, averaged over draws: what papers report."""
        name, values, lacks = self._found(method, view, test, where)
        return Reading(name, values if lacks else over_draws(values), lacks)

    def left(self, method: str, view: str, test: str = "parameter_randomization", **where: str | None) -> Reading:
        """What is left of the map as the protocol reads it: see `Protocol.above_chance`.

        Where the share above chance is read, there is none of a stage at which the network's output hardly changed: no
        change of the map can be expected there.

        Args:
            method: whose maps.
            view: how they are compared, a key of `VIEWS`.
            test: the metric.
            where: labels of the rows, such as mode, stage and role, if other than those of the whole test.
        """
        if not self.protocol.above_chance:
            return self.similarity(method, view, test, **where)
        name, values, lacks = self._found(method, view, test, where)
        if lacks:
            return Reading(name, values, lacks)
        roles, place = LEVELS[test], FULL[test]
        floor = self._level(method, test, role=roles[0], **VIEWS[view], **place)
        ceiling = self._level(method, test, role=roles[1], **VIEWS[view]) if roles[1] else np.ones((len(values), 1))
        missing = [role for role, level in zip(roles, (floor, ceiling), strict=True) if np.isnan(level).all()]
        if missing:
            return Reading(name, NOTHING, f"no {missing[0]} to compare with")
        above = mean_of(ceiling) - mean_of(floor)
        if above < DEFAULT.ceiling_above_random:
            return Reading(name, NOTHING, f"nothing to lie between, the ceiling is {above:.2f} above chance")
        output = self._level(method, test, **{**place, **where, "role": "test", "measure": "output_pearson"})
        if mean_interval(output).low > DEFAULT.output_at_most:
            return Reading(name, NOTHING, f"the output hardly changed (correlation {mean_of(output):.2f})")
        return Reading(name, shares_above(values, floor, ceiling))

    def _level(self, method: str, test: str, **labels: str | None) -> Values:
        """The values of what other values are compared with; not a number where there is nothing."""
        found = self.series(method, test, **labels)
        return found[0].values if found else NOTHING

    def _found(self, method: str, view: str, test: str, where: Mapping[str, str | None]) -> tuple[str, Values, str]:
        """Name and values of a quantity, or why there are none."""
        labels = {"role": "test", **FULL[test], **VIEWS[view], **where}
        name = f"{method} {view}, {self._place(test, where)}"
        stack = self.stacks.get((method, self.protocol.prefix + test))
        if stack is None:
            return name, NOTHING, f"no {method} with {test} in this study"
        if stack.status != "done":
            failures = [failure["error"] for cell in stack.cells if (failure := stack.store.failure(cell))]
            reasons = [state["reason"] for state in stack.states if state.get("reason")]
            return name, NOTHING, ": ".join([stack.status.replace("_", " "), *(failures or reasons)[:1]])
        found = self.series(method, test, **labels)
        if not found:
            return name, NOTHING, f"{labels['measure']} does not apply to these maps"
        values = found[0].values
        undefined = float(np.isnan(values).mean())
        if undefined > DEFAULT.degenerate_at_most:
            return name, NOTHING, f"{undefined:.0%} undefined ({commonest(found[0].reasons)})"
        return name, values, ""

    def _place(self, test: str, where: Mapping[str, str | None]) -> str:
        """Where the numbers of a test were taken, in words."""
        if where.get("stage"):
            return (
                f"{where['stage']} alone random"
                if where.get("mode") == "independent"
                else f"random to {where['stage']}"
            )
        return ROLES.get(str(where.get("role")), WHOLE.get(test, test))


def evidence_of(results: Results, protocols: Sequence[Protocol]) -> list[Evidence]:
    """The evidence in a run: one for each model and protocol."""
    stacks: dict[tuple[str, int], dict[tuple[str, str], Stack]] = {key: {} for key in results.subjects}
    for stack in results.stacks():
        labels = stack.labels
        stacks[labels["model"], labels["model_seed"]][labels["method"], labels["metric"]] = stack
    return [Evidence(name, protocol, stacks[key]) for key, name in results.subjects.items() for protocol in protocols]
