"""What an exam gave: marks, and what it takes to tell maps apart. Views of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.entries import Metric
from harness.exam_figures import draw_agreement, draw_levels, save
from harness.marking import LOW, MIDDLE, QUALITIES, TRUTH, WRONG, Answers, Scores, mean, rank_agreement
from harness.marks import FAILED, PASSED
from harness.results import Results
from harness.statistics import mean_interval, over_draws
from harness.text import markdown

TASKS = {
    "region": {"name": "region", "source": "evidence-linear"},
    "spots": {"name": "spots", "source": "evidence-additive"},
}
"""Networks whose right maps are known, each with its data: a linear one, and one that sees evidence wherever it is."""

FEW = 16
"""Samples: where no more are needed, it is not worth while to say how draws could spare some."""

SPREAD = {"fill": "fills", "patch": "units", "superpixels": "units"}

WORST = {
    "negated": "max",
    "inverted": "max",
    "least_quality": "max",
    "least_loss": "max",
    "samples": "max",
    "samples_if_averaged": "max",
    "own_share": "max",
    "reliability": "min",
    "fills": "max",
    "units": "max",
}
"""How the outcomes of several tasks become one: the worst counts."""


@dataclass(frozen=True)
class Exam:
    """What an exam gave; every table is a view of its runs.

    Attributes:
        folder: where it is.
        entries: label -> the metric that was examined.
        fills: label -> the fill that it was examined with; empty where it has none.
        graded: the run with all maps.
        again: one map, with other draws of the metrics.
        company: one map, with the samples in another order and in small batches.
        setups: a few maps, with other fills and units.
        variants: label in `setups` -> the metric, and the option that is another one there.
    """

    folder: Path
    entries: Mapping[str, Metric]
    fills: Mapping[str, str]
    graded: Results
    again: Results
    company: Results
    setups: Results | None
    variants: Mapping[str, tuple[str, str]]

    @cached_property
    def answers(self) -> dict[tuple[str, str], Answers]:
        """(metric, task) -> what the metric said in it; without those that failed or do not apply."""
        again, company = _scores(self.again), _scores(self.company)
        middle, low = label_of(MIDDLE), label_of(LOW)
        found = {}
        for (metric, task), maps in self._graded.items():
            entry = self.entries[metric]
            sign = self._sign(metric)
            if (metric, task) not in again or (metric, task) not in company:
                continue
            found[metric, task] = Answers(
                {quality: sign * maps[label_of(quality)] for quality in QUALITIES},
                sign * maps["noise"],
                sign * maps["picture"],
                sign * maps["negated"],
                sign * maps["inverted"],
                sign * maps["rescaled"],
                sign * company[metric, task][middle][::-1],
                sign * (again[metric, task][middle] - again[metric, task][low]),
                None if entry.chance is None else sign * entry.chance,
            )
        return found

    @cached_property
    def _graded(self) -> dict[tuple[str, str], dict[str, Scores]]:
        return _scores(self.graded)

    @cached_property
    def tasks(self) -> pd.DataFrame:
        """One row for each metric and task: what is wrong, where maps score, what it takes to tell them apart."""
        return pd.DataFrame([self._marked(*key, answers) for key, answers in self.answers.items()])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each metric: its mark, and the worst of both tasks."""
        rows = []
        for label, entry in self.entries.items():
            here = self.tasks[self.tasks["metric"] == label] if len(self.tasks) else self.tasks
            faults = [f"{fault} ({row['task']})" for _, row in here.iterrows() for fault in row["faults"].split()]
            faults += [] if len(here) == len(TASKS) else ["not done in every task"]
            place = {"metric": label, "function": entry.name, "version": entry.version, "fill": self.fills[label]}
            mark = {"mark": FAILED if faults else PASSED, "faults": _merged(faults)}
            worst = {name: getattr(here[name], how)(skipna=False) for name, how in WORST.items() if len(here)}
            rows.append({**place, **mark, **worst})
        return pd.DataFrame(rows)

    @cached_property
    def levels(self) -> pd.DataFrame:
        """One row for each metric, task and map: the mean score with its interval."""
        rows = []
        for (metric, task), maps in self._graded.items():
            for label, values in maps.items():
                interval = mean_interval(values[:, None])
                place = {"metric": metric, "task": task, "map": label}
                rows.append({**place, "value": interval.value, "low": interval.low, "high": interval.high})
        return pd.DataFrame(rows)

    @cached_property
    def needed(self) -> pd.DataFrame:
        """One row for each metric, task and pair of qualities: how many samples tell them apart."""
        return pd.DataFrame(
            [
                {
                    "metric": metric,
                    "task": task,
                    "better": better,
                    "worse": worse,
                    "samples": each.needed(better, worse),
                }
                for (metric, task), each in self.answers.items()
                for better, worse in combinations(QUALITIES, 2)
            ]
        )

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """Metrics x metrics: Kendall's tau-b between the orders in which they put the maps of one sample."""
        labels = list(dict.fromkeys(metric for metric, _ in self.answers))
        matrix = pd.DataFrame(np.nan, index=labels, columns=labels)
        for one in labels:
            for other in labels:
                taus = [
                    rank_agreement(self.answers[one, task].graded, self.answers[other, task].graded)
                    for task in TASKS
                    if (one, task) in self.answers and (other, task) in self.answers
                ]
                matrix.loc[one, other] = np.mean(taus) if taus else np.nan
        return matrix.rename_axis("metric").reset_index()

    @cached_property
    def spread(self) -> pd.DataFrame:
        """One row for each metric, task and setup, a fill or a unit: where truth, middle and noise score."""
        rows = []
        for (label, task), maps in (_scores(self.setups) if self.setups else {}).items():
            metric, option = self.variants[label]
            place = {"metric": metric, "task": task, "kind": SPREAD[option], "setup": label}
            samples = len(next(iter(maps.values())))
            rows.append({**place, "samples": samples, **{name: mean(values) for name, values in maps.items()}})
        columns = ["metric", "task", "kind", "setup", "samples", *map(label_of, (TRUTH, MIDDLE)), "noise"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row for each cell that failed, in any of the runs."""
        runs = [self.graded, self.again, self.company, *([self.setups] if self.setups else [])]
        return pd.concat([each.failures for each in runs], ignore_index=True)

    @property
    def advice(self) -> list[str]:
        """What to conclude, in a few lines: what failed, and how many samples and draws it takes."""
        table, lines = self.table, []
        for _, row in table[table["mark"] == FAILED].iterrows():
            lines.append(f"{row['metric']} failed: {row['faults']}")
        known = table[table["mark"] == PASSED].dropna(subset=["samples"])
        for _, row in known.sort_values("samples").iterrows():
            wanted, averaged = row["samples"], row["samples_if_averaged"]
            draws = f", {averaged:.0f} if its draws were averaged" if averaged < wanted / 2 and wanted > FEW else ""
            lines.append(f"{row['metric']}: {wanted:.0f} samples tell a quality of {MIDDLE} from {LOW}{draws}")
        return lines

    def write(self) -> None:
        """Every table as CSV and as Markdown, and the figures."""
        tables = self.folder / "tables"
        tables.mkdir(parents=True, exist_ok=True)
        for name in ("table", "tasks", "levels", "needed", "agreement", "spread"):
            frame = getattr(self, name)
            frame.to_csv(tables / f"{'exam' if name == 'table' else name}.csv", index=False)
            (tables / f"{'exam' if name == 'table' else name}.md").write_text(markdown(frame))
        figures = self.folder / "figures"
        figures.mkdir(exist_ok=True)
        save(draw_levels(self.levels, self.table), figures / "levels.png")
        save(draw_agreement(self.agreement), figures / "agreement.png")

    def _sign(self, metric: str) -> int:
        return 1 if self.entries[metric].direction == "higher" else -1

    def _marked(self, metric: str, task: str, answers: Answers) -> dict[str, Any]:
        shown = {"truth": answers.graded[TRUTH], "wrong": answers.graded[WRONG]}
        shown |= {"picture": answers.picture, "noise": answers.noise}
        return {
            "metric": metric,
            "task": task,
            "faults": " ".join(answers.faults()),
            **{name: self._sign(metric) * mean(scores) for name, scores in shown.items()},
            "negated": answers.reversed_gain(answers.negated),
            "inverted": answers.reversed_gain(answers.inverted),
            "least_quality": answers.least_quality,
            "least_loss": answers.least_loss,
            "samples": answers.needed(MIDDLE, LOW),
            "samples_if_averaged": answers.needed_if_averaged,
            "own_share": answers.own_share,
            "reliability": answers.reliability,
            **{kind: self._spread(metric, task, kind, answers) for kind in ("fills", "units")},
        }

    def _spread(self, metric: str, task: str, kind: str, answers: Answers) -> float:
        """By how much the score of the truth differs between setups, as a share of what it gains over noise."""
        rows = self.spread
        here = rows[(rows["metric"] == metric) & (rows["task"] == task) & (rows["kind"] == kind)]
        if here.empty or not answers.gain:
            return np.nan
        # Of the same samples, which are the first ones.
        own = self._sign(metric) * mean(answers.graded[TRUTH][: int(here["samples"].iloc[0])])
        truths = [own, *here[label_of(TRUTH)]]
        return (max(truths) - min(truths)) / answers.gain


def label_of(quality: float) -> str:
    """What a map of this quality is called in the runs."""
    return f"quality-{quality:g}"


def _scores(results: Results) -> dict[tuple[str, str], dict[str, Scores]]:
    """(metric, task) -> map -> scores, of the metrics that are done for every map of the run."""
    found: dict[tuple[str, str], dict[str, Scores]] = {}
    maps = set()
    for stack in results.stacks():
        labels = stack.labels
        maps.add(labels["method"])
        series = stack.headline
        if series is not None:
            found.setdefault((labels["metric"], labels["model"]), {})[labels["method"]] = over_draws(series.values)[
                :, 0
            ]
    return {key: scores for key, scores in found.items() if set(scores) == maps}


def _merged(faults: Sequence[str]) -> str:
    """The faults, without the task where they occur in all."""
    names = [fault.partition(" (")[0] for fault in faults]
    return ", ".join(
        dict.fromkeys(
            name if names.count(name) == len(TASKS) else fault for name, fault in zip(names, faults, strict=True)
        )
    )
