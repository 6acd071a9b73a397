"""What figures and charts are drawn from: points of curves, the spread of residuals, seconds. Views of the rows."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from harness.glance import GROUP
from harness.learnt import COLUMNS, KINDS
from harness.statistics import APART, mean_interval

if TYPE_CHECKING:
    from harness.results import Results

CURVES = {"pixel_flipping": "probability", "remove_and_retrain": "correct"}
"""The metrics whose curves are drawn, and what of them."""

RESIDUAL = "relative_residual"
PERCENTILES = {f"p{percentile}": percentile for percentile in (5, 25, 50, 75, 95)}
"""Column -> the percentile of residuals over samples that it holds."""


TRAINED = "trained network"
NETWORKS = (TRAINED, *KINDS.values())
"""The lines of a figure that compares networks."""


def of_model(frame: pd.DataFrame, model: str, model_seed: int) -> pd.DataFrame:
    """The rows of a table that are about one model; a table without rows may have no columns either."""
    return frame[(frame["model"] == model) & (frame["model_seed"] == model_seed)] if len(frame) else frame


def curves(results: "Results") -> pd.DataFrame:
    """One row for each point of a curve of probability or accuracy against what is removed, with its interval."""
    rows = []
    for stack in results.stacks():
        kind = stack.info.get("metric_function", "")
        points = pc.field("step").is_valid() & pc.field("mode").is_valid() & (pc.field("measure") == CURVES.get(kind))
        for series in stack.series(points) if kind in CURVES else ():
            place = {name: series.labels[name] for name in ("mode", "step")}
            rows.append({**stack.labels, "kind": kind, **place, **asdict(mean_interval(series.values))})
    return pd.DataFrame(rows, columns=[*GROUP, "kind", "mode", "step", "value", "low", "high"])


def residuals(results: "Results") -> pd.DataFrame:
    """One row for each model, method and metric of completeness: percentiles over samples of the relative residual."""
    rows = []
    for stack in results.stacks():
        found = stack.headline if stack.info.get("headline") == RESIDUAL else None
        values = found.values[np.isfinite(found.values)] if found else np.empty(0)
        if values.size:
            spread = {name: np.percentile(values, percentile) for name, percentile in PERCENTILES.items()}
            rows.append({**stack.labels, **spread})
    return pd.DataFrame(rows, columns=[*GROUP, *PERCENTILES])


def seconds(cost: pd.DataFrame) -> pd.DataFrame:
    """One row for each method: seconds of its maps, once, and of all metrics together; `cost`: of one model."""
    grouped = cost.groupby("method", sort=False)
    return pd.DataFrame({"maps": grouped["maps_seconds"].max(), "metrics": grouped["seconds"].sum()}).reset_index()


def layers(networks: pd.DataFrame) -> pd.DataFrame:
    """One row for each introspection, measure, layer and kind of network: the mean, and the band that a PASS leaves.

    Args:
        networks: the table `global`.

    Returns:
        `low` and `high` are two standard deviations from the mean; nothing of the trained network, which is one.
    """
    columns = [*GROUP, "measure", "stage_index", "stage", "network", "value", "low", "high"]
    rows = []
    for _, row in networks[networks["stage"].notna()].iterrows() if len(networks) else ():
        place = {name: row[name] for name in columns[:-4]}
        rows.append({**place, "network": TRAINED, "value": row["trained"], "low": np.nan, "high": np.nan})
        for mode, name in COLUMNS.items():
            mean, reach = row[name], APART * row[f"{name}_deviation"]
            rows.append({**place, "network": KINDS[mode], "value": mean, "low": mean - reach, "high": mean + reach})
    return pd.DataFrame(rows, columns=columns).sort_values("stage_index", kind="stable")


def while_randomized(networks: pd.DataFrame, partly: pd.DataFrame) -> pd.DataFrame:
    """One row for each introspection, measure and stage of randomization, the trained network first: the value.

    Args:
        networks: the table `global`.
        partly: the table `partly_random`.
    """
    columns = [*GROUP, "measure", "stage_index", "stage", "value"]
    if networks.empty or partly.empty:
        return pd.DataFrame(columns=columns)
    whole = networks[networks["stage"].isna()].assign(stage="trained", stage_index=0)
    both = pd.concat([whole.assign(value=whole["trained"])[columns], partly[columns]], ignore_index=True)
    return both.sort_values("stage_index", kind="stable")
