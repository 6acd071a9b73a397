"""How methods rank by each metric, by the metrics of one family, and over models. Never over families."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from harness.headlines import Headline, Subject, by_metric, matrix
from harness.statistics import (
    Interval,
    firsts,
    kendall,
    kendall_w,
    mean_interval,
    median_interval,
    nemenyi,
    places_of,
    ranks_of,
    resampled_by,
)

MODEL = ["model", "model_seed"]
RANKINGS = [*MODEL, "metric", "method", "rank", "low", "high", "best", "mean_rank", "kendall_w", "methods", "samples"]
FAMILIES = [*MODEL, "family", "method", "mean_rank", "low", "high", "best", "kendall_w", "metrics", "samples"]
LEFT_OUT = [*MODEL, "family", "left_out", "tau", "first", "first_of_all", "changes"]
MODELS = [
    *("metric", "measure", "method", "mean", "low", "high", "models", "mean_rank", "wins"),
    *("kendall_w", "friedman_p", "critical_difference"),
]
CLASSES = [*MODEL, "method", "metric", "target", "measure", "value", "low", "high", "samples"]

FEWEST = 2
"""Samples, methods or models below which nothing can be ranked."""


def rankings(headlines: Sequence[Headline]) -> pd.DataFrame:
    """One row for each model, metric that ranks, and method: its rank by the statistic that stands for it, the
    mean or the median, 1 for the best.

    `low` to `high` holds the rank in 95 % of resamples of the samples, `best` is how often it is first. `mean_rank` is
    the mean of the ranks in single samples, and `kendall_w` how far samples agree on the order.
    """
    rows = []
    for ((model, seed), metric), group in by_metric(headlines).items():
        methods, scores = matrix(group) if group[0].ranks else ([], np.zeros((0, 0)))
        if min(len(methods), scores.shape[1]) < FEWEST:
            continue
        each = ranks_of(scores.T)
        size = {"kendall_w": kendall_w(each), "methods": len(methods), "samples": len(each)}
        places = places_of(resampled_by(group[0].statistic, scores))
        for method, place, mean in zip(methods, places, each.mean(0), strict=True):
            where = {"model": model, "model_seed": seed, "metric": metric, "method": method}
            rows.append({**where, **asdict(place), "mean_rank": float(mean), **size})
    return pd.DataFrame(rows, columns=RANKINGS)


def families(headlines: Sequence[Headline]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rankings by all metrics of one family, and what becomes of them without each of these.

    The first table: one row for each model, family of two metrics or more, and method: the mean of its ranks by the
    metrics, its interval over resamples of the samples, how often it is first, and how far metrics agree. The second:
    Kendall's tau between the ranking by all metrics and that without one, and whether another method comes first.
    """
    grouped: dict[tuple[Subject, str], list[list[Headline]]] = defaultdict(list)
    for (subject, _), group in by_metric(headlines).items():
        if group[0].ranks:
            grouped[subject, group[0].metric_family].append(group)
    rows, left = [], []
    for ((model, seed), family), metrics in grouped.items():
        methods, scores = _cube(metrics)
        if len(metrics) < FEWEST or min(len(methods), scores.shape[2] if scores.ndim == 3 else 0) < FEWEST:
            continue
        found = [resampled_by(group[0].statistic, each) for group, each in zip(metrics, scores, strict=True)]
        ranks = ranks_of(np.stack(found, axis=1))
        means = ranks.mean(1)
        where = {"model": model, "model_seed": seed, "family": family}
        size = {"kendall_w": kendall_w(ranks[0]), "metrics": len(metrics), "samples": scores.shape[2]}
        low, high = np.quantile(means[1:], [0.025, 0.975], axis=0)
        for index, (method, place) in enumerate(zip(methods, places_of(-means), strict=True)):
            limits = {"low": float(low[index]), "high": float(high[index]), "best": place.best}
            rows.append({**where, "method": method, "mean_rank": float(means[0, index]), **limits, **size})
        for index, group in enumerate(metrics if len(metrics) > FEWEST else []):
            rest = np.delete(ranks[0], index, 0).mean(0)
            first, before = methods[int(rest.argmin())], methods[int(means[0].argmin())]
            tau = float(kendall(means[:1], rest[None])[0])
            told = {"left_out": group[0].labels["metric"], "tau": tau, "first": first, "first_of_all": before}
            left.append({**where, **told, "changes": first != before})
    return pd.DataFrame(rows, columns=FAMILIES), pd.DataFrame(left, columns=LEFT_OUT)


