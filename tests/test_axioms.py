"""The axioms: methods that are known to obey or to break each, hand-made maps, and networks with a closed form."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cases import Linear, case_of, network, rows, values
from harness import METHODS
from harness.case import Explainer
from harness.entries import Method
from harness.types import NotApplicableError

AXIOMS = {"dummy": {}, "symmetry": {}, "linearity": {}, "sensitivity": {"fill": "black"}}
HEADLINES = ("mass_on_dummies", "asymmetry", "nonlinearity", "unnoticed")
INTEGRATED = ("integrated_gradients", {"baseline": "black", "steps": 6})
SMOOTH = ("smoothgrad", {"samples": 3})
CHEAP = {
    "smoothgrad": {"samples": 3},
    "smoothgrad_squared": {"samples": 3},
    "vargrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "expected_gradients": {"samples": 3},
    "occlusion": {"window": 3, "stride": 2},
    "rise": {"samples": 5, "cells": 3},
    "lime": {"samples": 20, "units": 20},
    "kernel_shap": {"samples": 20, "units": 20},
}


def random_maps(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained_by(case, function):
    """The same samples, explained by a function of (model, x, target)."""
    return replace(case, explainer=Explainer(Method("made up", function, "test", 1, ()), {}))


def literal_mask(axes):
    side = max(max(axes) // 8, 1)
    mask = np.zeros(axes)
    for place in np.ndindex(*axes):
        mask[place] = sum(at // side for at in place) % 2 == 0
    return torch.from_numpy(mask)


def reasons_of(frame, measure):
    return [None if reason != reason else reason for reason in frame.loc[frame["measure"] == measure, "reason"]]


GRADIENTS = [
    "gradient",
    "input_x_gradient",
    "competitive_gradients",
    "guided_backprop",
    SMOOTH,
    ("smoothgrad_squared", {"samples": 3}),
    ("vargrad", {"samples": 3}),
    INTEGRATED,
]


@pytest.mark.parametrize("method", GRADIENTS, ids=str)
@pytest.mark.parametrize("name", ["functional", "modules", "gelu", "gated", "vit", "signal", "table"])
def test_gradients_give_nothing_to_what_the_network_cannot_see(name, method):
    frame = rows(case_of(*network(name), method), "dummy")
    found = values(frame, "mass_on_dummies")
    assert (found == 0).any()
    assert (found[~found.isnan()] == 0).all()
    assert set(reasons_of(frame, "mass_on_dummies")) <= {None, "the map is zero everywhere"}


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "full_grad"])
def test_what_is_upsampled_from_a_layer_spills_onto_dummies(method):
    found = values(rows(case_of(*network("functional"), method), "dummy"), "mass_on_dummies")
    assert (found[~found.isnan()] > 0.2).all()
    assert (~found.isnan()).any()


@pytest.mark.parametrize("method", ["sobel", "random", "center_gaussian", "constant"])
def test_what_does_not_know_the_network_gives_dummies_their_share(method):
    frame = rows(case_of(*network("functional"), method), "dummy")
    assert values(frame, "share_of_dummies").tolist() == [0.5]
    assert (values(frame, "mass_on_dummies") - 0.5).abs().max() < 0.1
    if method == "constant":
        assert values(frame, "mass_on_dummies").tolist() == [0.5] * 5


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 17, 33), (3, 6, 4), (2, 40), (1, 7), (9,), (50,)])
def test_dummies_are_every_other_square_of_an_eighth_of_the_longest_side(shape):
    model = Linear(random_maps((3, int(np.prod(shape)))))
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    x = 1 + torch.rand(4, *shape, dtype=torch.float64)
    target = torch.arange(4) % 3
    maps = random_maps(x.shape, 2)
    frame = rows(case_of(model, x, target, "gradient"), "dummy")
    mask = literal_mask(shape[1:] or shape)
    assert all(torch.equal(inputs, x * mask) for inputs in seen)
    assert len(seen) == 1
    assert values(frame, "share_of_dummies").tolist() == pytest.approx([float((mask == 0).double().mean())])
    assert values(frame, "mass_on_dummies").tolist() == [0.0] * 4
    frame = rows(explained_by(case_of(model, x, target, "gradient"), lambda model, x, target: maps), "dummy")
    on_dummies = [float(each.abs()[..., mask == 0].sum() / each.abs().sum()) for each in maps]
    assert values(frame, "mass_on_dummies").tolist() == pytest.approx(on_dummies)


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "guided_backprop", INTEGRATED, "constant"], ids=str)
@pytest.mark.parametrize("name", ["functional", "modules", "vit", "signal", "table"])
def test_exact_methods_treat_alike_what_is_alike(name, method):
    found = values(rows(case_of(*network(name, torch.float64), method), "symmetry"), "asymmetry")
    assert found.max() < 1e-12


def test_the_symmetric_network_and_sample_are_what_is_explained():
    model, x, target = network("functional", torch.float64)
    given = []
    rows(explained_by(case_of(model, x, target, "gradient"), lambda *a: given.append(a) or a[1]), "symmetry")
    [(mirrored, sample, _)] = given
    torch.testing.assert_close(sample, 0.5 * x + 0.5 * x.flip(3), rtol=0, atol=1e-15)
    other = torch.rand_like(x)
    torch.testing.assert_close(mirrored(other), model(other) + model(other.flip(3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 5, 7), (2, 9), (8,)])
def test_asymmetry_is_1_for_antisymmetric_maps_and_its_formula_for_all(shape):
    maps = random_maps((4, *shape))
    maps[0] = maps[0] - maps[0].flip(-1)
    maps[1] = maps[1] + maps[1].flip(-1)
    case = case_of(Linear(random_maps((2, int(np.prod(shape))))), maps, torch.zeros(4, dtype=torch.int64), "gradient")
    found = values(rows(explained_by(case, lambda model, x, target: maps), "symmetry"), "asymmetry")
    mirrored = maps.numpy()[..., ::-1]
    squares = [((a - m) ** 2).sum() / (4 * (a**2).sum()) for a, m in zip(maps.numpy(), mirrored, strict=True)]
    assert found.tolist() == pytest.approx(np.sqrt(squares).tolist(), abs=1e-12)
    assert found[:2].tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_noise_has_an_asymmetry_of_the_root_of_a_half():
    model, x, target = network("functional", torch.float64, n=60)
    squares = values(rows(case_of(model, x, target, "random"), "symmetry"), "asymmetry") ** 2
    assert abs(float(squares.mean()) - 0.5) < 4 * float(squares.std()) / 60**0.5


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", SMOOTH, INTEGRATED], ids=str)
@pytest.mark.parametrize("name", ["functional", "modules", "gated", "vit", "signal", "table"])
def test_linear_methods_explain_a_sum_by_the_sum_of_the_maps(name, method):
    found = values(rows(case_of(*network(name, torch.float64), method), "linearity"), "nonlinearity")
    assert found.max() < 1e-12


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "lrp_0", "deeplift"])
def test_rules_inside_each_of_two_networks_that_share_only_the_sample_add_up(method):
    options = {"baseline": "black"} if method == "deeplift" else {}
    case = case_of(*network("modules", torch.float64), (method, options))
    assert values(rows(case, "linearity"), "nonlinearity").max() < 1e-4


@pytest.mark.parametrize("method", ["competitive_gradients", ("smoothgrad_squared", {"samples": 3})], ids=str)
def test_methods_that_choose_or_square_are_not_linear(method):
    found = values(rows(case_of(*network("functional", torch.float64), method), "linearity"), "nonlinearity")
    assert found.min() > 0.05


def test_what_does_not_depend_on_the_network_is_half_of_what_is_expected():
    for method in ("constant", "input_magnitude", "random"):
        case = case_of(*network("functional", torch.float64), method)
        assert values(rows(case, "linearity"), "nonlinearity").tolist() == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("build", [True, False])
def test_nonlinearity_is_recomputed_by_hand(build):
    model, x, target = network("functional", torch.float64)
    options = {"samples": 4, "noise": 0.2}
    case = case_of(model, x, target, ("vargrad", options), build=(lambda: copy.deepcopy(model)) if build else None)
    frame = rows(case, "linearity")
    twin = case.source.twin(0)

    class Added(nn.Module):
        def forward(self, x):
            return model(x) + twin(x)

    first, second, both = (
        case.explainer.maps(each, x, target, case.space, case.samples, 0).numpy() for each in (model, twin, Added())
    )
    for sample in range(5):
        left = np.sqrt(((both[sample] - first[sample] - second[sample]) ** 2).sum())
        scale = np.sqrt((first[sample] ** 2).sum()) + np.sqrt((second[sample] ** 2).sum())
        assert values(frame, "nonlinearity")[sample].item() == pytest.approx(left / scale, rel=1e-9, abs=1e-12)


class Saturating(nn.Module):
    """f(x) = sum of w (1 - relu(1 - x)): each feature counts up to 1 and not beyond."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (1 - torch.relu(1 - x.flatten(1))) @ self.weight.T


