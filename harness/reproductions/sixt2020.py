"""When Explanations Lie (`sixt2020explanations`): which backward passes forget the layers above?"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from harness.claim_figures import draw_stages
from harness.claims import Claim, Finding, above, below, every
from harness.evidence import Evidence, Reading
from harness.reproduction import Given, Reproduction
from harness.reproductions import cifar

MODIFIED = ("guided_backprop", "deconvnet", "excitation_backprop", "deep_taylor", "lrp_z_plus", "lrp_alpha2_beta1")
"""Those that the paper finds to converge; the rule alpha 1, beta 0 is that of z+."""

KEEPING = ("gradient", "deeplift")
SOURCE = "`sixt2020explanations`"
METHODS = [
    *(method for method in (*KEEPING, *MODIFIED) if method != "lrp_alpha2_beta1"),
    {"name": "lrp_alpha2_beta1", "method": "lrp_alpha_beta", "alpha": 2.0, "beta": 1.0},
]


Told = Callable[[Reading, float], Finding]
"""`above` or `below`."""


def studies(given: Given) -> Mapping[str, Mapping[str, Any]]:
    """Digits always, and photographs of CIFAR-10 with published weights where they are given."""
    common = {
        "methods": METHODS,
        "metrics": [
            {"metric": "parameter_randomization", "stages": 8},
            "random_logit",
            "cosine_convergence",
        ],
    }
    parts: dict[str, Mapping[str, Any]] = {
        "digits": {
            "name": "digits",
            "data": {"source": "mnist-5k", "samples": 100},
            "models": ["mnist-cnn", "adebayo-cnn"],
            **common,
        }
    }
    if "cifar" in given:
        parts["cifar"] = {**cifar.part(given["cifar"], ("resnet20",)), **common}
    return parts


def later_layers(evidence: Evidence, methods: tuple[str, ...], told: Told, bound: float) -> Finding:
    """What is left of each map, up to a sign, while the upper half of the stages is random."""
    found = []
    for method in methods:
        for stage in evidence.upper_half(method)[-1:]:
            found.append(told(evidence.left(method, "up_to_sign", mode="top_down", stage=stage), bound))
    return every(found)


def other_class(evidence: Evidence, methods: tuple[str, ...], told: Told, bound: float) -> Finding:
    """What each map, up to a sign, has in common with that of another class."""
    return every(told(evidence.left(method, "up_to_sign", "random_logit"), bound) for method in methods)


def convergence(evidence: Evidence, methods: tuple[str, ...], told: Told, bound: float) -> Finding:
    """The cosine of what two random vectors become on their way down."""
    return every(told(evidence.similarity(method, "cosine", "cosine_convergence"), bound) for method in methods)


CASCADE, CLASS, CONVERGENCE = (f"{SOURCE}, {what}" for what in ("cascades", "random logits", "cosine convergence"))
SURVIVES = "is left of each map, up to a sign, with the upper half of the stages random"
FIGURE = "stages-{model}.png"

CLAIMS = (
    *(
        Claim(
            f"S-1 {method}",
            "Modified backward passes do not notice that the later layers are random",
            CASCADE,
            f"more than {{bound:g}} {SURVIVES}",
            partial(later_layers, methods=(method,), told=above),
            {"bound": 0.5},
            FIGURE,
        )
        for method in MODIFIED
    ),
    Claim(
        "S-1 others",
        "The gradient and DeepLIFT notice that the later layers are random",
        CASCADE,
        f"less than {{bound:g}} {SURVIVES}",
        partial(later_layers, methods=KEEPING, told=below),
        {"bound": 0.5},
        FIGURE,
    ),
    *(
        Claim(
            f"S-2 {method}",
            "Modified backward passes explain another class by nearly the same map",
            CLASS,
            "more than {bound:g} of each map, up to a sign, is that of another class",
            partial(other_class, methods=(method,), told=above),
            {"bound": 0.5},
        )
        for method in MODIFIED
    ),
    Claim(
        "S-2 others",
        "The gradient and DeepLIFT explain another class by another map",
        CLASS,
        "less than {bound:g} of each map, up to a sign, is that of another class",
        partial(other_class, methods=KEEPING, told=below),
        {"bound": 0.5},
    ),
    *(
        Claim(
            f"S-3 {method}",
            "In modified backward passes two random vectors converge to one direction",
            CONVERGENCE,
            "the median cosine at the input of the lowest layer with several channels is above {bound:g}",
            partial(convergence, methods=(method,), told=above),
            {"bound": 0.9},
        )
        for method in MODIFIED
    ),
    Claim(
        "S-3 others",
        "Under the gradient and DeepLIFT two random vectors stay apart",
        CONVERGENCE,
        "the median cosine there is below {bound:g}",
        partial(convergence, methods=KEEPING, told=below),
        {"bound": 0.9},
    ),
)

REPRODUCTION = Reproduction(
    name="sixt2020",
    paper="sixt2020explanations",
    title="When Explanations Lie: why many modified BP attributions fail",
    studies=studies,
    claims=CLAIMS,
    figures={"stages": partial(draw_stages, views=("up_to_sign", "signed", "ssim"))},
    takes={"cifar": cifar.files("resnet20")},
)
