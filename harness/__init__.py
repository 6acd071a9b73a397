"""Which attribution maps can be trusted on this model and data?

`run` a study, `evaluate` a model at hand, `explain` a batch. Names are imported when they are first used, so
that `import harness` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import evaluate, explain, run
    from harness.case import Case
    from harness.catalogue import INTROSPECTIONS, METHODS, METRICS
    from harness.exam import examine
    from harness.introspecting import Samples
    from harness.random import Draws
    from harness.registry import introspection, method, metric
    from harness.regressions import Tolerance, compare
    from harness.reproduction import Reproduction, reproduce
    from harness.results import Results
    from harness.space import InputSpace
    from harness.types import Artifact, InputError, NotApplicableError, Score

_HOMES = {
    "evaluate": "api",
    "explain": "api",
    "examine": "exam",
    "run": "api",
    "Case": "case",
    "Draws": "random",
    "METHODS": "catalogue",
    "INTROSPECTIONS": "catalogue",
    "METRICS": "catalogue",
    "introspection": "registry",
    "method": "registry",
    "metric": "registry",
    "Tolerance": "regressions",
    "compare": "regressions",
    "Reproduction": "reproduction",
    "reproduce": "reproduction",
    "Results": "results",
    "Samples": "introspecting",
    "InputSpace": "space",
    "Artifact": "types",
    "InputError": "types",
    "NotApplicableError": "types",
    "Score": "types",
}

__all__ = [
    "INTROSPECTIONS",
    "METHODS",
    "METRICS",
    "Artifact",
    "Case",
    "Draws",
    "InputError",
    "InputSpace",
    "NotApplicableError",
    "Reproduction",
    "Results",
    "Samples",
    "Score",
    "Tolerance",
    "compare",
    "evaluate",
    "examine",
    "explain",
    "introspection",
    "method",
    "metric",
    "reproduce",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(f"harness.{_HOMES[name]}"), name)
