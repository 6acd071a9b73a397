"""Sanity Checks for Saliency Maps (`adebayo2018sanity`): which maps depend on what a network has learnt?

The tests run twice. `original` does as the authors' notebooks do: each stage draws new weights, explains what the
randomized network predicts and keeps batch-norm statistics; maps are clipped or scaled as there, and the similarity is
read as it is. `today`: the class is fixed, statistics are estimated again, and what is read is the share of the
similarity that is left, between that of a shifted map and that of a second call; for labels, between two networks
trained on noise and two trained on the truth.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from harness.claims import Claim, Finding, above, below, every, more, near, several
from harness.evidence import TODAY, Evidence, Protocol, Reading
from harness.reproduction import Given, Reproduction
from harness.reproductions import cifar
from harness.statistics import mean_of

ORIGINAL = Protocol("original", prefix="original_", above_chance=False)

MULTIPLIED = ("input_x_gradient", "integrated_gradients")
LIKE_EDGES = (*MULTIPLIED, "guided_backprop", "guided_grad_cam")
MEASURES = ["spearman", "ssim", "hog"]
MODES = ("top_down", "independent")
LABEL_TEST = "label_randomization"
SOURCE = "`adebayo2018sanity`"


def studies(given: Given) -> Mapping[str, Mapping[str, Any]]:
    """Digits always; photographs of CIFAR-10 and of ImageNet with published weights, where they are given."""
    gradients = ["gradient", "input_x_gradient", "guided_backprop"]
    activation_maps = [{"method": "grad_cam", "relu": True}, "guided_grad_cam"]
    averages = [{"method": "smoothgrad", "samples": 20}, {"method": "integrated_gradients", "steps": 20}]
    parts: dict[str, Mapping[str, Any]] = {
        "digits": {
            "name": "digits",
            "data": {"source": "mnist-5k", "samples": 100},
            "models": ["adebayo-cnn", "adebayo-mlp", "mnist-cnn"],
            "methods": [*gradients, *averages, *activation_maps],
            "metrics": [
                *_randomization(draws=5, stages=0),
                *_twice("label_randomization"),
                *_twice("edge_similarity"),
                "zero_fraction",
            ],
        }
    }
    photographs: dict[str, Any] = {"methods": [*gradients, *activation_maps, "sobel", "random"], "controls": False}
    if "cifar" in given:
        metrics = [*_randomization(draws=3, stages=8), *_twice("edge_similarity")]
        parts["cifar"] = {**cifar.part(given["cifar"], ("resnet20", "resnet56")), **photographs, "metrics": metrics}
    if "imagenet" in given:
        folder = given["imagenet"]
        files = {"labels": str(folder / "labels.csv"), "label": "class_index", "resize": 256, "crop": 224}
        data = {"source": f"folder:{folder / 'images'}", **files, **cifar.IMAGENET_SCALE}
        weights = str(folder / "mobilenet_v2.safetensors")
        parts["imagenet"] = {
            "name": "imagenet",
            "data": {**data, "select": "correct", "samples": 12},
            "models": [{"source": "torchvision:mobilenet_v2", "name": "mobilenet_v2", "weights": weights}],
            **photographs,
            "metrics": [
                *_randomization(draws=3, stages=5, modes=("top_down",), full_draws=3),
                *_twice("edge_similarity"),
            ],
        }
    return parts


def _randomization(
    draws: int, stages: int, modes: tuple[str, ...] = MODES, full_draws: int = 10
) -> list[dict[str, Any]]:
    """Both protocols: that of today with intervals over random networks, the original with one, as there."""
    test = {"metric": "parameter_randomization", "modes": list(modes), "stages": stages}
    as_there = {"batch_norm": "keep", "fresh": True, "repredict": True, "full_draws": 2, "cascade_draws": 1}
    return [
        {**test, "full_draws": full_draws, "cascade_draws": draws, "measures": MEASURES},
        {**test, **as_there, **_original("parameter_randomization")},
    ]


def _twice(metric: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "measures": MEASURES}, {"metric": metric, **_original(metric)}]


def _original(metric: str) -> dict[str, Any]:
    return {"name": ORIGINAL.prefix + metric, "convention": "adebayo2018", "measures": MEASURES}


def forgets(evidence: Evidence, method: str, view: str, most: float, nothing: float) -> Finding:
    """Less than half is left when the output layer is random, and hardly anything when all is."""
    first = [_at(evidence, method, view, stage) for stage in evidence.stages(method)[:1]]
    return every([*(below(each, most) for each in first), below(evidence.left(method, view), nothing)])


def ignores_higher_layers(
    evidence: Evidence, method: str, view: str, most: float, clearly: float, fall: float
) -> Finding:
    """Most is left while the higher layers are random, clearly more than of the gradient; less when all are."""
    upper, stages = evidence.upper_half(method), evidence.stages(method)
    if not upper:
        return Finding(None, evidence.left(method, view).lacks or "one stage only")
    middle, last = (_at(evidence, method, view, stage) for stage in (upper[-1], stages[-1]))
    first, plain = (_at(evidence, each, view, stages[0]) for each in (method, "gradient"))
    return every([above(middle, most), more(first, plain, clearly), more(middle, last, fall)])


def input_shows_through(evidence: Evidence, most: float, clearly: float, nothing: float) -> Finding:
    """All random: of absolute maps most is left, more than of the gradient's; of signed ones hardly anything."""
    plain = evidence.left("gradient", "absolute")
    findings = []
    for method in evidence.applying(MULTIPLIED):
        kept = evidence.left(method, "absolute")
        findings += [above(kept, most), more(kept, plain, clearly), below(evidence.left(method, "signed"), nothing)]
    return every(findings)


