"""The metrics, one generator each. Importing this package registers them all."""

from harness.metrics import (
    completeness,
    label_randomization,
    occlusion_faithfulness,
    parameter_randomization,
    pixel_flipping,
)

__all__ = [
    "completeness",
    "label_randomization",
    "occlusion_faithfulness",
    "parameter_randomization",
    "pixel_flipping",
]
