"""Part importance: right where the truth is known in closed form, as SciPy has it, and undefined for a reason."""

import pytest
import torch
from scipy import stats
from torch import nn

from cases import Linear, case_of, rows, values
from harness.metrics.part_importance import part_importance
from harness.models.loaded import LoadedModel

SIDE, PARTS, SAMPLES = 8, 4, 30


def scene(seed=0):
    """Samples of disjoint parts on black, where they are, and the samples without each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(SAMPLES, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    owner = torch.randint(PARTS + 1, (SAMPLES, SIDE, SIDE), generator=generator)
    x = x * (owner < PARTS)[:, None]
    where = (owner[:, None] == torch.arange(PARTS)[:, None, None]).double()
    return x, where, x[:, None] * (1 - where)[:, :, None]


def linear(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Linear(torch.randn(3, 2 * SIDE**2, generator=generator, dtype=torch.float64)).eval()


def curved():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
        return nn.Sequential(*layers).double().eval()


def case_for(model, maps, chunk=64, parts=None):
    x, where, without = scene()
    case = case_of(model, x, torch.arange(SAMPLES) % 3, maps, chunk=chunk)
    case.parts = (where, without) if parts is None else parts
    return case


def noise(seed=2, channels=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES, channels, SIDE, SIDE, generator=generator, dtype=torch.float64)


def test_exact_attributions_of_a_linear_model_reach_one_and_their_negative_minus_one():
    case = case_for(linear(), "input_x_gradient")
    frame = rows(case, "part_importance")
    for measure in ("spearman", "pearson"):
        torch.testing.assert_close(values(frame, measure), torch.ones(SAMPLES, dtype=torch.float64))
        opposite = values(rows(case_for(linear(), -case.maps), "part_importance"), measure)
        torch.testing.assert_close(opposite, -torch.ones(SAMPLES, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 2])
def test_it_is_the_correlation_of_sums_and_drops_that_scipy_gives(channels):
    model, (x, where, without) = curved(), scene()
    maps = noise(channels=channels)
    frame = rows(case_for(model, maps), "part_importance")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for row in range(SAMPLES):
        target = row % 3
        sums = [float(maps[row].sum(0)[where[row, part].bool()].sum()) for part in range(PARTS)]
        logit = float(model(x[row : row + 1])[0, target])
        drops = [logit - float(model(without[row, part][None])[0, target]) for part in range(PARTS)]
        for measure, correlation in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            expected = correlation(sums, drops)[0]
            assert abs(float(values(frame, measure)[row]) - expected) < 1e-9


def test_signs_count_and_what_is_in_no_part_or_cancels_between_channels_does_not():
    _, where, _ = scene()
    maps = noise()
    case = case_for(linear(), maps)
    known = values(rows(case, "part_importance"), "pearson")
    other = values(rows(case_for(linear(), maps.abs()), "part_importance"), "pearson")
    assert (known - other).abs().max() > 0.5
    outside = (where.sum(1, keepdim=True) == 0) * 9.0
    shift = torch.stack([noise(3)[:, 0], -noise(3)[:, 0]], 1)
    same = values(rows(case_for(linear(), maps + outside + shift), "part_importance"), "pearson")
    torch.testing.assert_close(same, known, rtol=0, atol=1e-9)


def test_what_is_undefined_says_why():
    x, where, without = scene()
    maps = noise()
    maps[0] = 0.0
    maps[1, 0, 0, 0] = torch.nan
    maps[2] *= where[2].sum(0) == 0
    without[3] = x[3]
    frame = rows(case_for(curved(), maps, parts=(where, without)), "part_importance")
    for measure in ("spearman", "pearson"):
        reasons = frame[frame["measure"] == measure]["reason"].tolist()
        assert reasons[0] == "constant map"
        assert reasons[1] == "not finite"
        assert reasons[2:4] == ["the same sum in every part", "the same drop for every part"]
        assert values(frame, measure)[4:].isfinite().all()


def test_noise_is_at_chance():
    model = curved()
    found = torch.cat([values(rows(case_for(model, noise(seed)), "part_importance"), "spearman") for seed in range(30)])
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(found) ** 0.5


@pytest.mark.parametrize("chunk", [7, 64])
def test_all_methods_share_the_passes_without_parts_and_the_chunk_changes_nothing(chunk):
    x, _, _ = scene()
    model = curved()
    source = LoadedModel(model, None, 0, x[:1], lambda: x)
    found = []
    for index, maps in enumerate((noise(4), noise(5))):
        case = case_for(model, maps, chunk=chunk)
        case.source = source
        found.append([score.values for score in part_importance(case)])
        assert case.passes.forward == (SAMPLES * (PARTS + 1) if index == 0 else 0)
        assert case.passes.backward == 0
    alone = [score.values for score in part_importance(case_for(model, noise(5)))]
    for one, other in zip(found[1], alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_masks_may_be_of_the_type_of_the_model_and_maps_of_half_precision():
    x, where, without = scene()
    model = curved().float()
    case = case_of(model, x.float(), torch.arange(SAMPLES) % 3, noise().float())
    case.parts = where.float(), without.float()
    single = values(rows(case, "part_importance"), "pearson")
    double = values(rows(case_for(curved(), noise()), "part_importance"), "pearson")
    torch.testing.assert_close(single, double, rtol=0, atol=1e-3)