def background_predicts(evidence: Evidence, within: float, background: float) -> Finding:
    """The similarity of absolute maps is what zeros of the input make by themselves."""
    found = evidence.rows("input_x_gradient", "zero_fraction")
    if not found:
        return Finding(None, "the share of zeros was not measured")
    zeros = found[0].values
    if not mean_of(zeros) > background:
        return Finding(None, f"{mean_of(zeros):.0%} of the map are zero: no background that decides")
    expected = mean_of(3 * zeros / (3 * zeros + (1 - zeros) ** 2))
    return near(evidence.similarity("input_x_gradient", "absolute"), expected, within)


def blind_to_single_blocks(evidence: Evidence, view: str, most: float) -> Finding:
    """Guided backpropagation keeps most of its map when any one of the higher blocks is random."""
    stages = evidence.upper_half("guided_backprop", "independent")
    return every(above(_alone(evidence, "guided_backprop", view, stage), most) for stage in stages)


def notices_single_blocks(evidence: Evidence, view: str, most: float) -> Finding:
    """The gradient keeps less than half of its map when any one block is random."""
    stages = evidence.stages("gradient", "independent")
    return every(below(_alone(evidence, "gradient", view, stage), most) for stage in stages)


def stays_for_labels(evidence: Evidence, methods: tuple[str, ...], most: float) -> Finding:
    """Absolute maps of a network that has learnt permuted labels are mostly the same."""
    apply = evidence.applying(methods, LABEL_TEST) or methods[:1]
    return every(above(evidence.left(method, "absolute", LABEL_TEST), most) for method in apply)


def changes_with_labels(evidence: Evidence, methods: tuple[str, ...], bound: float) -> Finding:
    """Signed maps of a network that has learnt permuted labels are others."""
    apply = evidence.applying(methods, LABEL_TEST) or methods[:1]
    return every(below(evidence.left(method, "signed", LABEL_TEST), bound) for method in apply)


def looks_like_edges(evidence: Evidence, most: float, kinds: int) -> Finding:
    """Some kinds of maps have more than half of what there can be in common with the edges."""
    methods = evidence.applying(LIKE_EDGES, "edge_similarity")
    return several([above(evidence.left(each, "absolute", "edge_similarity"), most) for each in methods], kinds)


def structure_without_learning(evidence: Evidence, view: str, nothing: float) -> Finding:
    """Gradients of two random convolutional networks are alike."""
    if not evidence.applying(("grad_cam",)):
        return Finding(None, "no layer with positions: the claim is about convolutions")
    return above(evidence.left("gradient", view, role="floor_random"), nothing)


def _at(evidence: Evidence, method: str, view: str, stage: str) -> Reading:
    return evidence.left(method, view, mode="top_down", stage=stage)


def _alone(evidence: Evidence, method: str, view: str, stage: str) -> Reading:
    return evidence.left(method, view, mode="independent", stage=stage)


CASCADE, SINGLE = f"{SOURCE}, cascading randomization", f"{SOURCE}, independent randomization"
LABELS, ARCHITECTURE = f"{SOURCE}, label randomization", f"{SOURCE}, discussion"
STAGES, ALONE, LEARNT = "stages-{model}.png", "alone-{model}.png", "labels-{model}.png"

FALLS = "less than {most:g} is left with the output layer random, and less than {nothing:g} with all layers"
STAYS = (
    "with the upper half of the stages random more than {most:g} is left, and {fall:g} more than at the last stage; "
    "and with the output layer alone random, {clearly:g} more than of the gradient"
)
FORGETTING = {"most": 0.5, "nothing": 0.2}
STAYING = {"most": 0.5, "clearly": 0.2, "fall": 0.1}
MOST = {"most": 0.5}


def _views(*views: str) -> Iterator[tuple[str, str]]:
    return ((f" {view}", view) for view in views)


