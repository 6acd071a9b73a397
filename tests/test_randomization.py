"""Randomization tests: twins and cascades do what they say, and the outcomes that are known come out."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, mobilenet_v2

from cases import Functional, case_of, network, rows, values
from harness.blocks import blocks_of
from harness.metrics.cascade import Randomization, full
from harness.models.loaded import LoadedModel
from harness.twins import twin_note, twin_of


def transformer():
    return VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)


NETWORKS = {
    "functional": (Functional, torch.rand(4, 2, 12, 12)),
    "mobilenet": (lambda: mobilenet_v2(num_classes=5), torch.rand(2, 3, 32, 32)),
    "transformer": (transformer, torch.rand(2, 3, 16, 16)),
}


def built(name):
    build, x = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = build().eval()
        # torchvision starts the head of a transformer at zero, and a random network must have one that is not.
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter)
    return model, build, x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_blocks_hold_every_parameter_once_and_every_buffer_once(name):
    model, _, x = built(name)
    blocks = blocks_of(model, x)
    parameters = [p for block in blocks for p in block.parameters]
    assert sorted(parameters) == sorted(n for n, _ in model.named_parameters())
    assert sorted(b for block in blocks for b in block.buffers) == sorted(n for n, _ in model.named_buffers())
    assert len({block.name for block in blocks}) == len(blocks)


def test_blocks_come_in_execution_order_and_norms_join_what_they_follow():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.norm = nn.BatchNorm1d(4)
            self.first = nn.Linear(5, 4)
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.scale * self.last(self.norm(self.first(x)).relu())

    blocks = blocks_of(Reversed().eval(), torch.rand(2, 5))
    assert [block.name for block in blocks] == ["parameters", "first", "last"]
    assert blocks[1].parameters == ("first.weight", "first.bias", "norm.weight", "norm.bias")
    assert "norm.running_mean" in blocks[1].buffers


def test_a_block_that_fills_a_container_takes_its_name():
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    model.add_module("body", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    assert [b.name for b in blocks_of(model.eval(), torch.rand(2, 3))] == ["stem", "body.0", "body.1"]


def test_the_parameters_inside_an_attention_layer_join_the_layer_that_is_called():
    blocks = blocks_of(*(built("transformer")[i] for i in (0, 2)))
    owner = {p: block.name for block in blocks for p in block.parameters}
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert owner[f"{attention}.in_proj_weight"] == owner[f"{attention}.out_proj.weight"] == attention
    assert owner["class_token"] == "parameters"


def test_twins_are_a_function_of_seed_architecture_and_draw_alone():
    model, build, x = built("functional")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.mul_(2)

    def twin(network, seed, draw):
        return LoadedModel(network, build, seed, x[:1], lambda: x).twin(draw).state_dict()["stem.weight"]

    same = twin(model, 0, 0)
    assert torch.equal(same, twin(model, 0, 0))
    assert torch.equal(same, twin(other, 0, 0))
    assert not torch.equal(same, twin(model, 0, 1))
    assert not torch.equal(same, twin(model, 1, 0))


def test_without_a_constructor_raw_parameters_are_shuffled_and_the_record_says_so():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.arange(50.0))
            self.head = nn.Linear(50, 2)

        def forward(self, x):
            return self.head(x + self.token)

    model = Token().eval()
    twin = twin_of(model, None, "key")
    assert not torch.equal(twin.token, model.token)
    assert torch.equal(twin.token.sort().values, model.token)
    assert not torch.equal(twin.head.weight, model.head.weight)
    assert twin_note(model, None) == "twins by reset_parameters; shuffled within the tensor: the network's own"
    assert twin_note(model, Token) == "twins by constructor"


def parameter_rows(name, n=24, **options):
    model, x, target = network("functional", n=n)
    x = torch.rand(n, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    case = case_of(model, x, target, name, build=Functional)
    return rows(case, "parameter_randomization", **{"full_draws": 4, "cascade_draws": 2, **options})


def test_sobel_is_exactly_one_at_every_stage_under_every_measure():
    frame = parameter_rows("sobel")
    for measure in ("spearman", "ssim"):
        for role in ("test", "floor_random", "ceiling_rerun"):
            similarity = values(frame, measure, role=role)
            assert len(similarity)
            assert (similarity == 1).all()
    assert (values(frame, "spearman", role="floor_shift") < 0.9).all()


def test_a_random_map_is_at_zero_and_as_spread_as_theory_says():
    similarity = values(parameter_rows("random"), "spearman", role="test", sign="signed", mode="full")
    deviation = (14 * 14 - 1) ** -0.5
    assert abs(similarity.mean()) < 4 * deviation / len(similarity) ** 0.5
    assert float(similarity.std()) == pytest.approx(deviation, rel=0.25)


def test_a_constant_map_is_undefined_with_its_reason():
    frame = parameter_rows("constant")
    similar = frame[frame["measure"].isin(["spearman", "ssim"])]
    assert similar["value"].isna().all()
    assert set(similar["reason"]) == {"constant map (trained network)", "constant map (compared network)"}
    assert set(similar.loc[similar["role"] == "test", "reason"]) == {"constant map (trained network)"}


def test_the_gradient_of_a_linear_model_has_the_null_distribution_of_random_weights():
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(400, 3))  # noqa: E731
    torch.manual_seed(0)
    x = torch.rand(3, 1, 20, 20)
    case = case_of(build().eval(), x, torch.arange(3), "gradient", build=build)
    frame = rows(case, "parameter_randomization", full_draws=60, cascade_draws=0)
    similarity = values(frame, "spearman", role="test", sign="signed")
    assert abs(float(similarity.mean())) < 4 / (399 * len(similarity)) ** 0.5
    assert float(similarity.std()) == pytest.approx(399**-0.5, rel=0.2)


def test_a_method_that_ignores_the_last_layer_is_insensitive_exactly_there():
    model, x, target = network("functional", n=12)
    case = case_of(model, x, target, "gradient", build=Functional)

    def ignores_the_head(model_, x_, target_):
        head = copy.deepcopy(model_)
        head.head.load_state_dict(model.head.state_dict())
        from harness.methods.gradients import input_gradient

        return input_gradient(head, x_, target_)

    case.explainer = case.explainer.__class__(
        case.explainer.method.__class__("ignores_the_head", ignores_the_head, "test", 1, ()), {}
    )
    frame = rows(case, "parameter_randomization", full_draws=2, cascade_draws=2)
    cascade = frame[(frame["mode"] == "top_down") & (frame["role"] == "test")]
    assert (values(cascade, "spearman", stage_index=1.0, sign="signed") == 1).all()
    assert (values(cascade, "spearman", stage_index=2.0, sign="signed") < 0.99).all()
    assert (values(cascade, "output_pearson", stage_index=1.0) < 0.999).all()


def test_values_do_not_depend_on_batch_mates():
    model, x, target = network("functional", torch.float64, n=6)
    whole = case_of(model, x, target, "smoothgrad", build=Functional)
    part = case_of(model, x[2:4], target[2:4], "smoothgrad", build=Functional, samples=["s2", "s3"])
    part.source.calibration = whole.source.calibration
    options = {"full_draws": 2, "cascade_draws": 1}
    first = rows(whole, "parameter_randomization", **options)
    second = rows(part, "parameter_randomization", **options)
    # By its definition this level alone compares samples with each other.
    first, second = (frame[frame["role"] != "floor_other"] for frame in (first, second))
    first = first[first["sample"].isin(["s2", "s3"])]
    assert list(first["measure"]) == list(second["measure"])
    torch.testing.assert_close(torch.tensor(first["value"].to_numpy()), torch.tensor(second["value"].to_numpy()))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_constructor_every_drawn_parameter_is_drawn_again_too(name):
    model, _, x = built(name)
    case = case_of(model, x, torch.zeros(len(x), dtype=torch.int64), "gradient")
    random, trained = full(case, 0, Randomization("reset")).model, dict(model.named_parameters())
    for key, parameter in random.named_parameters():
        if parameter.unique().numel() > 1:
            assert not torch.equal(parameter, trained[key]), key
        else:
            assert parameter.flatten()[0].item() in (0, 1), key


def test_the_floor_of_another_sample_is_the_map_of_the_one_before():
    model, x, target = network("functional", n=5)
    x = torch.rand(5, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    case = case_of(model, x, target, "gradient", build=Functional)
    frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=0)
    found = values(frame, "spearman", role="floor_other", sign="signed")
    maps = case.maps.sum(1).flatten(1)
    for row in range(5):
        pair = [maps[i].argsort().argsort().double() for i in (row, row - 1)]
        assert float(found[row]) == pytest.approx(float(torch.corrcoef(torch.stack(pair))[0, 1]), abs=1e-9)


def test_a_single_sample_has_no_other_one():
    model, x, target = network("functional", n=1)
    case = case_of(model, x, target, "gradient", build=Functional)
    frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=0)
    other = frame[frame["role"] == "floor_other"]
    assert other["value"].isna().all()
    assert set(other["reason"]) == {"no other sample"}


def test_where_there_is_a_recipe_a_retrained_network_gives_a_ceiling(monkeypatch):
    model, x, target = network("functional", n=4)
    case = case_of(model, x, target, "gradient", build=Functional)
    assert "ceiling_retrain" not in set(rows(case, "parameter_randomization", full_draws=1, cascade_draws=0)["role"])
    for retrained, same in ((model, True), (Functional().eval(), False)):
        monkeypatch.setattr(case.__class__, "retrained", lambda _, network_=retrained: network_)
        frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=0)
        ceiling = values(frame, "spearman", role="ceiling_retrain", sign="signed")
        assert len(ceiling) == 4
        assert bool((ceiling == 1).all()) == same


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_what_a_layer_does_not_draw_itself_is_shuffled_and_the_record_says_so(norm):
    """Under a weight norm the weight is computed of parameters that `reset_parameters` does not know."""
    model = nn.Sequential(norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model(torch.rand(2, 6))
    twin = twin_of(model, None, "key")
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert not torch.equal(ours, theirs), name
    assert twin_note(model, None).startswith("twins by reset_parameters; shuffled within the tensor: 0")
    assert twin_note(model[1:], None) == "twins by reset_parameters"
