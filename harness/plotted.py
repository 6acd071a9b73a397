"""What figures and charts are drawn from: points of curves, the spread of residuals, seconds. Views of the rows."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from harness.glance import GROUP
from harness.statistics import mean_interval

if TYPE_CHECKING:
    from harness.results import Results

CURVES = {"pixel_flipping": "probability", "remove_and_retrain": "correct"}
"""The metrics whose curves are drawn, and what of them."""

RESIDUAL = "relative_residual"
PERCENTILES = {f"p{percentile}": percentile for percentile in (5, 25, 50, 75, 95)}
"""Column -> the percentile of residuals over samples that it holds."""


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
