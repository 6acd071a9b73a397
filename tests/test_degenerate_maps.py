"""Maps and masks that are hardly any: for every metric the documented value, or none and the reason."""

import inspect
import re
from functools import cache
from math import log

import pytest
import torch
from test_metrics_contract import options_of

from cases import case_of, network, rows
from harness import METHODS, METRICS, InputSpace
from harness.case import Case, Explainer
from harness.entries import GLOBAL, Method
from harness.models.loaded import LoadedModel

SIDE, COUNT, PLACE = 12, 12, (0, 5, 4)
SAMPLES = [f"s{index}" for index in range(COUNT)]
ODD, AFTER = SAMPLES[3], SAMPLES[4]
"""Where one sample alone has a degenerate map: it, and the sample that one null compares with it."""

SCALE = 2.0**100
"""About 1e30, and a power of two, by which nothing is rounded."""

OURS = sorted(
    name
    for name, entry in METRICS.items()
    if entry.function.__module__.startswith("harness.")
    and not {"partner", "recipe"} & set(entry.needs)
    and entry.family != GLOBAL  # they ask networks and have no maps
)
OPTIONS = {
    **{name: {"steps": 8} for name in ("deletion", "insertion", "monotonicity", "pixel_flipping")},
    **{name: {"neighbours": 3} for name in ("local_lipschitz", "max_sensitivity", "relative_stability")},
    "cosine_convergence": {"pairs": 2},
    "efficient_parameter_randomization": {"full_draws": 2},
    # Squares that meet the single pixel.
    "infidelity": {"side": 6},
    # Of noise, SLIC makes one superpixel where it is asked for few.
    "irof": {"superpixels": 60},
    "random_logit": {"class_draws": 2},
    "region_perturbation": {"patch": 3},
    "road": {"fractions": [0.2, 0.5]},
}


def with_one(maps, value):
    maps = maps.clone()
    maps[:, *PLACE] = value
    return maps


KINDS = {
    "ordinary": lambda maps: maps,
    "zero": lambda maps: torch.zeros_like(maps),
    "constant": lambda maps: torch.full_like(maps, 0.3),
    "single": lambda maps: with_one(torch.zeros_like(maps), 1.0),
    "negative": lambda maps: -maps.abs() - 1e-3,
    "tiny": lambda maps: maps / SCALE,
    "huge": lambda maps: maps * SCALE,
    "nan": lambda maps: with_one(maps, torch.nan),
    "all_nan": lambda maps: torch.full_like(maps, torch.nan),
    "infinite": lambda maps: with_one(maps, torch.inf),
}
BROKEN_KINDS = ("nan", "all_nan", "infinite")

ANY, SAME, SCALED = "defined", "as of the ordinary map", "scaled as the map is"
BROKEN, FLAT, ZERO = "undefined: not finite", "undefined: constant map", "undefined: the map is zero everywhere"
UNKNOWN = "undefined: undefined at every size"
WORDS = {
    "not finite": ("not finite",),
    "constant map": ("constant", "does not differ"),
    "undefined at every size": ("at every size",),
    "the map is zero everywhere": ("zero everywhere", "is zero or"),
}
"""How docstrings say so, where not in the words of the reason."""

