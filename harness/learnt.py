"""Views of `network_randomization`: does an introspection tell the trained network from ones that learnt nothing?"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from harness.entries import Side
from harness.series import Series, Stack, commonest, where
from harness.statistics import DEFAULT, Against, Thresholds, Verdict, against, mean_of
from harness.verdicts import NOTHING, Row

KINDS = {"full": "re-initialized networks", "shuffled": "networks with shuffled weights"}
"""Mode of a row -> the networks that it is about."""

COLUMNS = {"full": "reinitialized", "shuffled": "shuffled"}
"""Mode of a row -> what its columns are called."""

TEST = "network_randomization"

WRONG_SIDE = "it is on the wrong side of"
"""How the reason of a FAIL begins where a difference is clear and not the one that training is to make."""


def learnt(stack: Stack, thresholds: Thresholds = DEFAULT) -> Iterator[Row]:
    """One row for each introspection, measure and layer: the trained network, the others, effects, p, the verdict.

    A measure without a layer is of the whole network. The verdict is PASS where the trained network stands apart from
    re-initialized ones and from ones with shuffled weights: beyond each of them, and by more than two of their standard
    deviations; FAIL where nothing tells it from one of the two, or it is on the wrong side of one. A network that is
    one more of the re-initialized ones passes in at most one of K + 1 cases, for K draws of each kind.

    A measure that is `alike` passes below the threshold for PASS of the similarity, and fails above that for FAIL. Such
    a PASS says that what is shown depends on the weights: that of an untrained network does so, too.
    """
    for measure, side in (stack.info.get("compares") or {}).items() if _tested(stack) else ():
        found = [each for each in where(stack.scalars, measure=measure) if each.labels["mode"] != "top_down"]
        for stage in dict.fromkeys(each.labels["stage"] for each in found):
            here = where(found, stage=stage)
            trained = _first(where(here, role="test"))
            nulls = {mode: _draws(where(here, role="floor_random", mode=mode)) for mode in KINDS}
            again = _first(where(here, role="ceiling_rerun"))
            told = {mode: against(trained, null, lower=side == "lower") for mode, null in nulls.items()}
            verdict, reason = _judged(side, trained, again, told, _reason(here), thresholds)
            yield {
                **stack.labels,
                "test": TEST,
                "measure": measure,
                "stage_index": next((each.labels["stage_index"] for each in here), None),
                "stage": stage,
                "verdict": verdict,
                "trained": trained,
                **{
                    column: value
                    for mode, name in COLUMNS.items()
                    for column, value in _columns(name, told[mode], tested=side != "alike").items()
                },
                "again": again,
                "side": side,
                "draws": min(each.draws for each in told.values()),
                "reason": reason,
            }


def partly(stack: Stack) -> Iterator[Row]:
    """One row for each introspection, measure and stage: the same of a network that is random from the output down."""
    for measure in (stack.info.get("compares") or {}) if _tested(stack) else ():
        for each in where(stack.scalars, measure=measure, mode="top_down"):
            yield {
                **stack.labels,
                "measure": measure,
                "stage_index": each.labels["stage_index"],
                "stage": each.labels["stage"],
                "value": mean_of(each.values),
                "draws": each.values.shape[1],
            }


def _tested(stack: Stack) -> bool:
    return bool(stack.info.get("metric_function") == TEST)


def _judged(
    side: Side,
    trained: float,
    again: float,
    told: dict[str, Against],
    why: str,
    thresholds: Thresholds,
) -> tuple[Verdict, str]:
    """The verdict, and why it is no better one; none where the measure says nothing of any network."""
    if np.isnan(trained) and all(each.draws == 0 for each in told.values()):
        return "", why
    if np.isnan(trained) or any(each.draws == 0 for each in told.values()):
        return "INVALID", why or "there is no number for the trained network or for the others"
    few = min(each.draws for each in told.values())
    if few < thresholds.draws:
        return "INCONCLUSIVE", f"{few} networks of a kind are too few: at least {thresholds.draws}"
    if side == "alike":
        return _by_likeness({mode: each.mean for mode, each in told.items()}, thresholds)
    apart, opposite, alike = (
        [KINDS[mode] for mode, each in told.items() if getattr(each, what)] for what in ("apart", "opposite", "alike")
    )
    alike = [kind for kind in alike if kind not in opposite]
    if alike:
        return "FAIL", f"nothing tells it from {' and '.join(alike)}"
    if opposite:
        return "FAIL", f"{WRONG_SIDE} {' and '.join(opposite)}"
    if len(apart) < len(told):
        return "INCONCLUSIVE", f"not clearly apart from {' and '.join(k for k in KINDS.values() if k not in apart)}"
    gap = min(abs(trained - each.mean) for each in told.values())
    if abs(trained - again) > gap / 2:
        return "INVALID", f"asked again it says {again:.3g} instead of {trained:.3g}: as far as from random networks"
    return "PASS", ""


def _by_likeness(means: dict[str, float], thresholds: Thresholds) -> tuple[Verdict, str]:
    """The verdict on what random networks show in the place of the trained one."""
    most = max(means, key=lambda mode: means[mode])
    said = f"{KINDS[most]} show {means[most]:.2f} of the same"
    if means[most] < thresholds.pass_below:
        return "PASS", ""
    return ("FAIL" if means[most] > thresholds.fail_above else "INCONCLUSIVE"), said


def _columns(name: str, told: Against, *, tested: bool) -> dict[str, float]:
    """What is told of one kind of networks; of what is alike there is no effect and no p."""
    return {
        name: told.mean,
        f"{name}_deviation": told.deviation,
        f"{name}_effect": told.effect if tested else np.nan,
        f"{name}_p": told.p if tested else np.nan,
    }


def _first(series: list[Series]) -> float:
    return float(series[0].values[0, 0]) if series else np.nan


def _draws(series: list[Series]) -> np.ndarray:
    return series[0].values[0] if series else NOTHING[:, 0]


def _reason(series: list[Series]) -> str:
    return commonest(sum((each.reasons for each in series), Counter[str]()))
