"""A model that gives NaN or infinity for a perturbed sample: that sample has a reason, all others have their values."""

import pytest
import torch
from torch import nn

import harness
from cases import case_of, network, rows, with_truth
from harness import METRICS, InputSpace
from harness.metrics.perturbation import outputs

REASON = "the output is not finite"
FILLING = sorted(name for name, entry in METRICS.items() if "fill" in entry.options and "recipe" not in entry.needs)
OPTIONS = {"region_perturbation": {"patch": 3}, "irof": {"superpixels": 60}, "sensitivity": {"units": 5}}
N, ODD = 5, "s2"


class Breaks(nn.Module):
    """A network that gives `value` for the logits of whatever is partly bright and partly dark."""

    def __init__(self, value, one=False):
        super().__init__()
        self.network, self.value, self.one = network("modules", torch.float64)[0], value, one

    def forward(self, x):
        logits, flat = self.network(x), x.flatten(1)
        broken = ((flat.amax(1) > 0.55) & (flat.amin(1) < 0.55))[:, None]
        if self.one:
            broken = broken & (torch.arange(logits.shape[1]) == logits.shape[1] - 1)
        return torch.where(broken, self.value, logits)


def frame_of(name, model):
    """All samples are dark but one, that is bright until something black stands in it."""
    x = torch.rand(N, 2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    x[int(ODD[1:])] += 0.5
    x[int(ODD[1:])].clamp_(min=0.6)
    case = with_truth(case_of(model.eval(), x, torch.arange(N) % 4, "input_x_gradient"))
    frame = rows(case, name, **({"fill": "black"} if "fill" in METRICS[name].options else {}), **OPTIONS.get(name, {}))
    return frame.astype({column: object for column in frame.select_dtypes("category")})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("one", [False, True], ids=["all_logits", "one_logit"])
@pytest.mark.parametrize("name", [*FILLING, "part_importance"])
def test_the_sample_has_the_reason_and_the_others_have_their_values(name, one, value):
    broken, healthy = (frame_of(name, model) for model in (Breaks(value, one), network("modules", torch.float64)[0]))
    odd = broken["sample"] == ODD
    assert broken[~odd].equals(healthy[~odd])
    assert healthy["value"].notna().all()
    lost = odd & broken["value"].isna()
    assert set(broken.loc[lost, "reason"]) <= {REASON, "undefined at every size"}
    # Points of a curve stay where what is left is finite; nothing that is made of all of them does.
    assert lost[odd & broken["step"].isna()].all()
    assert broken[odd & ~lost].equals(healthy[odd & ~lost])
    headline = broken[odd & (broken["measure"] == METRICS[name].headline)]
    assert headline["value"].isna().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nothing_is_read_from_logits_that_are_not_finite(value):
    logits = torch.tensor([[0.1, 0.2, 0.3], [0.1, value, 0.3]])
    found = outputs(logits, torch.tensor([2, 2]))
    for name, values in found.items():
        assert values.isfinite().tolist() == [True, False], name


class Normed(nn.Module):
    """f / |f|, then a linear layer: 0 / 0 for black."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2 * 8 * 8, 3)

    def forward(self, x):
        flat = x.flatten(1)
        return self.last(flat / flat.norm(dim=1, keepdim=True))


def test_a_network_that_divides_by_its_norm_has_no_failed_cells():
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.rand(4, 2, 8, 8)
    metrics = [{"metric": name, "fill": "black", **OPTIONS.get(name, {})} for name in FILLING]
    results = harness.evaluate(
        model,
        x,
        methods=["input_x_gradient", {"method": "integrated_gradients", "baseline": "black", "steps": 2}],
        metrics=[*metrics, "completeness", "completeness_convergence"],
        space=InputSpace("image", mean=(0.0, 0.0), std=(1.0, 1.0)),
    )
    assert results.failures.empty
    reasons = results.table("headlines").set_index(["method", "metric"])["reason"]
    for name in ("pixel_flipping", "sensitivity", "deletion", "insertion", "monotonicity", "irof"):
        assert reasons["input_x_gradient", name] == REASON
    for name in ("completeness", "completeness_convergence"):
        assert reasons["integrated_gradients", name] == REASON
    floored = results.records[results.records["measure"] == "denominator_floored"]
    assert floored.loc[floored["method"] == "integrated_gradients", "value"].isna().all()