# Of the headline, for a map that is ...
#   zero, constant, a single pixel, negative, tiny, huge, and (in one place, everywhere, infinite) not finite.
ORDER = ("zero", "constant", "single", "negative", "tiny", "huge")
REMOVED = (FLAT, FLAT, ANY, ANY, SAME, SAME, BROKEN)
EXPECTED = {
    "completeness": (1.0, ANY, ANY, ANY, 1.0, ANY, BROKEN),
    "completeness_convergence": (1.0, ANY, ANY, ANY, 1.0, ANY, BROKEN),
    "comprehensiveness": REMOVED,
    "cosine_convergence": (SAME, SAME, SAME, SAME, SAME, SAME, SAME),
    "deletion": REMOVED,
    "dummy": (ZERO, 0.5, 1.0, ANY, SAME, SAME, BROKEN),
    "edge_similarity": REMOVED,
    "effective_complexity": (ZERO, 1.0, 1 / 144, ANY, SAME, SAME, BROKEN),
    "efficient_parameter_randomization": (FLAT, FLAT, 0.0, ANY, SAME, SAME, BROKEN),
    "entropy": (ZERO, log(144), 0.0, ANY, SAME, SAME, BROKEN),
    "faithfulness_correlation": REMOVED,
    "faithfulness_estimate": REMOVED,
    "implementation_invariance": (ZERO, 0.0, 0.0, ANY, SAME, SAME, BROKEN),
    "infidelity": ("undefined: the map says 0 of every perturbation", ANY, ANY, ANY, SAME, SAME, BROKEN),
    "input_invariance": (ZERO, 0.0, 0.0, ANY, SAME, SAME, BROKEN),
    "insertion": REMOVED,
    "irof": REMOVED,
    "linearity": (ZERO, 0.5, 0.5, ANY, SAME, SAME, BROKEN),
    "local_lipschitz": (0.0, 0.0, 0.0, ANY, SCALED, SCALED, BROKEN),
    "mask_leakage": REMOVED,
    "max_sensitivity": (ZERO, 0.0, 0.0, ANY, SAME, SAME, BROKEN),
    "monotonicity": REMOVED,
    "monotonicity_correlation": REMOVED,
    "occlusion_faithfulness": REMOVED,
    "parameter_randomization": (FLAT, FLAT, 1.0, ANY, SAME, SAME, BROKEN),
    "part_importance": REMOVED,
    "pixel_flipping": REMOVED,
    "pointing_game": (FLAT, FLAT, 1.0, ANY, SAME, SAME, BROKEN),
    "random_logit": (FLAT, FLAT, 1.0, ANY, SAME, SAME, BROKEN),
    "region_perturbation": REMOVED,
    "relative_stability": (ZERO, 0.0, 0.0, ANY, SAME, SAME, BROKEN),
    "relevance_mass": (FLAT, FLAT, 1.0, "undefined: nothing is positive", SAME, SAME, BROKEN),
    "relevance_rank": (FLAT, FLAT, ANY, ANY, SAME, SAME, BROKEN),
    "road": REMOVED,
    "roc_auc": (FLAT, FLAT, ANY, ANY, SAME, SAME, BROKEN),
    "sensitivity": (1.0, 0.0, ANY, 0.0, SAME, SAME, BROKEN),
    "sensitivity_n": (UNKNOWN, UNKNOWN, ANY, ANY, SAME, SAME, UNKNOWN),
    "smooth_parameter_randomization": (FLAT, FLAT, 1.0, ANY, SAME, SAME, BROKEN),
    "sparseness": (ZERO, 0.0, 143 / 144, ANY, SAME, SAME, BROKEN),
    "sufficiency": REMOVED,
    "symmetry": (ZERO, 0.0, 0.5**0.5, ANY, SAME, SAME, BROKEN),
    "zero_fraction": (1.0, 0.0, 143 / 144, 0.0, SAME, SAME, BROKEN),
}


@cache
def subject():
    """A network that does not say the same of all samples, where it comes from, and the samples."""
    model, x, _ = network("modules", n=COUNT)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
    return model, LoadedModel(model, lambda: network("modules")[0], 0, x[:1], lambda: x), x


def degenerate(kind, only):
    """A method whose maps are of a kind, of whatever network and input, for these samples or for all."""

    def function(model, x, target, *, ids, steps: int = 1):
        maps = METHODS["input_x_gradient"].function(model, x, target)
        # Neither linear nor symmetric, and not blind where the network is.
        maps = maps + maps.roll(1, -1).abs()
        here = torch.tensor([each in (only or SAMPLES) for each in ids])
        return torch.where(here[:, None, None, None], KINDS[kind](maps), maps)

    return Method("degenerate", function, "control", 1, (), conserves="output")