def saturating_case(method, x):
    model = Saturating(1 + torch.rand(2, x[0].numel(), dtype=torch.float64)).eval()
    return case_of(model, x, torch.zeros(len(x), dtype=torch.int64), method)


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient"])
def test_the_gradient_misses_what_saturates_and_integrated_gradients_do_not(method):
    x = torch.tensor([[0.5, 2.0, 3.0, 0.2], [2.0, 2.0, 2.0, 4.0], [0.0, 2.0, 0.5, 0.0], [0.1, 0.2, 0.3, 0.0]])
    frame = rows(saturating_case(method, x.double()), "sensitivity", fill="black", units=9)
    assert values(frame, "unnoticed").tolist() == [2 / 4, 4 / 4, 1 / 2, 0 / 3]
    frame = rows(saturating_case(INTEGRATED, x.double()), "sensitivity", fill="black", units=9)
    assert values(frame, "unnoticed").tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["functional", "modules", "gelu", "vit", "signal", "table"])
@pytest.mark.parametrize("baseline", ["black", "grey", "mean", "noise"])
def test_integrated_gradients_never_miss(name, baseline):
    case = case_of(*network(name), ("integrated_gradients", {"baseline": baseline, "steps": 8}))
    assert values(rows(case, "sensitivity", fill="white", units=5), "unnoticed").tolist() == [0.0] * 5


