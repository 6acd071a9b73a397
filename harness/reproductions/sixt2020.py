"""When Explanations Lie (`sixt2020explanations`): which backward passes forget the layers above?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from harness.claims import Claim, Finding, above, below, every
from harness.evidence import Evidence, Reading
from harness.reproduction import Given, Reproduction

MODIFIED = ("guided_backprop", "deconvnet", "excitation_backprop", "deep_taylor", "lrp_z_plus", "lrp_alpha2_beta1")
"""Those that the paper finds to converge; the rule alpha 1, beta 0 is that of z+."""

KEEPING = ("gradient", "deeplift")
SOURCE = "`sixt2020explanations`"
METHODS = [
    *(method for method in (*KEEPING, *MODIFIED) if method != "lrp_alpha2_beta1"),
    {"name": "lrp_alpha2_beta1", "method": "lrp_alpha_beta", "alpha": 2.0, "beta": 1.0},
]


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
        folder = given["cifar"]
        scale = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        data = {"source": f"folder:{folder / 'test'}", "train": str(folder / "train"), **scale}
        parts["cifar"] = {
            "name": "cifar",
            "data": {**data, "select": "correct", "samples": 50},
            "models": [{"name": "resnet20", "weights": str(folder / "resnet20.safetensors")}],
            **common,
        }
    return parts


def stays(evidence: Evidence, methods: tuple[str, ...], most: float) -> Finding:
    """Up to a sign, most of each map is left while the upper half of the stages is random."""
    return every(above(_middle(evidence, method), most) for method in methods)


def goes(evidence: Evidence, methods: tuple[str, ...], most: float) -> Finding:
    """Up to a sign, less than half of each map is left then."""
    return every(below(_middle(evidence, method), most) for method in methods)


def stays_for_classes(evidence: Evidence, methods: tuple[str, ...], most: float) -> Finding:
    """Up to a sign, most of each map is that of another class."""
    return every(above(evidence.left(method, "up_to_sign", "random_logit"), most) for method in methods)


def goes_for_classes(evidence: Evidence, methods: tuple[str, ...], most: float) -> Finding:
    """Up to a sign, less than half of each map is."""
    return every(below(evidence.left(method, "up_to_sign", "random_logit"), most) for method in methods)


def converges(evidence: Evidence, methods: tuple[str, ...], cosine: float) -> Finding:
    """Two random vectors become parallel on their way down."""
    return every(above(evidence.similarity(method, "cosine", "cosine_convergence"), cosine) for method in methods)


def stays_apart(evidence: Evidence, methods: tuple[str, ...], cosine: float) -> Finding:
    """They do not."""
    return every(below(evidence.similarity(method, "cosine", "cosine_convergence"), cosine) for method in methods)


def _middle(evidence: Evidence, method: str) -> Reading:
    stages = evidence.stages(method)
    where = {"mode": "top_down", "stage": stages[len(stages) // 2 - 1]} if len(stages) > 1 else {}
    return evidence.left(method, "up_to_sign", **where)


CASCADE, CLASS, CONVERGENCE = (f"{SOURCE}, {what}" for what in ("cascades", "random logits", "cosine convergence"))
SURVIVES = "is left of each map, up to a sign, with the upper half of the stages random"
FIGURE = "stages-{model}.png"

CLAIMS = (
    *(
        Claim(
            f"S-1 {method}",
            "Modified backward passes do not notice that the later layers are random",
            CASCADE,
            f"more than {{most:g}} {SURVIVES}",
            partial(stays, methods=(method,)),
            {"most": 0.5},
            FIGURE,
        )
        for method in MODIFIED
    ),
    Claim(
        "S-1 others",
        "The gradient and DeepLIFT do",
        CASCADE,
        f"less than {{most:g}} {SURVIVES}",
        partial(goes, methods=KEEPING),
        {"most": 0.5},
        FIGURE,
    ),
    *(
        Claim(
            f"S-2 {method}",
            "Modified backward passes explain another class by nearly the same map",
            CLASS,
            "more than {most:g} of each map, up to a sign, is that of another class",
            partial(stays_for_classes, methods=(method,)),
            {"most": 0.5},
        )
        for method in MODIFIED
    ),
    Claim(
        "S-2 others",
        "The gradient and DeepLIFT do not",
        CLASS,
        "less than {most:g} of each map, up to a sign, is that of another class",
        partial(goes_for_classes, methods=KEEPING),
        {"most": 0.5},
    ),
    *(
        Claim(
            f"S-3 {method}",
            "In modified backward passes two random vectors converge to one direction",
            CONVERGENCE,
            "the median cosine at the input of the lowest layer with several channels is above {cosine:g}",
            partial(converges, methods=(method,)),
            {"cosine": 0.9},
        )
        for method in MODIFIED
    ),
    Claim(
        "S-3 others",
        "Under the gradient and DeepLIFT they do not",
        CONVERGENCE,
        "the median cosine there is below {cosine:g}",
        partial(stays_apart, methods=KEEPING),
        {"cosine": 0.9},
    ),
)

REPRODUCTION = Reproduction(
    name="sixt2020",
    paper="sixt2020explanations",
    title="When Explanations Lie: why many modified BP attributions fail",
    studies=studies,
    claims=CLAIMS,
    takes={"cifar": ("resnet20.safetensors", "test", "train")},
)
