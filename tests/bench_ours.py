"""Each method and each metric of the harness against the floor of its own passes."""

from contextlib import suppress

import pandas as pd
import torch

import harness
from bench_floor import SPACE, Spent, build, in_turn
from harness import NotApplicableError
from harness.entries import GLOBAL

METHOD_OPTIONS = {
    "rise": {"samples": 128},
    "lime": {"samples": 128},
    "kernel_shap": {"samples": 128},
}
"""Fewer passes than by default where their number says nothing about the ratio."""

METRIC_OPTIONS = {
    "infidelity": {"samples": 50},
    "monotonicity_correlation": {"patch": 4, "imputations": 4},
    "random_logit": {"class_draws": 3},
    "sensitivity_n": {"sizes": 3, "subsets": 20},
    "smooth_parameter_randomization": {"samples": 5},
}
QUICK_OPTIONS = {
    "completeness_convergence": {"steps": [2, 4]},
    "irof": {"superpixels": 10},
    "faithfulness_correlation": {"subsets": 10},
    "infidelity": {"samples": 10},
    "monotonicity_correlation": {"patch": 8, "imputations": 2},
    "smooth_parameter_randomization": {"samples": 1},
}
FEW = {"full_draws": 2, "cascade_draws": 1}
SIX = ["spearman", "pearson", "cosine", "ssim", "hog", "top_k"]
PATH = {"method": "integrated_gradients", "steps": 10, "baseline": "mean"}
CLAIMS = ("completeness", "completeness_convergence")
TRAINS = ("label_randomization", "remove_and_retrain")


def evaluated(model, x, methods, metrics):
    """The cells of a study in memory, with masks and a background for what needs them."""
    masks = torch.zeros_like(x[:, :1])
    masks[..., 8:24, 8:24] = 1
    known = {"space": SPACE, "build": build, "background": x, "masks": masks}
    results = harness.evaluate(model, x, explained(x), methods=methods, metrics=metrics, target="label", **known)
    if len(results.failures):
        raise SystemExit(f"failed: {results.failures.to_string()}")
    return results.cells


def explained(x):
    """A class for each sample, the same number of each: what random weights predict is often one and the same."""
    return torch.arange(len(x), device=x.device) % 10


def methods_table(floor, model, x, quick):
    """One row for each method that applies, and why the others do not."""
    rows, left_out = [], {}
    for name, entry in harness.METHODS.items():
        if entry.family == "control":
            continue
        options = {"samples": 16} if quick and name in METHOD_OPTIONS else METHOD_OPTIONS.get(name, {})

        def run(name=name, options=options):
            row = evaluated(model, x, [{"method": name, **options}], ["zero_fraction"]).iloc[0]
            if row["status"] != "done":
                raise NotApplicableError(row["reason"])
            return Spent(row["maps_seconds"], int(row["maps_forward"]), int(row["maps_backward"]))

        try:
            rows.append({"method": name, "options": in_words(options), **columns(in_turn(floor, {"": run})[""])})
        except NotApplicableError as reason:
            left_out[name] = str(reason).removeprefix(f"{name}: ")
    return pd.DataFrame(rows), left_out


def of_networks():
    """The metrics that ask introspections."""
    return [name for name, entry in harness.METRICS.items() if entry.family == GLOBAL]


def metric_entries(quick):
    """(method, entry) of every row: each metric once, and the cascades as often as they have kinds of cost."""
    path = {**PATH, "steps": 2} if quick else PATH
    for name in harness.METRICS:
        if name not in (*TRAINS, *of_networks(), "parameter_randomization"):
            options = METRIC_OPTIONS.get(name, {}) | (QUICK_OPTIONS.get(name, {}) if quick else {})
            yield (path if name in CLAIMS else "gradient"), {"metric": name, **options}
    cascade = {"metric": "parameter_randomization", **FEW}
    yield "gradient", {**cascade, "measures": ["spearman"]}
    yield path, {**cascade, "measures": ["spearman"]}
    yield "guided_backprop", {**cascade, "measures": ["spearman"]}
    yield "gradient", cascade
    yield "gradient", {**cascade, "measures": SIX}


def metrics_table(floor, model, x, quick):
    """One row for each metric that applies without training a network, and why the others do not."""
    rows, left_out = [], dict.fromkeys(TRAINS, "trains networks") | dict.fromkeys(of_networks(), "has no maps")
    for method, entry in metric_entries(quick):

        def run(method=method, entry=entry):
            row = evaluated(model, x, [method], [entry]).iloc[0]
            if row["status"] != "done":
                raise NotApplicableError(row["reason"])
            return Spent(row["seconds"], int(row["forward"]), int(row["backward"]))

        options = {key: value for key, value in entry.items() if key != "metric"}
        label = method if isinstance(method, str) else f"{method['method']} ({method['steps']} steps)"
        try:
            work = in_turn(floor, {"": run})[""]
        except NotApplicableError as reason:
            left_out[entry["metric"]] = str(reason).removeprefix("gradient: ")
            continue
        rows.append({"metric": entry["metric"], "options": in_words(options), "method": label, **columns(work)})
    return pd.DataFrame(rows), left_out


def columns(work):
    """The columns that say what work took."""
    return {
        "forward": work.forward,
        "backward": work.backward,
        "seconds": work.seconds,
        "floor": work.floor or float("nan"),
        "times the floor": work.times,
    }


def in_words(options):
    """Options as they stand in a table."""
    lists = {key: "+".join(map(str, value)) for key, value in options.items() if isinstance(value, list)}
    return ", ".join(f"{key}={value}" for key, value in {**options, **lists}.items())


def warm_up(model, x):
    """The first call of an operator is slower."""
    with suppress(NotApplicableError):
        for name in ("gradient", "guided_backprop", "lrp_epsilon"):
            harness.explain(model, x[:2], method=name, space=SPACE)
