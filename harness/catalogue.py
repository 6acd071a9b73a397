"""The registries with everything in them that ships with the harness."""

from harness import methods, metrics
from harness.registry import METHODS, METRICS

__all__ = ["METHODS", "METRICS", "methods", "metrics"]
