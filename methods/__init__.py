"""The attribution methods, one function each. Importing this package registers them all."""

from harness.methods import (
    activation_maximization,
    attention,
    backward,
    cam,
    controls,
    deeplift,
    full_grad,
    graded,
    gradients,
    integrated,
    lrp,
    perturbation,
    smoothing,
    surrogates,
)

__all__ = [
    "activation_maximization",
    "attention",
    "backward",
    "cam",
    "controls",
    "deeplift",
    "full_grad",
    "graded",
    "gradients",
    "integrated",
    "lrp",
    "perturbation",
    "smoothing",
    "surrogates",
]