CLAIMS = (
    *(
        Claim(
            f"A-1{name}",
            "The gradient changes as soon as the output layer is random; in the end nothing of it is left",
            CASCADE,
            FALLS,
            partial(forgets, method="gradient", view=view),
            FORGETTING,
            STAGES,
        )
        for name, view in _views("signed", "absolute")
    ),
    Claim(
        "A-2",
        "Grad-CAM changes as soon, and nothing of it is left in the end",
        CASCADE,
        f"{FALLS}; not testable with more than a tenth of the maps constant",
        partial(forgets, method="grad_cam", view="absolute"),
        FORGETTING,
        STAGES,
    ),
    *(
        Claim(
            f"A-3{name}",
            "Guided backpropagation ignores the higher layers, and changes only with the lower ones",
            f"{CASCADE}, with the erratum of its code",
            STAYS,
            partial(ignores_higher_layers, method="guided_backprop", view=view),
            STAYING,
            STAGES,
        )
        for name, view in _views("signed", "absolute", "ssim")
    ),
    *(
        Claim(
            f"A-4{name}",
            "Guided Grad-CAM ignores the higher layers, too",
            CASCADE,
            STAYS,
            partial(ignores_higher_layers, method="guided_grad_cam", view=view),
            STAYING,
            STAGES,
        )
        for name, view in _views("signed", "absolute", "ssim")
    ),
    Claim(
        "A-5",
        "Input x gradient and integrated gradients seem to survive by their absolute values, and lose their signs",
        CASCADE,
        "with all layers random, more than {most:g} of the absolute map is left, {clearly:g} more than of the "
        "gradient, and less than {nothing:g} of the signed one",
        input_shows_through,
        {"most": 0.5, "clearly": 0.2, "nothing": 0.2},
        STAGES,
    ),
    Claim(
        "A-5 closed form",
        "What survives of input x gradient is the background of the input",
        CASCADE,
        "the rank correlation of absolute maps is within {within:g} of 3q / (3q + (1 - q)^2), q the share of zeros, "
        "where that is more than {background:g}",
        background_predicts,
        {"within": 0.02, "background": 0.5},
        STAGES,
    ),
    *(
        Claim(
            f"A-6{name}, guided",
            "Guided backpropagation does not notice any one of the higher layers alone",
            SINGLE,
            "more than {most:g} is left with each stage of the upper half random alone",
            partial(blind_to_single_blocks, view=view),
            MOST,
            ALONE,
        )
        for name, view in _views("signed", "absolute")
    ),
    *(
        Claim(
            f"A-6{name}, gradient",
            "The gradient notices each layer alone",
            SINGLE,
            "less than {most:g} is left with each stage random alone",
            partial(notices_single_blocks, view=view),
            MOST,
            ALONE,
        )
        for name, view in _views("signed", "absolute")
    ),
    Claim(
        "A-7 absolute",
        "For permuted labels, absolute input x gradient and integrated gradients stay the same",
        LABELS,
        "more than {most:g} is left of the absolute map of each",
        partial(stays_for_labels, methods=MULTIPLIED),
        MOST,
        LEARNT,
    ),
    Claim(
        "A-7 guided",
        "For permuted labels, absolute guided backpropagation and guided Grad-CAM stay the same",
        LABELS,
        "more than {most:g} is left of the absolute map of each",
        partial(stays_for_labels, methods=("guided_backprop", "guided_grad_cam")),
        MOST,
        LEARNT,
    ),
    Claim(
        "A-7 signed",
        "For permuted labels, signed input x gradient and integrated gradients change",
        LABELS,
        "less than {bound:g} is left of the signed map of each",
        partial(changes_with_labels, methods=MULTIPLIED),
        {"bound": 0.2},
        LEARNT,
    ),
    Claim(
        "A-7 sensitive",
        "For permuted labels, gradient, SmoothGrad and Grad-CAM change clearly",
        LABELS,
        "less than {bound:g} is left of the signed map of each",
        partial(changes_with_labels, methods=("gradient", "smoothgrad", "grad_cam")),
        {"bound": 0.5},
        LEARNT,
    ),
    Claim(
        "A-8",
        "An edge detector, which knows no network, looks like several kinds of maps",
        ARCHITECTURE,
        "at least {kinds} of input x gradient, integrated gradients, guided backpropagation and guided Grad-CAM have "
        "more than {most:g} in common with the edges, absolute",
        looks_like_edges,
        {"most": 0.5, "kinds": 2},
        "edges-{model}.png",
    ),
    *(
        Claim(
            f"A-9{name}",
            "Convolutions alone, without learning, give the gradient structure of the image",
            ARCHITECTURE,
            "more than {nothing:g} is in common to the gradients of two random networks that have convolutions",
            partial(structure_without_learning, view=view),
            {"nothing": 0.2},
        )
        for name, view in _views("absolute", "hog")
    ),
)

REPRODUCTION = Reproduction(
    name="adebayo2018",
    paper="adebayo2018sanity",
    title="Sanity Checks for Saliency Maps",
    studies=studies,
    claims=CLAIMS,
    protocols=(ORIGINAL, TODAY),
    takes={
        "cifar": cifar.files("resnet20", "resnet56"),
        "imagenet": ("mobilenet_v2.safetensors", "images", "labels.csv"),
    },
)
