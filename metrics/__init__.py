"""The metrics, one generator each. Importing this package registers them all."""

from harness.metrics import (
    completeness,
    cosine_convergence,
    edge_similarity,
    implementation_invariance,
    input_invariance,
    label_randomization,
    occlusion_faithfulness,
    parameter_randomization,
    pixel_flipping,
    random_logit,
    randomization_descriptors,
    zero_fraction,
)

__all__ = [
    "completeness",
    "cosine_convergence",
    "edge_similarity",
    "implementation_invariance",
    "input_invariance",
    "label_randomization",
    "occlusion_faithfulness",
    "parameter_randomization",
    "pixel_flipping",
    "random_logit",
    "randomization_descriptors",
    "zero_fraction",
]
