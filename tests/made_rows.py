"""Rows made for tests of views: a run with the similarities that a test wants, stored as the engine stores it."""

import itertools

import torch

from harness import Results
from harness.plan import Cell
from harness.rows import rows_of
from harness.store import Memory, Part
from harness.types import Score

N = 40
STAGES = ("fc", "conv3", "conv2", "conv1")
VIEWS = {
    "signed": ("spearman", {"channels": "sum", "sign": "signed", "normalization": "none"}),
    "absolute": ("spearman", {"channels": "abs_sum", "sign": "absolute", "normalization": "none"}),
    "up_to_sign": ("spearman", {"channels": "sum", "sign": "up_to_sign", "normalization": "none"}),
    "ssim": ("ssim", {"channels": "abs_sum", "sign": "absolute", "normalization": "percentile_clip"}),
    "hog": ("hog", {"channels": "sum", "sign": "signed", "normalization": "min_max"}),
}


def around(value, seed, spread=0.02, n=N):
    generator = torch.Generator().manual_seed(seed)
    return value + spread * torch.randn(n, generator=generator, dtype=torch.float64)


def view_of(view):
    return VIEWS[view]


def cascades(levels, *, random=0.0, chance=0.0, ceiling=1.0, alone=None, draws=10, spread=0.02, n=N):
    """`parameter_randomization` of one method.

    `levels`: view -> similarity at each stage from the output down; the last is also that of the full randomization.
    """
    for draw in range(draws):
        output = around(0.1, 150 + draw, 0.02, n)
        yield Score("output_pearson", output, mode="full", stage="all", stage_index=4, draw=draw)
    for view, stages in levels.items():
        measure, labels = view_of(view)
        seed = len(view) * 10_000
        yield Score(
            measure, around(ceiling, seed, 0.0, n), role="ceiling_rerun", stage="trained", stage_index=0, **labels
        )
        for draw in range(draws):
            where = {"mode": "full", "stage": "all", "stage_index": len(stages), "draw": draw, **labels}
            yield Score(measure, around(stages[-1], seed + draw, spread, n), **where)
            yield Score(measure, around(chance, seed + 100 + draw, spread, n), role="floor_shift", **where)
            if draw:
                yield Score(measure, around(random, seed + 200 + draw, spread, n), role="floor_random", **where)
        modes = {"top_down": stages, "independent": alone or stages}
        for (mode, values), draw in itertools.product(modes.items(), range(3)):
            for index, left in enumerate(values, 1):
                where = {"mode": mode, "stage": STAGES[index - 1], "stage_index": index, "draw": draw, **labels}
                yield Score(measure, around(left, seed + 300 + 10 * index + draw, spread, n), **where)


def labels(levels, *, floor=0.0, ceiling=0.8, spread=0.02, n=N):
    """`label_randomization` of one method; `levels`: view -> similarity to the network trained on permuted labels."""
    for view, similarity in levels.items():
        measure, fields = view_of(view)
        roles = {"test": similarity, "floor_random": floor, "ceiling_retrain": ceiling, "floor_shift": 0.0}
        for seed, (role, value) in enumerate(roles.items()):
            yield Score(measure, around(value, len(view) * 100 + seed, spread, n), role=role, **fields)


def edges(similarity, *, spread=0.02, n=N):
    """`edge_similarity` of one method."""
    measure, fields = view_of("absolute")
    for seed, (role, value) in enumerate({"test": similarity, "floor_shift": 0.0}.items()):
        yield Score(measure, around(value, seed, spread, n), role=role, **fields)


def results_of(made, *, family="gradient", statuses=None, model="net", more=None):
    """A run; `made`: (method, label of the metric) -> its scores. The metric's function is the end of its label.

    `more`: method -> what its cells record beside that.
    """
    store, cells = Memory(), []
    for (method, label), scores in made.items():
        function = label.partition("[")[0].removeprefix("original_")
        cell = Cell(f"{model}-{method}-{label}", model, 0, "data", method, label, 0)
        status, reason = (statuses or {}).get((method, label), ("done", ""))
        info = {
            "status": status,
            "reason": reason,
            "method_family": "control" if method in ("sobel", "random") else family,
            "method_expected": {},
            "metric_function": function,
            "metric_version": 1,
            "direction": "higher",
            "headline": "spearman",
            "summary_statistic": "mean",
            **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward", "seconds", "maps_seconds"), 1),
            **(more or {}).get(method, {}),
        }
        listed = list(scores)
        count = max((score.values.numel() for score in listed), default=N)
        rows = rows_of(listed, [f"s{i:03}" for i in range(count)], torch.zeros(count, dtype=torch.long))
        store.put(cell, Part(rows, info))
        cells.append(cell)
    subject = {
        "model": model,
        "model_seed": 0,
        "weights": "w" * 8,
        "weights_from": "a file",
        "twins": "",
        "skipped": [],
    }
    manifest = {
        "study": {"name": "made"},
        "run": "made",
        "environment": {"torch": "2", "device": "cpu", "code": "c" * 32},
        "subjects": [{**subject, "dataset": "data", "samples": N}],
    }
    return Results(manifest, tuple(cells), store)


def classes(similarity, *, view="up_to_sign", spread=0.02, n=N):
    """`random_logit` of one method."""
    measure, fields = view_of(view)
    yield Score(measure, around(1.0, 0, 0.0, n), role="ceiling_rerun", **fields)
    for draw in range(10):
        where = {"mode": "random", "draw": draw, **fields}
        yield Score(measure, around(similarity, draw, spread, n), **where)
        yield Score(measure, around(0.0, 50 + draw, spread, n), role="floor_shift", **where)


def cosines(value, *, spread=0.01, n=N):
    """`cosine_convergence` of one method."""
    for draw in range(5):
        yield Score("cosine", around(value, draw, spread, n), draw=draw)


def areas(most_first, least_first):
    """What `pixel_flipping` yields beside its curves, of one method in one setup: an area a sample for each order."""
    for mode, each in (("most_first", most_first), ("least_first", least_first)):
        yield Score("area", torch.as_tensor(each, dtype=torch.float64), mode=mode, channels="sum", sign="signed")


def networks(trained, reinitialized, shuffled, *, measure="accuracy", stage=None, stages=(), again=None):
    """`network_randomization` of one measure, of a whole network or of one layer: a number for each network."""

    def score(value, **labels):
        missing = {"unknown": torch.tensor(True)} if value != value else {}
        return Score(measure, torch.tensor(float(value), dtype=torch.float64), missing, **labels)

    layer = {} if stage is None else {"stage": stage, "stage_index": int(stage[-1])}
    yield score(trained, **layer)
    if stage is None:
        yield score(trained if again is None else again, role="ceiling_rerun", draw=0)
    for mode, values in (("full", reinitialized), ("shuffled", shuffled)):
        for draw, value in enumerate(values):
            yield score(value, role="floor_random", mode=mode, draw=draw, **layer)
    for index, value in enumerate(stages, 1):
        yield score(value, mode="top_down", stage=f"block{index}", stage_index=index, draw=0)


def learning(**compares):
    """What the cells of an introspection record."""
    first = next(iter(compares))
    return {
        "method_family": "global",
        "metric_family": "global",
        "compares": compares,
        "headline": first,
        "direction": None,
        "question": "What is it?",
        "misleads": "always",
    }
