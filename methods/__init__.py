"""The attribution methods, one function each. Importing this package registers them all."""

from harness.methods import (
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