def _cube(metrics: Sequence[Sequence[Headline]]) -> tuple[list[str], Float[np.ndarray, "metrics methods samples"]]:
    """Scores of the methods that every metric has, on the samples where all are known."""
    tables = [{each.labels["method"]: each for each in group} for group in metrics]
    methods = [name for name in tables[0] if all(name in table for table in tables)]
    listed = [[table[name].scores for name in methods] for table in tables]
    sizes = {len(scores) for each in listed for scores in each}
    if not methods or len(sizes) != 1:
        return [], np.zeros((0, 0, 0))
    scores = np.array(listed)
    there = np.flatnonzero(~np.isnan(scores).all((0, 2)))
    scores = scores[:, there]
    known = ~np.isnan(scores).any((0, 1))
    return [methods[index] for index in there], scores[..., known]


def across_models(headlines: Sequence[Headline]) -> pd.DataFrame:
    """One row for each metric and method on two models or more: models are what is counted, not their samples.

    `mean` over models of the statistic that stands for the metric on each, with Student's interval over models;
    `mean_rank` over models, `wins` on how many it is first, ties shared. `friedman_p` tests whether methods differ at
    all, and mean ranks that are less than `critical_difference` apart (Nemenyi) are not told from each other.
    """
    found: dict[tuple[str, str], dict[str, dict[Subject, Headline]]] = defaultdict(lambda: defaultdict(dict))
    for each in headlines:
        if each.method_family != "control":
            found[each.labels["metric"], each.measure][each.labels["method"]][each.subject] = each
    rows = []
    for (metric, measure), table in found.items():
        models = list(dict.fromkeys(subject for by_model in table.values() for subject in by_model))
        any_one = next(iter(next(iter(table.values())).values()))
        whole = {method: by_model for method, by_model in table.items() if len(by_model) == len(models)}
        if len(models) < FEWEST or not whole:
            continue
        means = np.array([[_interval(by_model[model]).value for model in models] for by_model in whole.values()])
        signed = means * (-1 if any_one.direction == "lower" else 1)
        extra = _over_models(signed) if any_one.ranks else [{} for _ in whole]
        for method, each, more in zip(whole, means, extra, strict=True):
            interval = _renamed(mean_interval(each[:, None]))
            rows.append(
                {"metric": metric, "measure": measure, "method": method, **interval, "models": len(models), **more}
            )
    return pd.DataFrame(rows, columns=MODELS)


def _over_models(scores: Float[np.ndarray, "methods models"]) -> list[dict[str, Any]]:
    known = scores[:, ~np.isnan(scores).any(0)]
    methods, models = known.shape
    if min(methods, models) < FEWEST:
        return [{} for _ in scores]
    ranks = ranks_of(known.T)
    wins = firsts(ranks).sum(0)
    p = float(stats.friedmanchisquare(*known).pvalue) if methods > FEWEST else np.nan
    same = {"kendall_w": kendall_w(ranks), "friedman_p": p, "critical_difference": nemenyi(methods, models)}
    return [
        {"mean_rank": float(rank), "wins": float(won), **same} for rank, won in zip(ranks.mean(0), wins, strict=True)
    ]


def classes(headlines: Sequence[Headline]) -> pd.DataFrame:
    """One row for each model, method, metric and explained class: the headline with its interval over samples."""
    rows = []
    for each in headlines:
        for target in np.unique(each.targets) if len(np.unique(each.targets)) > 1 else ():
            some = each.values[each.targets == target]
            interval = asdict(_interval(replace(each, values=some)))
            rows.append(
                {**each.labels, "target": int(target), "measure": each.measure, **interval, "samples": len(some)}
            )
    return pd.DataFrame(rows, columns=CLASSES)


def _interval(headline: Headline) -> Interval:
    """What stands for a headline, with its interval: as in the table of headlines."""
    values = headline.values
    return median_interval(values.mean(1)) if headline.statistic == "median" else mean_interval(values)


def _renamed(interval: Interval) -> dict[str, float]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high}