class Threshold(nn.Module):
    """f(x) = sum of relu(x - 1/2): a feature counts from the middle of its range on."""

    def forward(self, x):
        return torch.relu(x - 0.5).sum(1, keepdim=True)


def test_the_baseline_of_the_method_is_the_one_that_it_integrates_from_also_where_it_is_noise():
    x = torch.full((20, 9), 0.3, dtype=torch.float64)
    method = ("integrated_gradients", {"baseline": "noise", "steps": 64})
    case = case_of(Threshold().eval(), x, torch.zeros(20, dtype=torch.int64), method)
    seen = []

    def watch(model, x, target, *, baseline, steps):
        seen.append((x != baseline).sum(1))
        return torch.ones_like(x)

    watching = Explainer(Method("made up", watch, "test", 1, ()), case.explainer.options)
    rows(replace(case, explainer=watching), "sensitivity", fill="black", units=9)
    assert torch.cat(seen).tolist() == [1] * 20 * 9
    assert values(rows(case, "sensitivity", fill="black", units=9), "unnoticed").nan_to_num(0).max() == 0


def test_the_baseline_is_that_of_the_method_and_the_fill_where_it_has_none():
    x = 2 + torch.rand(3, 9, dtype=torch.float64)
    frame = rows(saturating_case("gradient", x), "sensitivity", fill="white")
    assert reasons_of(frame, "unnoticed") == ["no unit alone changes the output"] * 3
    assert values(rows(saturating_case(INTEGRATED, x), "sensitivity", fill="white"), "unnoticed").tolist() == [0.0] * 3
    blurred = ("integrated_gradients", {"baseline": "blur"})
    with pytest.raises(NotApplicableError, match="integrated_gradients: its baseline is the blurred sample"):
        rows(case_of(*network("functional"), blurred), "sensitivity", fill="black")


@pytest.mark.parametrize(("shape", "patch", "side"), [((2, 12, 12), 0, 2), ((2, 12, 12), 5, 5), ((1, 9), 0, 1)])
def test_units_are_alone_random_distinct_and_keyed_by_sample(shape, patch, side):
    x = 1 + torch.rand(6, *shape, dtype=torch.float64)
    case = case_of(Linear(random_maps((2, x[0].numel()))), x, torch.zeros(6, dtype=torch.int64), "gradient")
    seen = []
    watching = explained_by(case, lambda model, x, target: seen.append(x) or torch.zeros_like(x))
    frame = rows(watching, "sensitivity", fill="black", units=4, patch=patch)
    assert values(frame, "unnoticed").tolist() == [1.0] * 6
    corners = []
    for images in seen:
        kept = (images != 0).all(1)
        assert torch.equal(images, torch.where(kept[:, None], x, 0))
        for where in kept.numpy():
            places = np.argwhere(where)
            lowest = places.min(0)
            assert (lowest % side == 0).all()
            ends = [min(start + side, size) for start, size in zip(lowest, shape[1:], strict=True)]
            assert len(places) == np.prod(np.array(ends) - lowest)
            corners.append(tuple(lowest))
    chosen = [frozenset(corners[sample::6]) for sample in range(6)]
    assert len(seen) == 4
    assert all(len(each) == 4 for each in chosen)
    assert len(set(chosen)) > 3
    part = case_of(case.model, x[3:5], case.target[3:5], "gradient", samples=["s3", "s4"])
    again = []
    alone = explained_by(part, lambda model, x, target: again.append(x) or x)
    rows(alone, "sensitivity", fill="black", units=4, patch=patch)
    assert all(torch.equal(mine, all_of[3:5]) for mine, all_of in zip(again, seen, strict=True))


