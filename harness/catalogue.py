"""The registries with everything in them that ships with the harness."""

from harness import methods, metrics
from harness.data import (
    annotated,
    arrays,
    audio,
    bundled,
    composed,
    distractor,
    evidence,
    images,
    planted_band,
    planted_patch,
    sprites,
    suppressors,
    tabular,
    textured_object,
    vision,
)
from harness.guests import captum, functions, gradcam, maps, zennit
from harness.models import analytic, builtin, external, wrapped
from harness.registry import DATA, GUESTS, INTROSPECTIONS, METHODS, METRICS, MODELS

__all__ = [
    "DATA",
    "GUESTS",
    "INTROSPECTIONS",
    "METHODS",
    "METRICS",
    "MODELS",
    "analytic",
    "annotated",
    "arrays",
    "audio",
    "builtin",
    "bundled",
    "captum",
    "composed",
    "distractor",
    "evidence",
    "external",
    "functions",
    "gradcam",
    "images",
    "maps",
    "methods",
    "metrics",
    "planted_band",
    "planted_patch",
    "sprites",
    "suppressors",
    "tabular",
    "textured_object",
    "vision",
    "wrapped",
    "zennit",
]