def case_of_kind(kind, only=(), masks=None):
    model, source, x = subject()
    space = InputSpace("image", mean=(0.0, 0.0), std=(1.0, 1.0))
    explainer, target = Explainer(degenerate(kind, only), {}), torch.arange(COUNT) % 2
    masks, parts = squares() if masks is None else masks, tiles(x)
    return Case(model, source, explainer, x, target, SAMPLES, space, 0, 64, masks=masks, parts=parts)


def squares():
    masks = torch.zeros(COUNT, 1, SIDE, SIDE)
    masks[:, :, 2:7, 3:9] = 1
    return masks


def tiles(x):
    number = torch.arange(SIDE) // (SIDE // 3)
    where = (3 * number[:, None] + number == torch.arange(9)[:, None, None]).float()
    return where.expand(COUNT, -1, -1, -1), x[:, None] * (1 - where[:, None])


def frame_with(case, name):
    frame = rows(case, name, **(options_of(name) | OPTIONS.get(name, {})))
    # Text as such: frames are the same, whatever else is in their dictionaries of reasons.
    return frame.astype({column: object for column in frame.select_dtypes("category")})


@cache
def frame_of(kind, name, only=()):
    return frame_with(case_of_kind(kind, only), name)


def headlines(frame, name):
    return frame[(frame["measure"] == METRICS[name].headline) & (frame["role"] == "test")]


def test_every_metric_says_what_it_makes_of_degenerate_maps():
    assert sorted(EXPECTED) == OURS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ordinary"])
@pytest.mark.parametrize("name", OURS)
def test_the_headline_is_what_is_expected(name, kind):
    expected = EXPECTED[name][-1 if kind in BROKEN_KINDS else ORDER.index(kind)]
    found, ordinary = (headlines(frame_of(each, name), name) for each in (kind, "ordinary"))
    values = found["value"].to_numpy()
    assert set(found["sample"]) == set(SAMPLES)
    assert ordinary["value"].notna().all()
    if isinstance(expected, float):
        assert values == pytest.approx(expected, abs=1e-12)
    elif expected in (SAME, SCALED):
        factor = {"tiny": 1 / SCALE, "huge": SCALE}[kind] if expected == SCALED else 1
        assert (values == ordinary["value"].to_numpy() * factor).all()
    elif expected == ANY:
        assert found["value"].notna().all()
    else:
        assert found["value"].isna().all()
        assert found["reason"].str.startswith(expected.removeprefix("undefined: ")).all()


@pytest.mark.parametrize("kind", BROKEN_KINDS)
@pytest.mark.parametrize("name", OURS)
def test_what_has_a_value_without_a_finite_map_does_not_look_at_the_map(name, kind):
    broken, ordinary = frame_of(kind, name), frame_of("ordinary", name)
    known = broken["value"].notna()
    assert broken[known].equals(ordinary[known])


@pytest.mark.parametrize("kind", ["nan", "zero", "infinite", "huge"])
@pytest.mark.parametrize("name", sorted({*OURS} - {"mask_leakage"}))
def test_the_map_of_one_sample_changes_nothing_of_the_others(name, kind):
    mixed, alike, ordinary = frame_of(kind, name, (ODD,)), frame_of(kind, name), frame_of("ordinary", name)
    odd = mixed["sample"] == ODD
    others = ordinary["role"] == "floor_other"  # of each sample with the one before
    pairs = others & mixed["sample"].isin((ODD, AFTER))
    assert mixed[~odd & ~pairs].equals(ordinary[~odd & ~pairs])
    assert mixed[odd & ~pairs].equals(alike[odd & ~pairs])
    assert mixed[pairs]["value"].isna().equals(alike[pairs]["value"].isna())


