"""A run folder made for tests of views: as many rows as a test wants, such as metrics yield, stored as the engine does.

The scores of a metric are made once; every cell has them with noise of its own, because making them takes longer than
writing them.
"""

import itertools
import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from harness.plan import Cell
from harness.rows import rows_of
from harness.store import Folder, Part
from harness.types import Score
from made_rows import around, cascades, classes

BLOCK, STEPS, SPREAD = 256, 32, 0.02
STAGES = (0.6, 0.4, 0.3, 0.2)
VIEWS = ("signed", "absolute", "up_to_sign", "ssim", "hog")


def randomization():
    """280 rows a sample."""
    return cascades(dict.fromkeys(VIEWS, STAGES), random=0.05, n=BLOCK)


def flipping(steps=STEPS):
    """Curves, areas and gains, 401 rows a sample; one map of thirty has no order."""
    flat = torch.arange(BLOCK) % 30 == 0

    def score(measure, value, seed, mode, step=None):
        values = around(value, seed, 0.1, BLOCK)
        undefined = {} if mode == "random" else {"constant map": flat}
        values[flat & bool(undefined)] = torch.nan
        return Score(measure, values, undefined, channels="sum", sign="signed", mode=mode, step=step)

    lost = {"most_first": 3.0, "least_first": 0.5, "random": 1.5}
    for mode, speed in lost.items():
        for step, measure in itertools.product(range(steps + 1), ("logit", "probability", "log_odds", "correct")):
            yield score(measure, np.exp(-speed * step / steps), step, mode, step / steps)
        yield score("area", (1 - np.exp(-speed)) / speed, steps, mode)
    for name in ("symmetric_relevance_gain", "symmetric_relevance_gain_logit"):
        yield score(name, 0.4, steps, None)


def residuals():
    """Three rows a sample and one about the model; a tenth is undefined."""
    zero = torch.arange(BLOCK) % 10 == 0
    for name in ("residual", "relative_residual", "output"):
        values = around(0.1, len(name), 0.05, BLOCK)
        values[zero] = torch.nan
        yield Score(name, values, {"the output does not change": zero})
    yield Score("passes", torch.tensor(12.0, dtype=torch.float64))


@dataclass(frozen=True)
class Made:
    """A metric: its function, what it yields for a block, its headline, what is said of that, and its options."""

    function: str
    scores: object
    headline: str
    statistic: str = "mean"
    options: tuple = ()


def flipped(fill, superpixels=0, steps=STEPS):
    options = (("fill", fill), ("superpixels", superpixels), ("patch", 1))
    return Made("pixel_flipping", lambda: flipping(steps), "symmetric_relevance_gain", options=options)


METRICS = {
    "parameter_randomization": Made("parameter_randomization", randomization, "spearman"),
    "random_logit": Made("random_logit", lambda: classes(0.3, n=BLOCK), "spearman"),
    "completeness": Made("completeness", residuals, "relative_residual", "median"),
    "pixel_flipping[fill=grey]": flipped("grey"),
    "pixel_flipping[fill=blur]": flipped("blur"),
    "pixel_flipping[fill=grey,superpixels=25]": flipped("grey", 25),
}
METHODS = ("gradient", "input_x_gradient", "smoothgrad", "integrated_gradients", "sobel")


def made_folder(path, *, blocks, methods=METHODS, metrics=METRICS, models=("net",)):
    """A run of these many blocks of 256 samples; how many rows it has."""
    folder, cells, size = Folder(path), [], 0
    for name, metric in metrics.items():
        template = rows_of(metric.scores(), [str(i) for i in range(BLOCK)], torch.zeros(BLOCK, dtype=torch.long))
        for model, method, block in itertools.product(models, methods, range(blocks)):
            key = f"{model}-{method}-{name}-{block}"
            cells.append(Cell(key, model, 0, "data", method, name, block))
            folder.put(cells[-1], Part(_varied(template, key, block), _info(metric, method)))
        size += template.num_rows * len(models) * len(methods) * blocks
    folder.write_manifest({"study": {"name": "made"}, "run": "made"}, cells)
    return size


def _varied(rows, key, block):
    """The same rows of other samples, with noise of their own; what is about the model stays as it is."""
    ids = pa.array([f"{BLOCK * block + index:07}" for index in range(BLOCK)])
    codes = rows["sample"].combine_chunks().indices
    noise = np.random.default_rng(zlib.crc32(key.encode())).normal(0, SPREAD, len(codes))
    values = rows["value"].to_numpy() + np.where(codes.is_null(), 0, noise)
    rows = rows.set_column(rows.column_names.index("sample"), "sample", pa.DictionaryArray.from_arrays(codes, ids))
    return rows.set_column(rows.column_names.index("value"), "value", pa.array(values))


def _info(metric, method):
    return {
        "status": "done",
        "reason": "",
        "samples": BLOCK,
        "method_family": "control" if method == "sobel" else "gradient",
        "method_expected": {"parameter_randomization": "FAIL"} if method == "sobel" else {},
        "metric_function": metric.function,
        "metric_version": 1,
        "metric_options": dict(metric.options),
        "direction": "higher",
        "headline": metric.headline,
        "summary_statistic": metric.statistic,
        **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward"), BLOCK),
        **dict.fromkeys(("seconds", "maps_seconds"), 0.5),
    }
