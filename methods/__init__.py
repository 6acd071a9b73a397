"""The attribution methods, one function each. Importing this package registers them all."""

from harness.methods import backward, cam, controls, gradients, perturbation

__all__ = ["backward", "cam", "controls", "gradients", "perturbation"]