@pytest.mark.parametrize("kind", ["nan", "zero", "infinite"])
def test_the_one_metric_that_fits_samples_together_leaves_out_what_is_broken(kind):
    case, kept = case_of_kind("ordinary"), [place for place, each in enumerate(SAMPLES) if each != ODD]
    samples = [SAMPLES[place] for place in kept]
    part = case_of(case.model, case.x[kept], case.target[kept], case.maps[kept], samples=samples)
    frames = frame_of(kind, "mask_leakage", (ODD,)), frame_with(part, "mask_leakage")
    mixed, without = (headlines(frame, "mask_leakage")["value"] for frame in frames)
    assert mixed.isna().tolist() == [each == ODD for each in SAMPLES]
    assert mixed.dropna().tolist() == without.tolist()


def test_a_class_of_which_too_few_maps_are_left_leaves_nothing_to_tell():
    frame = headlines(frame_of("nan", "mask_leakage", (SAMPLES[0], SAMPLES[2])), "mask_leakage")
    few, alone = "fewer than 5 samples of its class", "no other class with 5 samples"
    assert frame["value"].isna().all()
    assert frame["reason"].tolist() == ["not finite", alone, "not finite", alone, *[few, alone] * 4]


ORDERING = {
    **{name: {} for name in ("deletion", "insertion", "monotonicity", "pixel_flipping", "region_perturbation", "road")},
    **{name: {} for name in ("comprehensiveness", "sufficiency")},
    "faithfulness_estimate": {"groups": 5},
}


@pytest.mark.parametrize("patch", [2, 50])
@pytest.mark.parametrize("name", ORDERING)
def test_a_map_that_differs_within_units_only_orders_nothing(name, patch):
    model, _, x = subject()
    maps = 1 + torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    checkers = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2
    maps[3], maps[5] = 0.1 + 0.7 * checkers, -0.3 * checkers
    # Sums that are nothing but rounding.
    maps[7] = torch.where(checkers == 1, 0.1, -0.1) * (1 + torch.arange(SIDE) // 2)
    frame = rows(case_of(model, x, torch.arange(COUNT) % 2, maps), name, fill="black", patch=patch, **ORDERING[name])
    flat = range(COUNT) if patch > SIDE else (3, 5, 7) if name != "monotonicity" else (3, 5)
    expected = ["the same mean in every unit" if row in flat else "" for row in range(COUNT)]
    headline = headlines(frame, name)
    assert headline["reason"].astype(object).fillna("").tolist() == expected
    ordered = frame[frame["mode"] != "random"]
    assert (ordered["value"].isna() == ordered["sample"].isin([SAMPLES[row] for row in flat])).all()
    assert frame.loc[frame["mode"] == "random", "value"].notna().all()


@pytest.mark.parametrize("kind", ["ordinary", "nan", "zero"])
@pytest.mark.parametrize("name", [name for name in OURS if "masks" in METRICS[name].needs])
def test_empty_and_full_masks_have_no_localization(name, kind):
    masks = squares()
    masks[0], masks[1] = 0, 1
    frame, ordinary = frame_with(case_of_kind(kind, masks=masks), name), frame_of(kind, name)
    for sample, reason in ((SAMPLES[0], "empty mask"), (SAMPLES[1], "full mask")):
        where = frame["sample"] == sample
        assert frame[where]["value"].isna().all()
        assert set(frame[where]["reason"]) == {reason}
    rest = ~frame["sample"].isin(SAMPLES[:2])
    assert frame[rest].equals(ordinary[rest])


@pytest.mark.parametrize("name", OURS)
def test_the_docstring_says_where_there_is_no_value(name):
    text = documentation(name)
    for outcome in {str(each) for each in EXPECTED[name]}:
        undefined, _, reason = outcome.partition(": ")
        if reason:
            assert undefined in text
            assert any(words in text for words in WORDS.get(reason, (reason,))), reason


def documentation(name):
    """The docstrings of a metric, of its module and of what it refers to for the rest."""
    function = METRICS[name].function
    text = " ".join(f"{inspect.getdoc(function)} {inspect.getdoc(inspect.getmodule(function))}".split())
    referred = [METRICS[each].function.__doc__ for each in re.findall(r"as in `(\w+)`", text) if each in METRICS]
    return " ".join([text, *referred]).lower()
