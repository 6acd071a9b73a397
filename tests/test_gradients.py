"""The gradient and its competition against closed forms, identities of ReLU networks, a literal twin and captum."""

import captum.attr
import pytest
import torch
from torch import nn

import harness
from cases import Linear, network, relu_mlp
from closed_forms import EXACT, draws_for, explained, normal
from harness import InputError
from harness.case import Passes, counted
from harness.methods.gradients import competitive_gradients, gradient, input_x_gradient
from harness.methods.integrated import expected_gradients, integrated_gradients
from harness.methods.smoothing import smoothgrad, smoothgrad_squared, vargrad

METHODS = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "competitive_gradients": competitive_gradients,
    "integrated_gradients": lambda m, x, t: integrated_gradients(m, x, t, baseline=torch.full_like(x, 0.3), steps=3),
    "expected_gradients": lambda m, x, t: expected_gradients(
        m, x, t, background=torch.full_like(x[:2], 0.3), draws=draws_for(x), samples=3, noise=0.1
    ),
    "smoothgrad": lambda m, x, t: smoothgrad(m, x, t, draws=draws_for(x), samples=3),
    "smoothgrad_squared": lambda m, x, t: smoothgrad_squared(m, x, t, draws=draws_for(x), samples=3),
    "vargrad": lambda m, x, t: vargrad(m, x, t, draws=draws_for(x), samples=3),
}
every_method = pytest.mark.parametrize("explain", METHODS.values(), ids=METHODS.keys())
networks = pytest.mark.parametrize("name", ["modules", "functional", "gelu", "signal", "table"])


