"""Decoupling Pixel Flipping and Occlusion Strategy (`bluecher2024decoupling`): which rankings are stable?

A setup is a fill and a size of the patches that are removed. In each, methods are ranked by the area under the curve
when the most relevant is removed first, when the least relevant is, and by the difference: symmetric relevance gain.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from harness.claims import Claim, Finding, above, below, every
from harness.evidence import Evidence, Reading
from harness.reproduction import Given, Reproduction
from harness.statistics import Interval

SOURCE = "`bluecher2024decoupling`"
RESAMPLED = 1000
TITLES = {
    "most_first": "most relevant first",
    "least_first": "least relevant first",
    "gain": "symmetric relevance gain",
}

Scores = Float[np.ndarray, "setups methods samples"]


def studies(given: Given) -> Mapping[str, Mapping[str, Any]]:
    """Digits always, and photographs of CIFAR-10 with published weights where they are given."""
    common = {
        "methods": [
            "gradient",
            "input_x_gradient",
            {"method": "smoothgrad", "samples": 20},
            {"method": "integrated_gradients", "steps": 20},
            "guided_backprop",
            "lrp_epsilon_plus",
            "grad_cam",
            "random",
        ],
        "controls": False,
    }
    parts: dict[str, Mapping[str, Any]] = {
        "digits": {
            "name": "digits",
            "data": {"source": "mnist-5k", "samples": 100},
            "models": ["mnist-cnn"],
            **common,
            "metrics": _setups(["black", "grey", "blur", "noise"], steps=16),
        }
    }
    if "cifar" in given:
        folder = given["cifar"]
        scale = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        data = {"source": f"folder:{folder / 'test'}", "train": str(folder / "train"), **scale}
        parts["cifar"] = {
            "name": "cifar",
            "data": {**data, "select": "correct", "samples": 50},
            "models": [{"name": "resnet20", "weights": str(folder / "resnet20.safetensors")}],
            **common,
            "metrics": _setups(["black", "mean", "blur", "noise"], steps=8),
        }
    return parts


def _setups(fills: list[str], steps: int) -> list[dict[str, Any]]:
    return [{"metric": "pixel_flipping", "steps": steps, "fill": fills, "patch": [1, 2, 4]}]


def scores(evidence: Evidence) -> dict[str, Scores]:
    """Score -> how good each method is in each setup on each sample: higher is better; empty without setups.

    Samples on which a map has no order are left out, of all methods alike.
    """
    labels = evidence.labels("pixel_flipping")
    areas = {
        mode: np.array([[_area(evidence, each, label, mode) for each in methods_of(evidence)] for label in labels])
        for mode in ("most_first", "least_first")
    }
    if not labels:
        return {}
    known = ~np.isnan(areas["most_first"] + areas["least_first"]).any((0, 1))
    most, least = areas["most_first"][..., known], areas["least_first"][..., known]
    return {"most_first": -most, "least_first": least, "gain": least - most}


def agreement(values: Scores) -> float:
    r"""Kendall's $\tau$ between the rankings of two setups by the mean over samples, averaged over pairs of setups."""
    means = values.mean(2)
    first, second = np.triu_indices(means.shape[1], 1)
    signs = np.sign(means[:, first] - means[:, second])
    taus = signs @ signs.T / len(first)
    return float(taus[np.triu_indices(len(taus), 1)].mean())


def picks(samples: int) -> np.ndarray:
    """Which samples a bootstrap draws: the same for all that is compared."""
    return np.random.default_rng(0).integers(0, samples, (RESAMPLED, samples))


def gain_is_stable(evidence: Evidence, by: float) -> Finding:
    """Rankings by the gain agree better between setups than those by either order alone."""
    values = scores(evidence)
    if not values:
        return Finding(None, "no setups in this study")
    drawn = picks(values["gain"].shape[2])
    found = {name: np.array([agreement(each[..., pick]) for pick in drawn]) for name, each in values.items()}
    taus = {name: agreement(each) for name, each in values.items()}
    decided = every(
        above(
            _reading(f"tau of the gain less that of {mode}", taus["gain"] - taus[mode], found["gain"] - found[mode]), by
        )
        for mode in ("most_first", "least_first")
    )
    said = ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items())
    return Finding(decided.holds, f"mean tau between setups: {said}; {decided.said}")


