"""How far rankings agree between fills and units, and how confident a network stays when it loses things at random."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from jaxtyping import Float

from harness.series import Series, Stack, where
from harness.statistics import basic_interval, mean_interval, resampled_means, signs
from harness.verdicts import Row

SCORES = {"most_first": "most relevant first", "least_first": "least relevant first", "gain": "symmetric gain"}
ORDERS = ("most_first", "least_first", "random")
START = pc.field("step") == 0.0
LEAST_SAMPLES, PARTS = 10, 20
MODEL = ["model", "model_seed"]
FILLS = [*MODEL, "metric", "fill", "unit", "untouched", "random_confidence", "low", "high"]
AGREEMENT = [*MODEL, "comparison", "ranked_by", "tau", "low", "high", "pairs", "methods", "samples"]


def setups(stack: Stack) -> Iterator[Row]:
    """What pixel flipping says of one method in one setup, a fill and a unit. Not written: see `agreement`, `fills`."""
    info = stack.info
    if info.get("metric_function") != "pixel_flipping":
        return
    areas = {each.labels["mode"]: each.values.mean(1) for each in where(stack.scalars, measure="area")}
    start: list[Series] = where(stack.series(START), measure="probability", mode="random")
    # Runs of earlier versions have no superpixels, or no areas.
    if start and set(ORDERS) <= set(areas):
        options = info["metric_options"]
        pieces, side = options.get("superpixels", 0), options.get("patch", 1)
        yield {
            **stack.labels,
            "family": info["method_family"],
            "fill": options["fill"],
            "unit": f"{pieces} superpixels" if pieces else f"patches of {side}",
            **areas,
            "untouched": float(start[0].values.mean()),
        }


def fills(found: Sequence[Row]) -> pd.DataFrame:
    """One row for each model and setup: the mean probability, untouched and under random removal (R-OMS)."""
    rows: dict[tuple[str, int, str], Row] = {}
    for each in found:
        key = (each["model"], each["model_seed"], each["metric"])
        interval = mean_interval(each["random"][:, None])
        confidence = {"random_confidence": interval.value, "low": interval.low, "high": interval.high}
        place = {name: each[name] for name in ("model", "model_seed", "metric", "fill", "unit", "untouched")}
        rows.setdefault(key, place | confidence)
    return pd.DataFrame(list(rows.values()), columns=FILLS)


def agreement(found: Sequence[Row]) -> pd.DataFrame:
    r"""One row for each model, comparison and score: Kendall's $\tau$ between rankings of methods in two setups.

    Averaged over pairs of setups that differ in fill only, in unit only, or at all, with an interval over samples;
    and between the two orders within a setup. Controls are left out, and samples on which a map has no order.
    """
    models: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for each in found:
        if each["family"] != "control":
            models[each["model"], each["model_seed"]].append(each)
    rows = []
    for (model, seed), here in models.items():
        labels = list(dict.fromkeys(each["metric"] for each in here))
        values, methods = _values(here, labels)
        if len(methods) < 3 or values["gain"].shape[2] < LEAST_SAMPLES:
            continue
        kind = {each["metric"]: (each["fill"], each["unit"]) for each in here}
        pairs = list(combinations(range(len(labels)), 2))
        chosen = {
            "other fill, same unit": [(i, j) for i, j in pairs if kind[labels[i]][1] == kind[labels[j]][1]],
            "other unit, same fill": [(i, j) for i, j in pairs if kind[labels[i]][0] == kind[labels[j]][0]],
            "any two setups": pairs,
        }
        place = {"model": model, "model_seed": seed}
        size = {"methods": len(methods), "samples": values["gain"].shape[2]}
        means = {name: resampled_means(each) for name, each in values.items()}
        taus = {name: _taus(each, each) for name, each in means.items()}
        for comparison, some in chosen.items():
            for name, score in SCORES.items() if some else ():
                tau = _mean(taus[name], some)
                rows.append({**place, "comparison": comparison, "ranked_by": score, **tau, "pairs": len(some), **size})
        both = [(i, i) for i in range(len(labels))]
        tau = _mean(_taus(means["most_first"], means["least_first"]), both)
        orders = {"comparison": "both orders in one setup", "ranked_by": "one order each"}
        rows.append({**place, **orders, **tau, "pairs": len(both), **size})
    return pd.DataFrame(rows, columns=AGREEMENT)


def _values(
    here: Sequence[Row], labels: Sequence[str]
) -> tuple[dict[str, Float[np.ndarray, "setups methods samples"]], list[str]]:
    """Scores, higher for better, of the methods that have them in every setup, on samples where all have."""
    cells = {(each["method"], each["metric"]): each for each in here}
    every = dict.fromkeys(each["method"] for each in here)
    methods = [method for method in every if all((method, label) in cells for label in labels)]
    most, least = (
        np.array([[cells[method, label][order] for method in methods] for label in labels])
        for order in ("most_first", "least_first")
    )
    methods_known = ~np.isnan(most + least).all((0, 2)) if len(methods) else np.ones(0, dtype=bool)
    most, least = most[:, methods_known], least[:, methods_known]
    known = ~np.isnan(most + least).any((0, 1)) if most.size else np.zeros(0, dtype=bool)
    most, least = (each[..., known] if each.size else np.zeros((0, 0, 0)) for each in (most, least))
    names = [method for method, there in zip(methods, methods_known, strict=True) if there]
    return {"most_first": -most, "least_first": least, "gain": least - most}, names


def _taus(
    first: Float[np.ndarray, "resampled setups methods"], second: Float[np.ndarray, "resampled setups methods"]
) -> Float[np.ndarray, "resampled setups setups"]:
    r"""Kendall's $\tau_a$ between the rankings of methods by two scores, in every two setups."""
    couples = first.shape[2] * (first.shape[2] - 1) / 2
    # In parts, because there are many more couples of methods than methods.
    parts = zip(np.array_split(first, PARTS), np.array_split(second, PARTS), strict=True)
    return np.concatenate([signs(one) @ signs(other).swapaxes(1, 2) for one, other in parts]) / couples


def _mean(taus: Float[np.ndarray, "resampled setups setups"], pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """The mean over pairs of setups, with its interval over samples; the first is of all samples."""
    one, other = map(list, zip(*pairs, strict=True))
    value, *drawn = taus[:, one, other].mean(1).tolist()
    interval = basic_interval(value, np.array(drawn), least=-1.0)
    return {"tau": interval.value, "low": interval.low, "high": interval.high}