def test_only_the_unit_itself_must_be_noticed_and_only_if_it_changes_the_output():
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    x = torch.ones(2, 5, dtype=torch.float64)
    case = case_of(Linear(weight), x, torch.zeros(2, dtype=torch.int64), "gradient")
    blind_to_the_last = torch.tensor([1.0, -1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    elsewhere = explained_by(case, lambda model, x, target: blind_to_the_last.expand_as(x).clone())
    assert values(rows(elsewhere, "sensitivity", fill="black", units=5), "unnoticed").tolist() == [1 / 3] * 2


@pytest.mark.parametrize(("change", "counts"), [(4, False), (64, True)])
def test_what_changes_the_output_by_no_more_than_rounding_does_not_count(change, counts):
    weight = torch.tensor([[2 * change * torch.finfo(torch.float64).eps]], dtype=torch.float64)
    model = Linear(weight, torch.tensor([2.0], dtype=torch.float64))
    case = case_of(model, torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), "gradient")
    silent = explained_by(case, lambda model, x, target: torch.zeros_like(x))
    frame = rows(silent, "sensitivity", fill="black")
    assert reasons_of(frame, "unnoticed") == [None if counts else "no unit alone changes the output"]


@pytest.mark.parametrize("axiom", ["dummy", "symmetry", "linearity"])
def test_maps_that_say_nothing_are_undefined_with_their_reason(axiom):
    model, x, target = network("table", torch.float64)
    maps = random_maps(x.shape)
    maps[0, 3], maps[1, 2], maps[2] = torch.nan, torch.inf, 0.0
    frame = rows(explained_by(case_of(model, x, target, "gradient"), lambda *_: maps.clone()), axiom)
    reasons = ["not finite", "not finite", "the map is zero everywhere", None, None]
    assert reasons_of(frame, dict(zip(AXIOMS, HEADLINES, strict=True))[axiom]) == reasons


def test_maps_that_are_not_finite_have_noticed_nothing():
    model, x, target = network("table", torch.float64)
    broken = explained_by(case_of(model, x, target, "gradient"), lambda model, x, target: x * torch.nan)
    frame = rows(broken, "sensitivity", fill="black")
    assert reasons_of(frame, "unnoticed") == ["not finite"] * 5


def test_a_sum_without_a_finite_map_is_undefined_and_not_an_error():
    model, x, target = network("table", torch.float64)

    def breaks_on_sums(net, x, target):
        return x * (torch.nan if hasattr(net, "second") else 1.0)

    frame = rows(explained_by(case_of(model, x, target, "gradient"), breaks_on_sums), "linearity")
    assert reasons_of(frame, "nonlinearity") == ["not finite"] * 5


def everything(model):
    hooks = {name: len(found) for name, found in vars(model).items() if "hooks" in name and found is not None}
    flags = [module.training for module in model.modules()]
    grads = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    return hooks, flags, grads


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if "truth" not in entry.needs])
def test_every_method_has_numbers_or_does_not_apply_and_leaves_the_model_as_it_was(name):
    model, x, target = network("functional", n=2)
    options = dict(CHEAP.get(name, {}))
    options |= {"baseline": "black"} if "baseline" in METHODS[name].options else {}
    case = case_of(model, x, target, (name, options))
    case.source.read_background = lambda: torch.stack([torch.full_like(x[0], level) for level in (0.1, 0.6)])
    case.masks = (x[:, :1] > 0.5).to(x.dtype)
    state, before, kept = copy.deepcopy(model.state_dict()), everything(model), x.clone()
    for (axiom, given), headline in zip(AXIOMS.items(), HEADLINES, strict=True):
        try:
            found = values(rows(case, axiom, **given), headline)
        except NotApplicableError as refusal:
            assert name in str(refusal)  # noqa: PT017
            found = torch.zeros(2)
        assert found.shape == (2,)
        assert ((found >= 0) & (found <= 1 + 1e-6) | found.isnan()).all()
        assert everything(model) == before
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert torch.equal(x, kept)