def orders_disagree(evidence: Evidence, bound: float) -> Finding:
    """Within a setup, the two orders rank methods differently."""
    values = scores(evidence)
    if not values:
        return Finding(None, "no setups in this study")
    both = np.stack([values["most_first"], values["least_first"]], 1)

    def tau(pick: np.ndarray) -> float:
        return float(np.mean([agreement(pair[..., pick]) for pair in both]))

    samples = both.shape[-1]
    found = np.array([tau(pick) for pick in picks(samples)])
    return below(_reading("mean tau of the two orders within a setup", tau(np.arange(samples)), found), bound)


def random_is_last(evidence: Evidence, most: float) -> Finding:
    """By the gain, each method is ahead of the random map in most setups."""
    values, methods = scores(evidence), methods_of(evidence)
    if not values or "random" not in methods:
        return Finding(None, "no random map among the methods of a study with setups")
    others = [index for index, method in enumerate(methods) if method != "random"]

    def ahead(pick: np.ndarray) -> np.ndarray:
        means = values["gain"][..., pick].mean(2)
        return (means[:, others] > means[:, [methods.index("random")]]).mean(0)

    samples = values["gain"].shape[2]
    found = np.array([ahead(pick) for pick in picks(samples)])
    shares = ahead(np.arange(samples))
    return every(
        above(_reading(f"share of the setups in which {methods[index]} is ahead", share, each), most)
        for index, share, each in zip(others, shares, found.T, strict=True)
    )


def methods_of(evidence: Evidence) -> list[str]:
    """The methods of a study, in its order."""
    return list(dict.fromkeys(method for method, _ in evidence.stacks))


def draw_rankings(evidence: Evidence) -> Figure | None:
    """The rank of each method in each setup, by each score: one colour in a column is one rank in all."""
    values, methods = scores(evidence), methods_of(evidence)
    if not values:
        return None
    setups = [label.removeprefix("pixel_flipping").strip("[]") for label in evidence.labels("pixel_flipping")]
    figure = Figure(figsize=(3.4 * len(values) + 2, 0.3 * len(setups) + 1.9), layout="constrained")
    axes = figure.subplots(1, len(values), sharey=True)
    for axis, (name, each) in zip(axes, values.items(), strict=True):
        ranks = (-each.mean(2)).argsort(1).argsort(1) + 1
        picture = axis.imshow(ranks, cmap="viridis_r", aspect="auto")
        axis.set_xticks(range(len(methods)), methods, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(setups)), setups, fontsize=7)
        axis.set_title(f"{TITLES[name]}\nmean tau between setups {agreement(each):.2f}", fontsize=8)
        for (row, column), rank in np.ndenumerate(ranks):
            dark = rank > len(methods) / 2
            axis.text(column, row, str(rank), ha="center", va="center", fontsize=6, color="white" if dark else "black")
    figure.colorbar(picture, ax=axes, label="rank, 1 is best", shrink=0.8)
    figure.suptitle(f"{evidence.model}: rankings of methods in each setup", fontsize=10)
    return figure


def _reading(name: str, value: float, found: np.ndarray) -> Reading:
    low, high = np.quantile(found, [0.025, 0.975])
    return Reading(name, limits=Interval(value, float(low), float(high)))


def _area(evidence: Evidence, method: str, label: str, mode: str) -> np.ndarray:
    found = evidence.rows(method, label, measure="area", mode=mode)
    return found[0].values[:, 0] if found else np.full(1, np.nan)


CLAIMS = (
    Claim(
        "B-1",
        "Rankings by symmetric relevance gain hardly depend on fill and size of patches, those by one order do",
        SOURCE,
        "the mean Kendall tau between setups is higher by more than {by:g} than for each of the orders alone",
        gain_is_stable,
        {"by": 0.0},
        "rankings-{model}.png",
    ),
    Claim(
        "B-2",
        "Within one setup, the two orders rank methods differently",
        SOURCE,
        "the mean tau between both orders is below {bound:g}",
        orders_disagree,
        {"bound": 0.7},
        "rankings-{model}.png",
    ),
    Claim(
        "B-3",
        "A random map comes last",
        SOURCE,
        "each method is ahead of it by the gain in more than a share of {most:g} of the setups",
        random_is_last,
        {"most": 0.5},
        "rankings-{model}.png",
    ),
)

REPRODUCTION = Reproduction(
    name="bluecher2024",
    paper="bluecher2024decoupling",
    title="Decoupling pixel flipping and occlusion strategy",
    studies=studies,
    claims=CLAIMS,
    figures={"rankings": lambda evidence: draw_rankings(evidence[0])},
    takes={"cifar": ("resnet20.safetensors", "test", "train")},
)
