"""Registered methods that are exact on a linear model without bias: every metric gives them the best there is."""

import pytest
import torch
from torch import nn

from cases import case_of, rows, values

EXACT = {
    "input_x_gradient": {},
    "integrated_gradients": {"baseline": "black", "steps": 4},
    "deeplift": {"baseline": "black"},
    "lrp_0": {},
    "occlusion": {"baseline": "black", "window": 1, "stride": 1},
    "kernel_shap": {"baseline": "black", "units": 10},
}
SHAPES = {"table": (9,), "signal": (2, 10), "image": (2, 4, 5)}
N = 6
EVERY = [(name, kind) for name in EXACT for kind in SHAPES if (name, kind) != ("kernel_shap", "image")]
"""Not of images for kernel_shap, whose units are superpixels there and not the pixels that are removed."""


def explained(name, kind):
    """A case of a method on a linear model, and what each position contributes to the logit: [n, positions]."""
    shape, generator = SHAPES[kind], torch.Generator().manual_seed(3)
    weight = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), 4, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(weight.flatten(1))
    x = torch.rand(N, *shape, generator=generator, dtype=torch.float64)
    target = torch.arange(N) % 4
    given = weight[target] * x
    return case_of(model, x, target, (name, EXACT[name])), (given if x.ndim == 2 else given.sum(1)).flatten(1)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_method_that_is_exact_has_the_largest_area_between_perturbation_curves(name, kind):
    case, given = explained(name, kind)
    frame = rows(case, "region_perturbation", fill="black", patch=1)

    def area(order):
        """The mean fall of the logit over all steps, with the untouched sample counted."""
        return given.gather(1, order).cumsum(1).sum(1) / (given.shape[1] + 1)

    most, least = (area(given.argsort(1, descending=first)) for first in (True, False))
    found = values(frame, "area_between_perturbation_curves_logit")
    torch.testing.assert_close(found, most - least, rtol=0, atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        shuffled = area(torch.rand(given.shape, generator=generator).argsort(1))
        assert (found > (shuffled - area(given.argsort(1))).abs()).all()


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_method_that_is_exact_correlates_with_what_everything_costs(name, kind):
    case, _ = explained(name, kind)
    for metric, measures in (
        ("sensitivity_n", ("pearson", "spearman", "mean_pearson")),
        ("faithfulness_correlation", ("pearson", "spearman")),
        ("occlusion_faithfulness", ("pearson", "spearman")),
    ):
        frame = rows(case, metric, fill="black", patch=1)
        for measure in measures:
            found = values(frame, measure)
            torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_method_that_is_exact_predicts_every_perturbation(name, kind):
    case, _ = explained(name, kind)
    frame = rows(case, "infidelity", fill="black", side=2)
    for measure, expected in (("infidelity", 0.0), ("relative_infidelity", 0.0), ("best_scale", 1.0)):
        found = values(frame, measure)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-9)
