"""Completeness: exact where theory says so, the right residual where it is known, silent without a claim."""

from dataclasses import replace

import pytest
import torch

import harness
from cases import Linear, case_of, relu_mlp, rows, values
from harness import METHODS
from harness.case import Explainer
from harness.doctor import doctor
from harness.types import NotApplicableError


def batch(n=8):
    return torch.randn(n, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64), torch.arange(n) % 5


@pytest.mark.parametrize("method", ["input_x_gradient", ("integrated_gradients", {"baseline": "zero", "steps": 4})])
def test_exact_on_networks_without_biases(method):
    x, target = batch()
    frame = rows(case_of(relu_mlp(), x, target, method), "completeness")
    assert values(frame, "residual").abs().max() < 1e-12
    assert values(frame, "relative_residual").max() < 1e-12


def test_the_residual_of_input_x_gradient_is_what_the_biases_contribute():
    x, target = batch()
    model = relu_mlp(bias=0.5)
    frame = rows(case_of(model, x, target, "input_x_gradient"), "completeness")
    for sample in range(len(x)):
        logit = model(x[sample : sample + 1])[0, target[sample]]
        biases = [layer.bias for layer in model if hasattr(layer, "bias")]
        gradients = torch.autograd.grad(logit, biases)
        leak = sum(float((b * g).sum().detach()) for b, g in zip(biases, gradients, strict=True))
        assert float(values(frame, "residual")[sample]) == pytest.approx(-leak, abs=1e-12)


def test_the_residual_of_integrated_gradients_falls_with_its_steps():
    x, target = batch()
    model = relu_mlp(bias=0.5)
    means = []
    for steps in (4, 64, 1024):
        case = case_of(model, x, target, ("integrated_gradients", {"baseline": "zero", "steps": steps}))
        means.append(float(values(rows(case, "completeness"), "residual").abs().mean()))
    assert means[0] > 4 * means[1] > 16 * means[2]


def test_every_error_is_what_its_formula_says():
    weight = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0], [2.0, -1.0], [2.0, -1.0 + 1e-9]], dtype=torch.float64)
    maps = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    case = case_of(Linear(weight), x, torch.zeros(3, dtype=torch.int64), "input_x_gradient")
    case.__dict__["maps"] = maps
    frame = rows(case, "completeness")
    residual = values(frame, "residual")
    torch.testing.assert_close(residual, torch.tensor([-1.0, 1.0, -2e-9], dtype=torch.float64), rtol=1e-6, atol=0)
    relative = frame[frame["measure"] == "relative_residual"]
    assert relative["value"].iloc[0] == pytest.approx(1 / 3)
    assert relative["reason"].iloc[1] == "the claim is zero"
    mass = frame[frame["measure"] == "residual_to_mass"]
    assert mass["value"].iloc[0] == pytest.approx(1 / 2)
    assert mass["reason"].iloc[2] == "the map is zero everywhere"


def test_a_small_difference_of_large_outputs_is_floored_and_flagged():
    model = Linear(torch.tensor([[1.0], [0.0]], dtype=torch.float64), torch.tensor([100.0, 0.0], dtype=torch.float64))
    x = torch.tensor([[1e-4], [50.0]], dtype=torch.float64)
    case = case_of(
        model, x, torch.zeros(2, dtype=torch.int64), ("integrated_gradients", {"baseline": "zero", "steps": 1})
    )
    case.__dict__["maps"] = torch.zeros_like(x)
    frame = rows(case, "completeness", floor=1e-3)
    assert values(frame, "denominator_floored").tolist() == [1, 0]
    assert float(values(frame, "relative_residual")[0]) == pytest.approx(1e-4 / (1e-3 * 200.0001))
    assert float(values(frame, "relative_residual")[1]) == pytest.approx(1.0)


def test_who_claims_nothing_is_not_applicable_and_has_not_failed():
    x, _ = batch()
    results = harness.evaluate(relu_mlp(), x, methods=["gradient", "integrated_gradients"], metrics=["completeness"])
    states = results.cells.set_index("method")
    assert states.loc["gradient", "status"] == "not_applicable"
    assert states.loc["gradient", "reason"] == "gradient: makes no completeness claim"
    assert states.loc["integrated_gradients", "status"] == "done"
    assert results.failures.empty
    assert set(results.records["method"]) == {"integrated_gradients"}


def test_a_claim_that_depends_on_options_is_tested_only_where_it_is_made():
    x, _ = batch()
    methods = [
        {"method": "integrated_gradients", "name": str(factor), "input_factor": factor} for factor in (True, False)
    ]
    states = harness.evaluate(relu_mlp(), x, methods=methods, metrics=["completeness"]).cells.set_index("method")
    assert states.loc["True", "status"] == "done"
    assert states.loc["False", "status"] == "not_applicable"
    assert states.loc["False", "reason"] == "integrated_gradients: makes no completeness claim"
    integrated = METHODS["integrated_gradients"]
    assert Explainer(integrated, {}).conserves == integrated.conserves == "difference"
    assert Explainer(integrated, {"input_factor": False}).conserves is None


def test_the_table_of_what_applies_shows_no_claim_that_the_options_do_not_make(monkeypatch):
    silent = replace(METHODS["input_x_gradient"], conserves_if=lambda options: False)
    monkeypatch.setitem(METHODS._entries, "input_x_gradient", silent)
    rows = doctor(relu_mlp(), batch()[0]).methods.set_index("method")
    assert rows.loc["input_x_gradient", "claim"] == ""
    assert rows.loc["input_x_gradient", ["residual"]].isna().all()
    assert rows.loc["integrated_gradients", "claim"] == "difference"


def test_convergence_is_the_residual_at_each_number_of_steps():
    x, target = batch()
    model = relu_mlp(bias=0.5)
    method = ("integrated_gradients", {"baseline": "zero", "steps": 3})
    frame = rows(case_of(model, x, target, method), "completeness_convergence", steps=[32, 4, 8])
    for steps in (4, 8, 32):
        alone = case_of(model, x, target, ("integrated_gradients", {"baseline": "zero", "steps": steps}))
        expected = values(rows(alone, "completeness"), "relative_residual")
        torch.testing.assert_close(values(frame, "relative_residual", stage=f"{steps} steps"), expected)
    torch.testing.assert_close(values(frame, "last_relative_residual"), expected)
    first, last = (values(frame, "relative_residual", stage=f"{steps} steps") for steps in (4, 32))
    torch.testing.assert_close(values(frame, "halvings"), (first / last).log2() / 3)


def test_convergence_needs_something_to_converge_with():
    x, target = batch()
    with pytest.raises(NotApplicableError, match="input_x_gradient has no steps or samples"):
        rows(case_of(relu_mlp(), x, target, "input_x_gradient"), "completeness_convergence")
