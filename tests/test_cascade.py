"""Randomized networks: what each mode of a cascade, each policy and each draw changes, and what it leaves alone."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v2

from cases import Functional, case_of, network, rows, values
from harness.case import Passes
from harness.catalogue import METRICS
from harness.digests import digest
from harness.metrics.cascade import Randomization, cascade, full, output_of
from harness.networks import CifarResNet
from harness.registry import OptionError

MODES = ("top_down", "bottom_up", "independent")
NETWORKS = {
    "functional": (Functional, (2, 12, 12)),
    "resnet20": (lambda: CifarResNet((3, 32, 32), 10, depth=20), (3, 32, 32)),
    "mobilenet": (lambda: mobilenet_v2(num_classes=5), (3, 32, 32)),
    "transformer": (lambda: VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5), (3, 16, 16)),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def case_for(name, method="gradient", n=2):
    """A network whose every tensor differs from what initializers make, as if it had been trained."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = build().eval()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data += 0.1 * torch.rand_like(tensor)
        x = torch.rand(n, *shape)
    return case_of(model, x, torch.zeros(n, dtype=torch.int64), method, build=build)


def state(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def changed(model, trained):
    before = state(trained)
    return {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}


def drawn(model):
    """The parameters that an initializer draws, and not one that it sets to a constant."""
    return {name: p for name, p in model.named_parameters() if p.unique().numel() > 1}


@each_network
@pytest.mark.parametrize("policy", ["keep", "reset", "recalibrate"])
def test_full_randomization_leaves_no_parameter_as_it_was_and_the_trained_network_untouched(name, policy):
    case = case_for(name)
    before, hooks = digest(state(case.model)), [len(m._forward_hooks) for m in case.model.modules()]
    model = full(case, 0, Randomization(policy)).model
    assert changed(model, case.model) >= {name for name, _ in case.model.named_parameters()}
    statistics = {name for name, b in case.model.named_buffers() if b.is_floating_point()}
    assert changed(model, case.model) & statistics == (set() if policy == "keep" else statistics)
    random = drawn(model)
    for name_, parameter in model.named_parameters():
        if name_ not in random:  # biases, and scales of normalizations
            assert parameter.flatten()[0].item() in (0, 1), name_
    shapes = {}
    for name_, parameter in random.items():
        for other in shapes.setdefault(parameter.shape, []):
            assert not torch.equal(parameter, other), name_
        shapes[parameter.shape].append(parameter)
    assert digest(state(case.model)) == before
    assert [len(m._forward_hooks) for m in case.model.modules()] == hooks


@each_network
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_stage_changes_the_blocks_that_its_mode_says_and_no_others(name, mode, fresh):
    case = case_for(name)
    blocks, before = case.source.blocks, digest(state(case.model))
    order = blocks if mode == "bottom_up" else blocks[::-1]
    count = 0
    for index, stage in enumerate(cascade(case, mode, 0, Randomization("recalibrate", fresh)), 1):
        members = [order[index - 1]] if mode == "independent" else order[:index]
        tensors = {tensor for block in members for tensor in (*block.parameters, *block.buffers)}
        found = changed(stage.model, case.model)
        assert found <= tensors
        assert {tensor for tensor in tensors - found if state(case.model)[tensor].is_floating_point()} == set()
        assert (stage.mode, stage.index, stage.name, stage.draw) == (mode, index, order[index - 1].name, 0)
        assert not any(module.training for module in stage.model.modules())
        count += 1
    assert count == len(blocks)
    assert digest(state(case.model)) == before


@pytest.mark.parametrize("mode", ["top_down", "bottom_up"])
def test_a_block_keeps_its_random_parameters_in_a_nested_cascade_and_gets_new_ones_in_a_fresh_one(mode):
    case = case_for("resnet20")
    first = (case.source.blocks if mode == "bottom_up" else case.source.blocks[::-1])[0].parameters[0]
    for fresh in (False, True):
        kept = [state(s.model)[first].clone() for s in cascade(case, mode, 0, Randomization("keep", fresh))]
        distinct = {digest(tensor) for tensor in kept}
        assert len(distinct) == (len(kept) if fresh else 1)


def test_a_nested_cascade_ends_in_the_full_randomization_whichever_way_it_goes():
    case = case_for("resnet20")
    how = Randomization("recalibrate")
    whole = digest(state(full(case, 1, how).model))
    for mode in ("top_down", "bottom_up"):
        *_, last = cascade(case, mode, 1, how)
        assert digest(state(last.model)) == whole
    assert digest(state(full(case, 2, how).model)) != whole


def test_a_head_that_starts_at_zero_is_drawn_so_that_a_random_transformer_has_an_output():
    case = case_for("transformer", n=3)
    assert not NETWORKS["transformer"][0]().heads.head.weight.any()
    assert case.source.note == "twins by constructor; zero weights by reset_parameters: heads.head"
    stages = [full(case, draw, Randomization()) for draw in range(2)]
    for stage in stages:
        assert stage.model.heads.head.weight.unique().numel() > 1
        assert not output_of(case, stage).pearson.isnan().any()
        assert case.explain(stage.model).abs().sum() > 0
    assert not torch.equal(*(stage.model.heads.head.weight for stage in stages))
    assert case_for("resnet20").source.note == "twins by constructor"


@pytest.mark.parametrize("mode", [*MODES, "full"])
def test_only_randomized_blocks_have_their_statistics_estimated_again(mode):
    model, x, _ = network("functional", n=64)
    case = case_of(model, x, torch.zeros(64, dtype=torch.int64), "gradient", build=Functional)
    how = Randomization("recalibrate")
    stages = [full(case, 0, how)] if mode == "full" else cascade(case, mode, 0, how)
    for stage in stages:
        norm, trained = stage.model.norm, case.model.norm
        if torch.equal(stage.model.stem.weight, case.model.stem.weight):
            torch.testing.assert_close(norm.running_mean, trained.running_mean, rtol=0, atol=0)
        else:
            inside = stage.model.stem(x)
            torch.testing.assert_close(norm.running_mean, inside.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(norm.running_var, inside.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
        assert norm.momentum == trained.momentum


def test_what_does_not_depend_on_the_method_is_computed_for_the_first_one_only():
    first = case_for("resnet20", n=3)
    options = {"full_draws": 2, "cascade_draws": 1, "modes": ["top_down", "independent"]}
    expected = rows(first, "parameter_randomization", **options)
    again = copy.copy(first)
    again.passes = Passes()
    pd.testing.assert_frame_equal(rows(again, "parameter_randomization", **options), expected)
    stages = 2 * len(first.source.blocks) + 1
    explained = 3 * (1 + stages)  # the second call on the trained network, and one at each stage
    assert (again.passes.forward, again.passes.backward) == (explained, explained)
    others = 3 * (1 + stages)  # the outputs, the trained network's too
    # The output layer alone, first of both cascades, has no batch norm in its block.
    statistics = len(first.source.calibration) * (stages - 2)
    assert first.passes.forward == 3 + explained + others + statistics


def test_the_outputs_of_one_block_of_samples_only_are_kept():
    case = case_for("functional", n=4)
    stage = full(case, 0, Randomization())
    kept = output_of(case, stage)
    assert output_of(case, stage) is kept
    other = case_of(case.model, case.x.flip(0), case.target, "gradient", build=Functional, samples=list("abcd"))
    other.source = case.source
    torch.testing.assert_close(output_of(other, stage).pearson, kept.pearson.flip(0))
    assert output_of(case, stage) is not kept


@pytest.mark.parametrize("mode", MODES)
def test_the_metric_goes_through_the_modes_it_is_told(mode):
    frame = rows(case_for("functional"), "parameter_randomization", full_draws=2, cascade_draws=2, modes=[mode])
    tested = frame[(frame["role"] == "test") & (frame["measure"] == "output_pearson")]
    assert list(tested["mode"].unique()) == [mode, "full"]
    stages = tested.loc[tested["mode"] == mode, "stage"].unique().tolist()
    assert stages == (["stem", "block", "head"] if mode == "bottom_up" else ["head", "block", "stem"])
    assert len(tested) == 2 * (2 * 3 + 2)


def test_the_target_is_frozen_unless_it_is_to_be_predicted_again():
    """The gradient of a linear network is the row of its weight: it tells which class was explained."""

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(100, 5))

    torch.manual_seed(3)
    model, x = build().eval(), torch.randn(20, 1, 10, 10)
    target = model(x).argmax(1)
    case = case_of(model, x, target, "gradient", build=build)
    random = full(case, 0, Randomization()).model
    predicted = random(x).argmax(1)
    assert (predicted != target).any()
    assert (predicted == target).any()
    for repredict, explained in ((False, target), (True, predicted)):
        frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=0, repredict=repredict)
        found = values(frame, "spearman", role="test", mode="full", sign="signed")
        weights = random[1].weight[explained], model[1].weight[target]
        ranks = [w.argsort(1).argsort(1).double() for w in weights]
        expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)])
        torch.testing.assert_close(found, expected.detach())


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match=r"top_down.*bottom_up.*independent"):
        METRICS["parameter_randomization"].resolve({"modes": ["top-down"]})
