"""Randomized networks: what each mode of a cascade, each policy and each draw changes, and what it leaves alone."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v2

from cases import Functional, case_of, network, rows, values
from harness.case import Passes
from harness.catalogue import METRICS
from harness.digests import digest
from harness.entries import OptionError
from harness.metrics.cascade import Randomization, cascade, full, output_of
from harness.metrics.comparison import shifted
from harness.metrics.similarity import pearson
from harness.networks import CifarResNet
from harness.types import NotApplicableError

MODES = ("top_down", "bottom_up", "independent")
NETWORKS = {
    "functional": (Functional, (2, 12, 12)),
    "resnet20": (lambda: CifarResNet((3, 32, 32), 10, depth=20), (3, 32, 32)),
    "mobilenet": (lambda: mobilenet_v2(num_classes=5), (3, 32, 32)),
    "transformer": (lambda: VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5), (3, 16, 16)),
}
each_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "mobilenet")) for name in NETWORKS]
)


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


@pytest.mark.slow
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


def test_twins_are_kept_while_there_is_room_and_no_cascade_writes_to_them(monkeypatch):
    case = case_for("functional")
    twin = case.twin(0)
    before = digest(dict(twin.state_dict()))
    assert case.twin(0) is twin
    for mode in MODES:
        for stage in cascade(case, mode, 0, Randomization("recalibrate")):
            stage.model(case.x)
    full(case, 0, Randomization("keep"))
    assert digest(dict(twin.state_dict())) == before
    monkeypatch.setattr("harness.models.loaded.TWINS_BYTES", 0)
    other = case.twin(1)
    assert case.twin(1) is not other
    assert digest(dict(case.twin(1).state_dict())) == digest(dict(other.state_dict()))


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


def test_estimated_statistics_are_those_of_their_own_draw_mode_and_policy_in_whatever_order_they_are_asked_for():
    model, x, _ = network("functional", n=64)
    case = case_of(model, x, torch.zeros(64, dtype=torch.int64), "gradient", build=Functional)
    stages = [
        stage
        for draw, fresh in ((0, False), (1, False), (0, True), (1, True), (0, False))
        for how in [Randomization("recalibrate", fresh)]
        for stage in [full(case, draw, how), *(s for mode in MODES for s in copies(cascade(case, mode, draw, how)))]
    ]
    assert len({digest(stage.model.norm.running_mean) for stage in stages}) > 4
    for stage in stages:
        if not torch.equal(stage.model.stem.weight, case.model.stem.weight):
            inside = stage.model.stem(x)
            torch.testing.assert_close(stage.model.norm.running_mean, inside.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def copies(stages):
    """A stage is good until the next one is asked for."""
    return [replace(stage, model=copy.deepcopy(stage.model)) for stage in stages]


def test_samples_are_safe_from_a_network_that_writes_in_place_while_statistics_are_estimated():
    def build():
        layers = nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 4)
        return nn.Sequential(*layers)

    x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    case, before = case_of(build().eval(), x, torch.zeros(5, dtype=torch.int64), "gradient", build=build), x.clone()
    full(case, 0, Randomization("recalibrate"))
    assert torch.equal(case.x, before)


def test_one_sample_that_gives_no_statistics_is_not_applicable_and_says_what_is():
    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    case = case_of(build().eval(), torch.rand(1, 6), torch.zeros(1, dtype=torch.int64), "gradient", build=build)
    with pytest.raises(NotApplicableError, match=r"one sample gives no batch-norm statistics: .* keep or reset"):
        full(case, 0, Randomization("recalibrate"))
    assert changed(full(case, 0, Randomization("keep")).model, case.model)


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm])
def test_only_running_statistics_are_kept_and_the_vectors_of_a_spectral_norm_go_with_its_weight(norm):
    def build():
        return nn.Sequential(norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Linear(8, 3))

    model = build().eval()
    model[1].running_mean += 1
    case = case_of(model, torch.rand(4, 6), torch.zeros(4, dtype=torch.int64), "gradient", build=build)
    stage = full(case, 0, Randomization("keep"))
    assert torch.equal(stage.model[1].running_mean, model[1].running_mean)
    twin = case.twin(0)
    for network_ in (stage.model, twin, model):
        network_(case.x)
    assert torch.equal(stage.model[0].weight, twin[0].weight)
    assert not torch.allclose(twin[0].weight, model[0].weight)


def test_a_network_with_a_weight_norm_can_be_randomized_after_it_was_called():
    def build():
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))

    model, x = build().eval(), torch.rand(4, 6)
    model(x).sum().backward()
    case = case_of(model, x, torch.zeros(4, dtype=torch.int64), "gradient", build=build)
    logits = model(x)
    stage = full(case, 0, Randomization())
    assert torch.equal(stage.model(x), case.twin(0)(x))
    assert torch.equal(model(x), logits)


def test_a_method_has_new_noise_in_every_draw_and_stage_and_for_the_second_call():
    """Noise that is the same at two places has there a similarity of exactly 1 to itself, or repeats its values."""
    case = case_for("functional", method="random", n=2)
    options = {"full_draws": 3, "cascade_draws": 2, "modes": list(MODES), "measures": ["pearson"]}
    frame = rows(case, "parameter_randomization", **options)
    tested = frame[(frame["measure"] == "pearson") & (frame["sign"] == "signed") & (frame["role"] == "test")]
    # The end of a cascade is the full randomization too, and the last of two that go there is taken.
    cascades = tested[tested["mode"] != "full"]
    assert cascades["value"].nunique() == len(cascades) == 2 * 2 * 9
    assert tested.loc[tested["mode"] == "full", "value"].nunique() == 2 * 3
    assert (values(frame, "pearson", role="ceiling_rerun") < 1).all()


def test_floors_compare_what_they_say():
    case = case_for("functional", n=3)
    frame = rows(case, "parameter_randomization", full_draws=3, cascade_draws=0, measures=["pearson"])
    maps = [case.explain(full(case, draw, Randomization()).model) for draw in range(3)]
    for draw in range(3):
        words = case.draws("parameter_randomization", "shift").uniform(2, draw=draw)
        moved = pearson(case.maps.sum(1), shifted(maps[draw], words).sum(1))
        found = values(frame, "pearson", role="floor_shift", sign="signed", draw=draw)
        torch.testing.assert_close(found, moved, rtol=0, atol=1e-12)
        found = values(frame, "pearson", role="floor_random", sign="signed", draw=draw)
        if draw:
            torch.testing.assert_close(found, pearson(maps[draw - 1].sum(1), maps[draw].sum(1)), rtol=0, atol=1e-12)
        else:
            assert len(found) == 0


def test_how_far_the_output_changed_is_the_correlation_over_classes_and_whether_the_class_stayed():
    case = case_for("functional", n=6)
    frame = rows(case, "parameter_randomization", full_draws=2, cascade_draws=0, measures=["pearson"])
    before = case.logits(case.x)
    for draw in range(2):
        after = case.logits(case.x, full(case, draw, Randomization()).model)
        expected = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(before, after, strict=True)]
        assert values(frame, "output_pearson", draw=draw).tolist() == pytest.approx(expected, abs=1e-4)
        kept = before.argmax(1) == after.argmax(1)
        assert values(frame, "prediction_kept", draw=draw).tolist() == kept.double().tolist()


@pytest.mark.parametrize("option", ["modes", "measures"])
def test_a_name_that_stands_twice_is_refused_before_anything_is_computed(option):
    name = {"modes": "top_down", "measures": "cosine"}[option]
    with pytest.raises(OptionError, match=f"{name} named twice"):
        METRICS["parameter_randomization"].resolve({option: [name, name]})


@pytest.mark.parametrize("metric", ["parameter_randomization", "random_logit", "label_randomization"])
def test_no_measure_at_all_is_refused(metric):
    with pytest.raises(OptionError, match="at least 1 item"):
        METRICS[metric].resolve({"measures": []})


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("modes", [[], ["independent"], ["top_down", "independent"], ["bottom_up"]])
def test_the_full_randomization_is_the_same_whatever_cascades_came_before_it(modes, fresh):
    case = case_for("functional", n=3)
    options = {"full_draws": 2, "cascade_draws": 1, "modes": modes, "fresh": fresh, "measures": ["pearson"]}
    frame = rows(case, "parameter_randomization", **options)
    assert set(frame.loc[frame["mode"] == "full", "stage"]) == {"all"}
    for draw in range(2):
        maps = case.explain(full(case, draw, Randomization("recalibrate", fresh)).model)
        found = values(frame, "pearson", role="test", mode="full", sign="signed", draw=draw)
        torch.testing.assert_close(found, pearson(case.maps.sum(1), maps.sum(1)), rtol=0, atol=1e-5)


def test_a_retrained_network_is_explained_with_noise_of_its_own(monkeypatch):
    case = case_for("functional", method="random", n=2)
    monkeypatch.setattr(case.__class__, "retrained", lambda self: self.model)
    frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=0, measures=["pearson"])
    again, retrained = (values(frame, "pearson", role=f"ceiling_{role}") for role in ("rerun", "retrain"))
    assert (retrained < 1).all()
    assert not (again == retrained).any()


def test_the_output_that_is_remembered_is_that_of_the_policy():
    case = case_for("functional", n=3)
    for how in (Randomization("keep"), Randomization("reset"), Randomization("recalibrate")):
        for stage in (full(case, 0, how), *copies(cascade(case, "bottom_up", 0, how))):
            expected = pearson(case.logits(case.x), case.logits(case.x, stage.model))
            torch.testing.assert_close(output_of(case, stage).pearson, expected, rtol=0, atol=1e-6)
