"""Views of the randomization tests: verdicts, how they depend on thresholds, and from which stage on a map changes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from harness.series import Series, Stack, commonest, where
from harness.statistics import (
    DEFAULT,
    FALSE_VERDICTS,
    NO_INTERVAL,
    SAME_MAP,
    Survival,
    Thresholds,
    Values,
    left_above,
    mean_interval,
    mean_of,
    survival,
)

Row = dict[str, Any]
Levels = Mapping[str, np.ndarray]
"""Role -> values [samples, draws]; empty where there are none."""

SIMILARITIES = ("spearman", "pearson", "cosine", "ssim", "hog", "top_k", "time_profile", "frequency_profile")
VIEW = ("measure", "channels", "sign", "normalization")
LEVELS = ("floor_shift", "floor_random", "floor_other", "ceiling_rerun", "ceiling_retrain")
CASCADES = ("top_down", "bottom_up", "independent")
NOTHING = np.full((0, 1), np.nan)

MODES: Mapping[str, str | None] = {
    "parameter_randomization": "full",
    "random_logit": "random",
    "label_randomization": None,
}
"""Function of a metric that compares maps with levels -> the mode of the rows that it is about."""

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The thresholds at which verdicts are looked at."""


def verdicts(stack: Stack, thresholds: Thresholds = DEFAULT) -> Iterator[Row]:
    """One row for each model, method, randomization test and view: what survives, the levels beside it, the verdict.

    Survival is above `floor_shift` and below `ceiling_rerun`. `above_random`: the same above `floor_random`, where 0
    means that nothing that was learnt is left. `of_retrained`: the same below `ceiling_retrain`. `chance`: how often
    a survival this far on its side of the threshold is seen if the truth stands at it.

    Label randomization has one pair of networks and so no verdict: its survival is above `floor_random` (two networks
    on permuted labels) and below `ceiling_retrain` (two on true ones), with an interval over samples only.
    """
    function = stack.info.get("metric_function", "")
    if function not in MODES:
        return
    expected = (stack.info["method_expected"] or {}).get(function, "")
    similar = [s for s in stack.scalars if s.labels["measure"] in SIMILARITIES]
    similar = [s for s in similar if s.labels["mode"] in (None, MODES[function])]
    output = _values(where(stack.scalars, mode="full", measure="output_pearson"))
    for key in dict.fromkeys(tuple(s.labels[name] for name in VIEW) for s in similar):
        view = dict(zip(VIEW, key, strict=True))
        found = where(similar, **view)
        levels = {role: _values(where(found, role=role)) for role in ("test", *LEVELS)}
        if function == "label_randomization":
            result = _between(levels, [s.reasons for s in where(found, role="test")], thresholds)
        else:
            twins = {"floor_random": levels["floor_random"], "output": output}
            unknown = np.full_like(levels["test"], np.nan)
            result = survival(
                levels["test"],
                levels["floor_shift"] if levels["floor_shift"].size else unknown,
                levels["ceiling_rerun"] if levels["ceiling_rerun"].size else unknown[:, :1],
                **(twins if function == "parameter_randomization" else {}),
                thresholds=thresholds,
            )
        yield {**stack.labels, "test": function, **view, **_told(result, levels, expected, output, thresholds)}


def _told(result: Survival, levels: Levels, expected: str, output: np.ndarray, thresholds: Thresholds) -> Row:
    means = {role: mean_of(values) for role, values in levels.items()}
    similarity, shift, ceiling = means["test"], means["floor_shift"], means["ceiling_rerun"]

    def placed(floor: float, ceiling: float) -> float:
        # Between levels that hardly differ a place is noise.
        apart = ceiling - floor > thresholds.ceiling_above_random and result.verdict != "INVALID"
        return (similarity - floor) / (ceiling - floor) if apart else np.nan

    return {
        "verdict": result.verdict,
        "expected": expected,
        "survival": result.survival.value,
        "low": result.survival.low,
        "high": result.survival.high,
        "chance": result.chance,
        "above_random": placed(means["floor_random"], ceiling),
        "of_retrained": placed(shift, means["ceiling_retrain"]),
        "similarity": similarity,
        **{role: means[role] for role in LEVELS},
        "output_pearson": mean_of(output),
        "draws": levels["test"].shape[1],
        "reason": result.reason,
    }


def _between(levels: Levels, reasons: list[Counter[str]], thresholds: Thresholds) -> Survival:
    """Where the map of a network on permuted labels lies between those of two such and of two on true labels."""
    test, floor, ceiling = (levels[role] for role in ("test", "floor_random", "ceiling_retrain"))
    if np.isnan(mean_of(test)):
        return Survival("", commonest(sum(reasons, Counter())), NO_INTERVAL)
    above = mean_of(ceiling) - mean_of(floor)
    if np.isnan(above):
        return Survival("", "one of the levels is unknown", NO_INTERVAL)
    if above < thresholds.ceiling_above_random:
        said = f"two networks trained on true labels agree by {above:.2f} more than two trained on permuted ones"
        return Survival("", f"{said}: nothing to lie between", NO_INTERVAL)
    return Survival("", "one pair of networks: no verdict, interval over samples", left_above(test, floor, ceiling))


