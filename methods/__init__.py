"""The attribution methods, one function each. Importing this package registers them all."""

from harness.methods import (
    backward,
    cam,
    controls,
    deeplift,
    full_grad,
    gradients,
    integrated,
    lrp,
    perturbation,
    smoothing,
)

__all__ = [
    "backward",
    "cam",
    "controls",
    "deeplift",
    "full_grad",
    "gradients",
    "integrated",
    "lrp",
    "perturbation",
    "smoothing",
]
