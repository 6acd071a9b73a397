"""Verdicts at a glance: methods x metrics in words, with the reasons, the marks of the metrics and the cost."""

from typing import Any

import pandas as pd

INDEX = ["model", "model_seed", "method"]
GROUP = [*INDEX, "metric"]
EXAM = "(exam)"
"""What stands in the place of a method in the row of marks."""

WORDS = {"not_applicable": "n/a", "failed": "failed", "missing": "missing"}


def glance(headlines: pd.DataFrame, judged: pd.DataFrame, rankings: pd.DataFrame, cost: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and method, one column for each metric, then passes, seconds, and reasons.

    A randomization test says PASS, FAIL, INCONCLUSIVE or INVALID, of signed maps by rank correlation. Any other metric
    with a better direction says on which ranks the method may stand, among how many: `1-3 of 7`; controls are not
    ranked. `reasons` says why there is no PASS or no rank. The first row is how each metric did in its exam.

    Args:
        headlines: the table of this name.
        judged: the verdicts that stand for tests, from `one_word`.
        rankings: the table of this name.
        cost: the table of this name.
    """
    if headlines.empty:
        return headlines
    verdicts = {tuple(row[GROUP]): row for _, row in judged.iterrows() if row["verdict"]}
    ranks = {tuple(row[GROUP]): row for _, row in rankings.iterrows()}
    said = [
        _said(row, verdicts.get(tuple(row[GROUP])), ranks.get(tuple(row[GROUP]))) for _, row in headlines.iterrows()
    ]
    told = headlines.assign(word=[word for word, _ in said], why=[why for _, why in said])
    wide = told.pivot_table(index=INDEX, columns="metric", values="word", aggfunc="first", sort=False)
    metrics = list(wide.columns)
    spent = _spent(cost).reindex(wide.index) if len(cost) else pd.DataFrame(index=wide.index)
    some = told[told["why"] != ""]
    reasons = (some["metric"] + ": " + some["why"]).groupby([some[name] for name in INDEX], sort=False).agg("; ".join)
    wide = wide.join(spent).assign(reasons=reasons.reindex(wide.index))
    whole = below_marks(wide, marks_of(headlines))
    if "passes" in whole:
        whole["passes"] = whole["passes"].astype("Int64")
    columns = [*INDEX, *metrics, *spent.columns, "reasons"]
    return whole.reindex(columns=columns).fillna({"reasons": ""}).rename_axis(columns=None)


def marks_of(headlines: pd.DataFrame) -> "pd.Series[str]":
    """How each metric did in its exam."""
    return headlines[headlines["exam"] != ""].groupby("metric")["exam"].first()


def below_marks(wide: pd.DataFrame, marks: "pd.Series[str]") -> pd.DataFrame:
    """A table of methods x metrics with the row of marks above it."""
    exam = pd.DataFrame([{"model": "", "model_seed": "", "method": EXAM, **marks}])
    return pd.concat([exam, wide.reset_index()], ignore_index=True)


def signed_ranks(judged: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on signed maps by rank correlation, of those on several views of the same maps."""
    return judged[(judged["measure"] == "spearman") & (judged["sign"] == "signed")] if len(judged) else judged


def one_word(verdicts: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """The verdicts that stand for their tests where there is room for one word.

    Of maps it is that on signed ones by rank correlation, of introspections that on the first measure of the whole
    network that has a number.

    Args:
        verdicts: the table of this name.
        networks: the table `global`.
    """
    if len(networks):
        whole = networks[networks["stage"].isna()]
        known = whole.assign(unknown=whole["trained"].isna()).sort_values("unknown", kind="stable")
        networks = known.drop_duplicates(GROUP).sort_index()
    columns = [*GROUP, "verdict", "reason"]
    return pd.concat([each.reindex(columns=columns) for each in (signed_ranks(verdicts), networks)], ignore_index=True)


def _said(row: "pd.Series[Any]", verdict: "pd.Series[Any] | None", rank: "pd.Series[Any] | None") -> tuple[str, str]:
    """The word, and why it is no better one."""
    if row["status"] != "done":
        return WORDS[row["status"]], str(row["reason"] or "")
    if verdict is not None:
        return verdict["verdict"], "" if verdict["verdict"] == "PASS" else str(verdict["reason"])
    if str(row["reason"]).startswith("invalid"):
        return "invalid", str(row["reason"])
    if rank is not None:
        low, high = int(rank["low"]), int(rank["high"])
        return f"{low if low == high else f'{low}-{high}'} of {rank['methods']}", ""
    return "not ranked", ""


def _spent(cost: pd.DataFrame) -> pd.DataFrame:
    """Sample-passes and seconds of each method: those of its maps once, those of the metrics together."""
    grouped = cost.groupby(INDEX, sort=False)
    maps = grouped[["maps_forward", "maps_backward", "maps_seconds"]].max()
    rest = grouped[["forward", "backward", "seconds"]].sum()
    passes = maps["maps_forward"] + maps["maps_backward"] + rest["forward"] + rest["backward"]
    return pd.DataFrame({"passes": passes, "seconds": maps["maps_seconds"] + rest["seconds"]})
