"""Ours against quantus, in one process and in turn: the same model, samples, maps and numbers of steps.

Quantus gets its maps from our functions, so that what differs is how they are put to the test.
"""

from functools import partial
from importlib.util import find_spec
from itertools import product

import numpy as np
import pandas as pd
import torch

from bench_floor import Spent, clocked, in_turn
from bench_ours import PATH, evaluated, explained
from bench_peers import compared, maps_of

RAW = {"abs": False, "normalise": False, "disable_warnings": True}
CURVES = {**RAW, "return_auc_per_sample": False}
"""Its areas need a function that numpy has no more."""

CLASSES, FEATURES, NEIGHBOURS, PATCH, STEPS, SUBSETS = 10, 16, 5, 8, 64, 50
"""16 features a step are 64 steps of pixels for us, and 192 of values for quantus."""

COARSE = 64
"""Values a step that make 48 steps; quantus takes 3,072 values in steps of numbers that divide 1,024."""

FILL = {"fill": "mean"}
"""Zero in the units of the model's input."""

CASCADE = {
    "metric": "parameter_randomization",
    "full_draws": 1,
    "cascade_draws": 1,
    "batch_norm": "reset",
    "measures": ["spearman"],
}
"""One draw by one measure, and batch norms as quantus leaves them."""

METHODS = [
    {"method": "gradient"},
    {"method": "input_x_gradient"},
    {"method": "guided_backprop"},
    {"method": "integrated_gradients", "steps": 4, "baseline": "mean"},
    {"method": "smoothgrad", "samples": 4},
    {"method": "deconvnet"},
    {"method": "lrp_epsilon"},
    {"method": "lrp_z_plus"},
    {"method": "deeplift", "baseline": "mean"},
    {"method": "grad_cam"},
]
METRICS = [
    {"metric": "deletion", "steps": STEPS, **FILL},
    {"metric": "region_perturbation", "patch": PATCH, **FILL},
    {"metric": "faithfulness_correlation", "subsets": SUBSETS, "fraction": 0.2, **FILL},
    {"metric": "faithfulness_estimate", "groups": STEPS, **FILL},
    {"metric": "max_sensitivity", "neighbours": NEIGHBOURS},
    {"metric": "sparseness"},
    CASCADE,
    {"metric": "random_logit", "class_draws": 1, "measures": ["spearman"]},
]


class Quantus:
    """Its metrics on this model and these samples."""

    def __init__(self, model, x):
        self.model, self.x, self.target = model, x, explained(x)

    def explain(self, entry):
        """An explain function, summed over channels as quantus itself does it."""
        options = {key: value for key, value in entry.items() if key not in ("method", "baseline")}

        def function(model, inputs, targets, **_):
            x = torch.as_tensor(inputs, dtype=self.x.dtype, device=self.x.device)
            target = torch.as_tensor(np.asarray(targets), device=self.x.device)
            return maps_of(entry["method"], options, model, x, target).sum(1, keepdim=True).detach().cpu().numpy()

        return function

    def score(self, metric, explain, maps):
        """The scores of a metric for given maps."""
        arrays = {"x_batch": self.x.cpu().numpy(), "y_batch": self.target.cpu().numpy(), "a_batch": maps}
        return metric(model=self.model, explain_func=explain, device=str(self.x.device), **arrays)

    def maps(self, explain):
        """The maps that the metrics are given, kept as well."""
        self.kept = explain(self.model, self.x, self.target.cpu().numpy())
        return self.kept


