"""The registries with everything in them that ships with the harness."""

from harness import methods, metrics
from harness.data import arrays, audio, bundled, images, tabular, vision
from harness.models import builtin, external
from harness.registry import DATA, METHODS, METRICS, MODELS

__all__ = [
    "DATA",
    "METHODS",
    "METRICS",
    "MODELS",
    "arrays",
    "audio",
    "builtin",
    "bundled",
    "external",
    "images",
    "methods",
    "metrics",
    "tabular",
    "vision",
]