def in_error(judged: pd.DataFrame) -> str:
    """How many of the verdicts are expected to be false by chance, in words; empty if there are none.

    A verdict is taken where a limit of a 95 % interval passes a threshold, so that each one that can be taken is false
    in at most 2.5 % of runs, however near the truth is to that threshold.

    Args:
        judged: the table of verdicts.
    """
    count = 0 if judged.empty else int(judged["verdict"].isin(["PASS", "FAIL", "INCONCLUSIVE"]).sum())
    words = f"of {count} verdicts at most {FALSE_VERDICTS * count:.1f} are expected to be false by chance"
    return words if count else ""


def curve(judged: pd.DataFrame, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """The verdict at each threshold: PASS where all of the interval is below, FAIL where all of it is above.

    A verdict with thresholds for PASS and FAIL is PASS where the first says so, FAIL where the second does.

    Args:
        judged: the table of verdicts.
        thresholds: the others: they hold at every place of the curve.
    """
    if judged.empty:
        return judged
    judged = judged[judged["verdict"] != ""]
    same_map = judged["reason"] == SAME_MAP
    places = {}
    for at in GRID:
        below, above = judged["high"] < at, judged["low"] > at
        few = judged["draws"] < thresholds.draws
        cases = {"INVALID": judged["verdict"] == "INVALID", "FAIL": same_map, "INCONCLUSIVE": few, "PASS": below}
        places[f"{at:.2f}"] = np.select(list(cases.values()), list(cases), np.where(above, "FAIL", "INCONCLUSIVE"))
    labels = ["model", "model_seed", "method", "metric", *VIEW]
    return pd.concat([judged[labels], pd.DataFrame(places, index=judged.index)], axis=1)


def cascade(stack: Stack, thresholds: Thresholds = DEFAULT) -> Iterator[Row]:
    """Spearman correlation of signed maps, and its absolute value, stage by stage of every kind of cascade.

    `survival`, with its limits, is what is left of it above chance: shift floor of the full randomization, re-run
    ceiling; unknown where two calls on the trained network agree too little.
    """
    if stack.info.get("metric_function") != "parameter_randomization":
        return
    similar = [s for s in where(stack.scalars, measure="spearman") if s.labels["sign"] != "absolute"]
    for series in where(similar, role="test"):
        if series.labels["mode"] not in CASCADES:
            continue
        levels = where(similar, sign=series.labels["sign"])
        floor, ceiling = (_values(where(levels, role=role)) for role in ("floor_shift", "ceiling_rerun"))
        known = floor.size and mean_of(ceiling) >= thresholds.ceiling_at_least
        left = left_above(series.values, floor, ceiling) if known else NO_INTERVAL
        yield {
            **stack.labels,
            **{name: series.labels[name] for name in ("mode", "sign", "stage_index", "stage")},
            **asdict(mean_interval(series.values)),
            "survival": left.value,
            "survival_low": left.low,
            "survival_high": left.high,
            "undefined": float(np.isnan(series.values).mean()),
        }


def sensitivity(stages: pd.DataFrame, thresholds: Thresholds = DEFAULT) -> pd.DataFrame:
    """From which stage of a cascade on less than half of the similarity above chance is left; no verdict.

    In mode `independent` each block stands alone, and those are listed to which a map is sensitive.

    Args:
        stages: the table of the cascade.
        thresholds: a stage counts where the upper limit of the survival is below `fail_above`.
    """
    if stages.empty:
        return stages
    rows = []
    labels = ["model", "model_seed", "method", "metric", "mode", "sign"]
    for key, group in stages.groupby(labels, sort=False):
        group = group.sort_values("stage_index")
        known = group["survival_high"].notna() & (group["undefined"] <= thresholds.degenerate_at_most)
        noticed = group[known & (group["survival_high"] < thresholds.fail_above)]
        names, count = list(noticed["stage"]), len(group)
        if not known.any():
            said = "unknown: two calls on one network disagree, or too many maps or the floor are undefined"
        elif not names:
            said = f"to none of {count} stages"
        elif key[-2] == "independent":
            said = f"to {len(names)} of {count} blocks alone: {', '.join(names)}"
        else:
            first = int(noticed["stage_index"].iloc[0])
            again = group[known & (group["stage_index"] > first) & ~group["stage"].isin(names)]["stage"]
            said = f"from {names[0]} on, stage {first} of {count}"
            said += f", but not at {', '.join(again)}" if len(again) else ""
        said += "" if known.all() or not known.any() else f"; unknown at {', '.join(group.loc[~known, 'stage'])}"
        rows.append({**dict(zip(labels, key, strict=True)), "sensitive": said})
    return pd.DataFrame(rows)


def _values(series: list[Series]) -> Values:
    return np.concatenate([each.values for each in series]) if series else NOTHING