def curves_table(floor, model, x, quick):
    """Flipping everything: a feature of quantus is a value, one of ours is a pixel with all its channels."""
    import quantus

    theirs = Quantus(model, x)
    explain = theirs.explain({"method": "gradient"})
    maps, values, pixels = theirs.maps(explain), x[0].numel(), x[0, 0].numel()
    runs, pairs = {}, []
    # As many features a step, and as many steps.
    for steps, features in ((pixels // FEATURES, FEATURES), (values // COARSE, COARSE)):
        metric = quantus.PixelFlipping(features_in_step=features, perturb_baseline=0.0, **CURVES)
        peer = f"{features} values a step, {values // features} steps"
        runs[peer] = partial(clocked, floor, model, partial(theirs.score, metric, explain, maps))
        for name, which in product(("pixel_flipping", "deletion"), ("first", "each further")):
            # A control goes before, whose maps cost nothing.
            methods = ["gradient"] if which == "first" else ["input_magnitude", "gradient"]
            label = f"{name}, {pixels // steps} pixels a step, {steps} steps, {which} method"
            runs[label] = partial(_ours, model, x, methods, {"metric": name, "steps": steps, **FILL})
            pairs.append((label, peer))
    works = in_turn(floor, runs, rounds=2)
    return pd.DataFrame(
        [compared({"ours": label, "quantus": peer}, works[label], works[peer]) for label, peer in pairs]
    ), {}


def cascades_table(floor, model, x, quick):
    """Parameter randomization from the output down, compared by rank: theirs has a stage more for each batch norm."""
    import quantus

    theirs, rows = Quantus(model, x), []
    # Ten steps are what quantus asks captum for.
    for entry, name in (({"method": "gradient"}, "Gradient"), (PATH, "IntegratedGradients")):
        entry = {**entry, "steps": 2} if quick and "steps" in entry else entry
        sources = {"our maps": theirs.explain(entry)}
        if find_spec("captum") and not quick:
            sources["captum's maps"] = partial(quantus.explain, method=name)
        runs = {"": partial(_ours, model, x, [entry], CASCADE)}
        for source, explain in sources.items():
            metric = quantus.MPRT(**RAW)
            runs[source] = partial(clocked, floor, model, partial(theirs.score, metric, explain, theirs.maps(explain)))
        # Ten gradients for one are long enough that one round says it.
        works = in_turn(floor, runs, rounds=1 if "steps" in entry else 2)
        rows += [
            compared({"method": entry["method"], "quantus with": source}, works[""], works[source])
            for source in sources
        ]
    return pd.DataFrame(rows), {}


def study_table(floor, model, x, quick):
    """All methods by all metrics, each library from its maps to its scores, and where the time goes."""
    methods = METHODS[:2] if quick else METHODS

    def ours():
        cells = evaluated(model, x, methods, METRICS)
        return _added(
            {
                "maps": _summed(cells.groupby("method").first(), "maps_"),
                **{name: _summed(rows) for name, rows in cells.groupby("metric", sort=False)},
            }
        )

    def theirs():
        peer, metrics = Quantus(model, x), quantus_metrics(x)
        found = []
        for explain in map(peer.explain, methods):
            found.append(("maps", clocked(floor, model, partial(peer.maps, explain))))
            maps = peer.kept
            for name, metric in metrics.items():
                found.append((name, clocked(floor, model, partial(peer.score, metric, explain, maps))))
        names = dict.fromkeys(name for name, _ in found)
        return _added({name: _total(spent for each, spent in found if each == name) for name in names})

    # Long enough that one round says it.
    works = in_turn(floor, {"ours": ours, "theirs": theirs})
    left, right = (works[side] for side in ("ours", "theirs"))
    names = {"maps": "", **{name: type(metric).__name__ for name, metric in quantus_metrics(x).items()}}
    rows = [compared({"ours": name, "quantus": names[name]}, left.parts[name], right.parts[name]) for name in names]
    return pd.DataFrame([*rows, compared({"ours": "all", "quantus": "all"}, left, right)]), {}


def quantus_metrics(x):
    """Those of quantus by the names of ours that answer the same question, with as many steps, subsets and draws."""
    import quantus

    spearman, fill = quantus.similarity_func.correlation_spearman, {"perturb_baseline": 0.0}
    subsets = {"nr_runs": SUBSETS, "subset_size": x[0].numel() // 5, "return_aggregate": False}
    return {
        "deletion": quantus.PixelFlipping(features_in_step=FEATURES, **fill, **CURVES),
        "region_perturbation": quantus.RegionPerturbation(patch_size=PATCH, **fill, **RAW),
        "faithfulness_correlation": quantus.FaithfulnessCorrelation(**subsets, **fill, **RAW),
        "faithfulness_estimate": quantus.FaithfulnessEstimate(features_in_step=FEATURES, **fill, **RAW),
        "max_sensitivity": quantus.MaxSensitivity(nr_samples=NEIGHBOURS, lower_bound=0.1, **RAW),
        "sparseness": quantus.Sparseness(**{**RAW, "abs": True}),
        "parameter_randomization": quantus.MPRT(**RAW),
        "random_logit": quantus.RandomLogit(num_classes=CLASSES, similarity_func=spearman, **RAW),
    }


def _ours(model, x, methods, entry):
    """What the metric took for the last of the methods."""
    return _summed(evaluated(model, x, methods, [entry]).iloc[-1:])


def _summed(cells, prefix=""):
    seconds, forward, backward = (cells[f"{prefix}{name}"].sum() for name in ("seconds", "forward", "backward"))
    return Spent(float(seconds), int(forward), int(backward))


def _total(parts):
    parts = list(parts)
    return Spent(*(sum(getattr(part, name) for part in parts) for name in ("seconds", "forward", "backward")))


def _added(parts):
    total = _total(parts.values())
    return Spent(total.seconds, total.forward, total.backward, parts)
