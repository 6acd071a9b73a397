"""The registries with everything in them that ships with the harness."""

from harness import methods, metrics
from harness.data import arrays, audio, bundled, distractor, images, tabular, vision
from harness.guests import captum, functions, gradcam, maps, zennit
from harness.models import builtin, external
from harness.registry import DATA, GUESTS, METHODS, METRICS, MODELS

__all__ = [
    "DATA",
    "GUESTS",
    "METHODS",
    "METRICS",
    "MODELS",
    "arrays",
    "audio",
    "builtin",
    "bundled",
    "captum",
    "distractor",
    "external",
    "functions",
    "gradcam",
    "images",
    "maps",
    "methods",
    "metrics",
    "tabular",
    "vision",
    "zennit",
]
