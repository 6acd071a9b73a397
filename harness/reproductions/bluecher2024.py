"""Decoupling Pixel Flipping and Occlusion Strategy (`bluecher2024decoupling`): which rankings are stable?

A setup is a fill and a size of the patches that are removed. In each, methods are ranked by the area under the curve
when the most relevant is removed first, when the least relevant is, and by the difference: symmetric relevance gain.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from harness.claims import Claim, Finding, above, below, every
from harness.evidence import Evidence, Reading
from harness.reproduction import Given, Reproduction
from harness.reproductions import cifar
from harness.statistics import DEFAULT, basic_bootstrap, kendall

SOURCE = "`bluecher2024decoupling`"
LEAST_SAMPLES = 10
ORDERS = ("most_first", "least_first")
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
        metrics = _setups(["black", "mean", "blur", "noise"], steps=8)
        parts["cifar"] = {**cifar.part(given["cifar"], ("resnet20",)), **common, "metrics": metrics}
    return parts


def _setups(fills: list[str], steps: int) -> list[dict[str, Any]]:
    return [{"metric": "pixel_flipping", "steps": steps, "fill": fills, "patch": [1, 2, 4]}]


def setups(evidence: Evidence) -> tuple[list[str], dict[str, Scores], str]:
    """The methods, how good each is in each setup on each sample by each score, and why nothing can be said, if so.

    Scores are higher for better. A method that does not apply or failed is left out, and so are samples on which a map
    has no order, of all methods alike.
    """
    labels = evidence.labels("pixel_flipping")
    areas: dict[str, np.ndarray] = {}
    for method in dict.fromkeys(method for method, _ in evidence.stacks):
        found = [evidence.rows(method, label, measure="area", mode=mode) for mode in ORDERS for label in labels]
        if found and all(found):
            areas[method] = np.array([series[0].values[:, 0] for series in found])
    if not areas:
        return [], {}, "no setups in this study"
    most, least = np.split(np.stack(list(areas.values()), 1), 2)
    known = ~np.isnan(most + least).any((0, 1))
    if known.sum() < LEAST_SAMPLES or known.mean() < 1 - DEFAULT.degenerate_at_most:
        enough = f"at least {LEAST_SAMPLES} samples and {1 - DEFAULT.degenerate_at_most:.0%} of them wanted"
        return [], {}, f"{known.sum()} of {len(known)} samples have maps with an order by every method, {enough}"
    most, least = most[..., known], least[..., known]
    return list(areas), {"most_first": -most, "least_first": least, "gain": least - most}, ""


def agreement(values: Scores) -> float:
    r"""Kendall's $\tau$ between the rankings of two setups by the mean over samples, averaged over pairs of setups."""
    means = values.mean(2)
    first, second = np.triu_indices(len(means), 1)
    return float(kendall(means[first], means[second]).mean())


def gain_is_stable(evidence: Evidence, by: float) -> Finding:
    """Rankings by the gain agree better between setups than those by either order alone."""
    _, values, lacks = setups(evidence)
    if lacks:
        return Finding(None, lacks)

    def ahead(mode: str, pick: np.ndarray) -> float:
        return agreement(values["gain"][..., pick]) - agreement(values[mode][..., pick])

    decided = every(
        above(_bootstrapped(f"tau of the gain less that of {mode}", partial(ahead, mode), values), by)
        for mode in ORDERS
    )
    said = ", ".join(f"{name} {agreement(each):.2f}" for name, each in values.items())
    return Finding(decided.holds, f"mean tau between setups: {said}; {decided.said}")


def orders_disagree(evidence: Evidence, bound: float) -> Finding:
    """Within a setup, the two orders rank methods differently."""
    _, values, lacks = setups(evidence)
    if lacks:
        return Finding(None, lacks)
    both = np.stack([values["most_first"], values["least_first"]], 1)

    def tau(pick: np.ndarray) -> float:
        return float(np.mean([agreement(pair[..., pick]) for pair in both]))

    return below(_bootstrapped("mean tau of the two orders within a setup", tau, values), bound)


def random_is_last(evidence: Evidence, most: float) -> Finding:
    """By the gain, each method is ahead of the random map in most setups."""
    methods, values, lacks = setups(evidence)
    if lacks or "random" not in methods:
        return Finding(None, lacks or "no random map among the methods")
    random = methods.index("random")

    def ahead(method: int, pick: np.ndarray) -> float:
        means = values["gain"][..., pick].mean(2)
        return float((means[:, method] > means[:, random]).mean())

    return every(
        above(
            _bootstrapped(f"share of the setups in which {name} is ahead", partial(ahead, index), values, least=0.0),
            most,
        )
        for index, name in enumerate(methods)
        if index != random
    )


def _bootstrapped(
    name: str, statistic: Callable[[np.ndarray], float], values: Mapping[str, Scores], least: float = -1.0
) -> Reading:
    """A statistic of the samples, in [least, 1], with its interval."""
    return Reading(name, limits=basic_bootstrap(statistic, values["gain"].shape[2], least=least))


def draw_rankings(evidence: Evidence) -> Figure | None:
    """The rank of each method in each setup, by each score: one colour in a column is one rank in all."""
    methods, values, lacks = setups(evidence)
    if lacks:
        return None
    rows = [label.removeprefix("pixel_flipping").strip("[]") for label in evidence.labels("pixel_flipping")]
    figure = Figure(figsize=(3.4 * len(values) + 2, 0.3 * len(rows) + 1.9), layout="constrained")
    axes = figure.subplots(1, len(values), sharey=True)
    for axis, (name, each) in zip(axes, values.items(), strict=True):
        ranks = (-each.mean(2)).argsort(1).argsort(1) + 1
        picture = axis.imshow(ranks, cmap="viridis_r", aspect="auto")
        axis.set_xticks(range(len(methods)), methods, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set_title(f"{TITLES[name]}\nmean tau between setups {agreement(each):.2f}", fontsize=8)
        for (row, column), rank in np.ndenumerate(ranks):
            dark = rank > len(methods) / 2
            axis.text(column, row, str(rank), ha="center", va="center", fontsize=6, color="white" if dark else "black")
    figure.colorbar(picture, ax=axes, label="rank, 1 is best", shrink=0.8)
    figure.suptitle(f"{evidence.model}: rankings of methods in each setup", fontsize=10)
    return figure


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
    takes={"cifar": cifar.files("resnet20")},
)
