"""Cascades in few stages: which blocks are joined, and that each stage randomizes these and no others."""

from functools import partial

import pytest
import torch
from torch import nn

from cases import case_of, network, rows
from harness.case import Block
from harness.digests import digest
from harness.metrics.cascade import Randomization, cascade, full, groups_of
from harness.networks import CifarResNet


def deep():
    layers = [nn.Flatten(), nn.Linear(48, 9)]
    for _ in range(6):
        layers += [nn.ReLU(), nn.Linear(9, 9)]
    return nn.Sequential(*layers, nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))


NETWORKS = {"deep": (deep, (3, 4, 4)), "resnet": (partial(CifarResNet, (3, 16, 16), 4, depth=14), (3, 16, 16))}
each_network = pytest.mark.parametrize("name", NETWORKS)


def case_for(name):
    """A network whose every tensor differs from what initializers make."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build().eval()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data += 0.1 * torch.rand_like(tensor)
        x = torch.rand(4, *shape)
    return case_of(model, x, torch.arange(4), "gradient", build=build)


def state(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def changed(model, trained):
    before = state(trained)
    return {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 22])
def test_the_output_block_stands_alone_and_the_others_in_nearly_equal_groups(count):
    blocks = [Block(f"block {index}", (f"weight {index}",), ()) for index in range(count)]
    for stages in range(count + 3):
        groups = groups_of(blocks, stages)
        assert [block for group in groups for block in group] == blocks[::-1]
        assert len(groups) == (min(stages, count) or count)
        sizes = [len(group) for group in groups[1:]]
        if stages != 1:
            assert groups[0] == (blocks[-1],)
            assert max(sizes, default=1) - min(sizes, default=1) <= 1
            assert min(sizes, default=1) == max(1, (count - 1) // max(len(sizes), 1))


@each_network
@pytest.mark.parametrize("stages", [1, 2, 4, 100])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_stage_changes_the_groups_that_its_mode_says_and_no_others(name, stages, fresh):
    case = case_for(name)
    groups = [list(group) for group in groups_of(case.source.blocks, stages)]
    upwards = [group[::-1] for group in groups[::-1]]
    trained = digest(state(case.model))
    for mode, order in (("top_down", groups), ("bottom_up", upwards), ("independent", groups)):
        names = []
        for stage in cascade(case, mode, 0, Randomization(fresh=fresh, stages=stages)):
            index = len(names)
            members = (
                order[index] if mode == "independent" else [block for group in order[: index + 1] for block in group]
            )
            found, parameters = changed(stage.model, case.model), dict(case.model.named_parameters())
            assert found & parameters.keys() == {each for block in members for each in block.parameters}
            statistics = {each for block in members for each in block.buffers if "num_batches" not in each}
            assert {each for each in found - parameters.keys() if "num_batches" not in each} == statistics
            assert (stage.mode, stage.index, stage.name) == (mode, index + 1, order[index][-1].name)
            names.append(stage.name)
        assert len(names) == len(groups) == min(stages, len(case.source.blocks))
        assert len(set(names)) == len(names)
    assert digest(state(case.model)) == trained


@each_network
@pytest.mark.parametrize("stages", [1, 3])
def test_a_cascade_in_groups_ends_in_the_full_randomization_whichever_way_it_goes(name, stages):
    case, how = case_for(name), Randomization(stages=stages)
    whole = digest(state(full(case, 1, how).model))
    for mode in ("top_down", "bottom_up"):
        *_, last = cascade(case, mode, 1, how)
        assert digest(state(last.model)) == whole
    assert digest(state(full(case, 0, how).model)) != whole


def test_a_group_has_the_parameters_that_its_blocks_have_in_a_cascade_of_single_blocks():
    case = case_for("deep")
    parameters = {}
    for stages in (0, 3):
        *_, last = cascade(case, "bottom_up", 0, Randomization("keep", stages=stages))
        parameters[stages] = digest(dict(last.model.named_parameters()))
    assert parameters[0] == parameters[3]


def test_statistics_are_those_of_their_own_grouping_in_whatever_order_they_are_asked_for():
    case, seen = case_for("resnet"), set()
    for stages in (0, 2, 3, 0, 2):
        how = Randomization(stages=stages)
        found = [digest(state(stage.model)) for stage in cascade(case, "top_down", 0, how)]
        assert found == [digest(state(stage.model)) for stage in cascade(case_for("resnet"), "top_down", 0, how)]
        seen |= set(found)
    assert len(seen) == len(case.source.blocks)


@pytest.mark.parametrize(("options", "stages"), [({}, 8), ({"stages": 0}, 8), ({"stages": 3}, 3), ({"stages": 1}, 1)])
def test_the_metric_has_as_many_stages_as_it_is_told(options, stages):
    case = case_for("deep")
    expected = [group[-1].name for group in groups_of(case.source.blocks, options.get("stages", 0))]
    options |= {"full_draws": 1, "cascade_draws": 1, "modes": ["top_down"], "measures": ["pearson"]}
    frame = rows(case, "parameter_randomization", **options)
    found = frame[(frame["role"] == "test") & (frame["mode"] == "top_down")].groupby("stage_index")["stage"]
    assert len(expected) == stages
    assert [stage.unique().tolist() for _, stage in found] == [[name] for name in expected]


@pytest.mark.parametrize("stages", [0, 2, 3])
def test_the_full_randomization_has_one_stage_index_whether_or_not_it_ends_a_cascade(stages):
    case = case_of(*network("modules"), "gradient")
    frame = rows(case, "parameter_randomization", full_draws=3, cascade_draws=1, stages=stages)
    indices = set(frame.loc[frame["mode"] == "full", "stage_index"])
    assert indices == {len(groups_of(case.source.blocks, stages))}