def test_gradient_of_a_linear_model_is_its_weight(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(gradient(model, x, target), weight[target], **EXACT)


def test_input_x_gradient_of_a_linear_model_is_weight_times_input(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(input_x_gradient(model, x, target), weight[target] * x, **EXACT)


def test_input_x_gradient_sums_to_the_output_without_biases(mlp_batch):
    model = relu_mlp()
    torch.testing.assert_close(input_x_gradient(model, *mlp_batch).sum(1), explained(model, *mlp_batch), **EXACT)


def test_input_x_gradient_misses_exactly_what_the_biases_contribute(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    missing = []
    for sample, label in zip(x, target, strict=True):
        derivatives = torch.autograd.grad(model(sample)[label], biases)
        missing.append(sum((b * d).sum() for b, d in zip(biases, derivatives, strict=True)).detach())
    missing = torch.stack(missing)
    assert (missing.abs() > 1e-3).all()
    total = input_x_gradient(model, x, target).sum(1) + missing
    torch.testing.assert_close(total, explained(model, x, target), **EXACT)


@networks
@pytest.mark.parametrize(
    ("explain", "reference", "options"),
    [(gradient, captum.attr.Saliency, {"abs": False}), (input_x_gradient, captum.attr.InputXGradient, {})],
)
def test_agrees_with_captum(name, explain, reference, options):
    model, x, target = network(name, torch.float64)
    expected = reference(model).attribute(x.clone().requires_grad_(), target=target, **options).detach()
    torch.testing.assert_close(explain(model, x, target), expected, rtol=1e-10, atol=1e-10)


# --- competition -----------------------------------------------------------------------------------------------------


def competition(model, x, target, rivals):
    """Competitive gradients, written down element by element."""
    maps = torch.zeros_like(x)
    for row in range(len(x)):
        sample = x[row : row + 1].clone().requires_grad_()
        logits = model(sample)[0]
        scores = logits.tolist()
        shares = [(sample * torch.autograd.grad(logit, sample, retain_graph=True)[0])[0].detach() for logit in logits]
        others = sorted((k for k in range(len(logits)) if k != target[row]), key=lambda k: -scores[k])
        for position in range(x[row].numel()):
            own = float(shares[target[row]].flatten()[position])
            against = [float(shares[k].flatten()[position]) for k in others[: rivals or len(others)]]
            wins = (own > 0 and own >= max(against)) or (own < 0 and own <= min(against))
            maps[row].view(-1)[position] = own if wins else 0.0
    return maps


@networks
@pytest.mark.parametrize("rivals", [0, 1, 2, 3])
def test_competitive_gradients_are_their_definition(name, rivals):
    model, x, target = network(name, torch.float64, n=4)
    x = x - 0.5
    expected = competition(model, x, target, rivals)
    assert 0 < (expected != 0).double().mean() < 1
    torch.testing.assert_close(competitive_gradients(model, x, target, rivals=rivals), expected, **EXACT)


def test_rivals_are_those_with_the_highest_logits_and_all_of_them_where_none_are_counted(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    kept = [(competitive_gradients(model, x, target, rivals=rivals) != 0).sum().item() for rivals in (1, 2, 3, 4)]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4
    # Five classes have four rivals each.
    for rivals in (0, 9):
        same = competitive_gradients(model, x, target, rivals=rivals)
        assert torch.equal(same, competitive_gradients(model, x, target, rivals=4))


def test_at_each_element_one_class_wins_the_positive_and_one_the_negative_share(mlp_batch):
    model, (x, _) = relu_mlp(bias=0.5), mlp_batch
    maps = torch.stack([competitive_gradients(model, x, torch.full((len(x),), k)) for k in range(5)])
    shares = torch.stack([input_x_gradient(model, x, torch.full((len(x),), k)) for k in range(5)])
    assert torch.equal((maps > 0).sum(0), (shares > 0).any(0).long())
    assert torch.equal((maps < 0).sum(0), (shares < 0).any(0).long())
    torch.testing.assert_close(maps.amax(0), shares.amax(0).clamp(min=0), **EXACT)
    torch.testing.assert_close(maps.amin(0), shares.amin(0).clamp(max=0), **EXACT)


def test_a_tie_is_won_by_all_who_share_it_and_signs_do_not_mix():
    weight = torch.tensor([[2.0, -3.0, 1.0, -1.0], [2.0, -3.0, 2.0, -2.0], [-5.0, 4.0, 0.5, 3.0]]).double()
    x = torch.ones(3, 4, dtype=torch.float64)
    maps = competitive_gradients(Linear(weight), x, torch.arange(3))
    expected = [[2.0, -3.0, 0.0, 0.0], [2.0, -3.0, 2.0, -2.0], [-5.0, 4.0, 0.0, 3.0]]
    torch.testing.assert_close(maps, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_a_single_logit_has_no_rivals():
    weight, x = normal(1, 6), normal(3, 6, seed=2)
    maps = competitive_gradients(Linear(weight), x, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(maps, weight * x, **EXACT)


@pytest.mark.parametrize(("rivals", "backward"), [(0, 5), (2, 3)])
def test_competition_costs_one_forward_pass_and_a_backward_pass_for_each_class(mlp_batch, rivals, backward):
    model, passes = relu_mlp(), Passes()
    with counted(model, passes):
        competitive_gradients(model, *mlp_batch, rivals=rivals)
    assert (passes.forward, passes.backward) == (10, 10 * backward)


def test_a_negative_number_of_rivals_is_refused():
    model, x, _ = network("table")
    with pytest.raises(InputError, match="option 'rivals' expects int, got -1"):
        harness.explain(model, x, method="competitive_gradients", rivals=-1)


# --- all of the family -----------------------------------------------------------------------------------------------


@every_method
def test_a_sample_does_not_depend_on_its_batch(explain, mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    torch.testing.assert_close(explain(model, x[:3], target[:3]), explain(model, x, target)[:3], **EXACT)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_have_the_type_of_the_input(explain, dtype):
    model, x, target = network("functional", dtype)
    maps = explain(model, x, target)
    assert maps.dtype == dtype
    assert maps.isfinite().all()


class Shift(nn.Module):
    """Normalizes its input, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sub_(0.5).mul_(4) if self.inplace else (x - 0.5) * 4


@every_method
@pytest.mark.parametrize("first", [Shift, nn.ReLU])
def test_a_first_operation_in_place_changes_neither_the_map_nor_the_input(explain, first, mlp_batch):
    x, target = mlp_batch
    before = x.clone()
    in_place, copying = (nn.Sequential(first(inplace=inplace), relu_mlp(bias=0.5)) for inplace in (True, False))
    torch.testing.assert_close(explain(in_place, x, target), explain(copying, x, target), rtol=0, atol=0)
    assert torch.equal(x, before)


@every_method
def test_frozen_parameters_and_no_grad_give_the_same_map_and_no_gradients_are_stored(explain, mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    expected = explain(model, x, target)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(explain(model, x, target), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert x.grad is None
    assert not x.requires_grad
