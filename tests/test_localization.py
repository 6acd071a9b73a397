"""Maps against masks: literal loops, scikit-learn and quantus agree; noise is at chance, the mask itself at the top."""

import itertools
import math

import numpy as np
import pytest
import quantus
import torch
from sample_maps import normal, tied
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from cases import Linear, case_of, rows, values
from harness.catalogue import METRICS
from harness.types import NotApplicableError

SCORES = {
    "pointing_game": ["hit"],
    "relevance_mass": ["positive_mass", "absolute_mass", "squared_mass"],
    "relevance_rank": ["rank_accuracy"],
    "roc_auc": ["roc_auc"],
}
HEADLINES = {name: measures[0] for name, measures in SCORES.items()}
SHAPES = {"image": (3, 9, 7), "signal": (2, 31), "table": (12,)}
SIGNS = {"signed": lambda a: a, "absolute": abs}

each_metric = pytest.mark.parametrize("name", SCORES)
each_kind = pytest.mark.parametrize("kind", SHAPES)


def case_with(maps, masks, no_truth=""):
    x = torch.zeros(len(maps), *maps.shape[1:], dtype=maps.dtype)
    case = case_of(Linear(x[:1].flatten(1)).eval(), x, torch.zeros(len(x), dtype=torch.int64), maps)
    case.masks, case.no_truth = masks, no_truth
    return case


def scores(name, maps, masks, no_truth="", **options):
    return rows(case_with(maps, masks, no_truth), name, **options)


def masks_for(n, kind, share=0.3, seed=9):
    """Random masks of about this share; none is empty or full."""
    shape = SHAPES[kind]
    noise = torch.rand(
        n, *((1, *shape[1:]) if len(shape) > 1 else shape), generator=torch.Generator().manual_seed(seed)
    )
    flat = noise.flatten(1)
    middle = flat.sort(1).values[:, 1:-1].quantile(share, 1)
    return (flat < middle[:, None]).double().view_as(noise)


def lists(maps, masks):
    """Each sample as plain lists: the map with its channels summed, and whether each position is in the mask."""
    summed = maps.double().sum(1) if maps.ndim > 2 else maps.double()
    return list(zip(summed.flatten(1).tolist(), (masks.flatten(1) > 0).tolist(), strict=True))


# The definitions, one sample at a time, in plain Python: (values, whether they are in the mask) -> score.


def pointing(a, inside):
    largest = [place for place, value in enumerate(a) if value == max(a)]
    return sum(inside[place] for place in largest) / len(largest)


def mass(part):
    def share(a, inside):
        every = [part(value) for value in a]
        return math.fsum(v for v, here in zip(every, inside, strict=True) if here) / math.fsum(every)

    return share


def rank(a, inside):
    """Among all orders that put larger values first: the mean share of the first m that is in the mask."""
    size = sum(inside)
    last = sorted(a, reverse=True)[size - 1]
    above = [place for place, value in enumerate(a) if value > last]
    tied = [place for place, value in enumerate(a) if value == last]
    sure = sum(inside[place] for place in above)
    choices = list(itertools.combinations(tied, size - len(above)))
    return sum(sure + sum(inside[place] for place in choice) for choice in choices) / len(choices) / size


def area(a, inside):
    pairs = [
        (one > other) + (one == other) / 2
        for one, here in zip(a, inside, strict=True)
        for other, there in zip(a, inside, strict=True)
        if here and not there
    ]
    return sum(pairs) / len(pairs)


LITERAL = {
    "hit": pointing,
    "positive_mass": mass(lambda v: max(v, 0.0)),
    "absolute_mass": mass(abs),
    "squared_mass": mass(lambda v: v * v),
    "rank_accuracy": rank,
    "roc_auc": area,
}


def literal(measure, maps, masks, sign="signed"):
    return [LITERAL[measure]([SIGNS[sign](v) for v in a], inside) for a, inside in lists(maps, masks)]


def few_values(kind, n=6, seed=0):
    """Maps with many ties, few enough at each value that every choice among them can be listed."""
    shape = (n, 1, *SHAPES[kind][1:]) if len(SHAPES[kind]) > 1 else (n, *SHAPES[kind])
    return tied(*shape, seed=seed, values=9 if kind == "image" else 5)


@each_kind
@each_metric
def test_each_score_is_what_its_definition_says_in_a_loop(name, kind):
    maps, masks = normal(6, *SHAPES[kind]), masks_for(6, kind)
    for sign in SIGNS if "sign" in METRICS[name].options else ("signed",):
        frame = scores(name, maps, masks, **({"sign": sign} if "sign" in METRICS[name].options else {}))
        for measure in SCORES[name]:
            assert values(frame, measure).tolist() == pytest.approx(literal(measure, maps, masks, sign), rel=1e-12)


@each_kind
@each_metric
def test_ties_count_as_the_mean_over_all_orders_of_them(name, kind):
    maps, masks = few_values(kind), masks_for(6, kind, share=0.1)
    frame = scores(name, maps, masks)
    for measure in SCORES[name]:
        assert values(frame, measure).tolist() == pytest.approx(literal(measure, maps, masks), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rank_accuracy_is_the_mean_over_all_permutations_of_tied_positions(seed):
    """The very definition: sort by every order of 6 positions that is compatible with the values."""
    maps = torch.randint(0, 3, (1, 6), generator=torch.Generator().manual_seed(seed)).double()
    masks = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]]).double()
    a, inside = lists(maps, masks)[0]
    orders = [
        order
        for order in itertools.permutations(range(6))
        if all(a[one] >= a[other] for one, other in itertools.pairwise(order))
    ]
    expected = sum(sum(inside[place] for place in order[:3]) / 3 for order in orders) / len(orders)
    assert values(scores("relevance_rank", maps, masks), "rank_accuracy").item() == pytest.approx(expected, rel=1e-12)


def test_hit_is_the_share_of_the_largest_positions_in_the_mask():
    maps = torch.tensor([[2.0, 2.0, 1.0, 2.0], [3.0, 1.0, 1.0, 1.0], [0.0, -1.0, 0.0, 0.0]])
    masks = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    frame = scores("pointing_game", maps, masks)
    assert values(frame, "hit").tolist() == pytest.approx([1 / 3, 1.0, 0.0])
    assert values(frame, "chance").tolist() == [0.5, 0.5, 0.25]
    assert values(frame, "lift").tolist() == pytest.approx([-1 / 3, 1.0, -1 / 3])


@each_kind
@pytest.mark.parametrize("make", [normal, tied])
def test_roc_auc_is_that_of_scikit_learn(kind, make):
    maps, masks = make(20, *SHAPES[kind]), masks_for(20, kind)
    for sign, change in SIGNS.items():
        expected = [roc_auc_score(inside, [change(v) for v in a]) for a, inside in lists(maps, masks)]
        assert values(scores("roc_auc", maps, masks, sign=sign), "roc_auc").tolist() == pytest.approx(
            expected, rel=1e-12
        )


def theirs(metric, maps, masks, **options):
    score = metric(abs=False, normalise=False, disable_warnings=True, **options)
    arrays = {"x_batch": maps.numpy(), "a_batch": maps.sum(1, keepdim=True).numpy(), "s_batch": masks.numpy()}
    found = score(model=Linear(maps[:1].flatten(1)).eval(), y_batch=np.zeros(len(maps), int), device="cpu", **arrays)
    return np.array(found, dtype=float)


@pytest.mark.parametrize(
    ("metric", "name", "measure"),
    [
        (quantus.PointingGame, "pointing_game", "hit"),
        (quantus.RelevanceMassAccuracy, "relevance_mass", "positive_mass"),
        (quantus.RelevanceRankAccuracy, "relevance_rank", "rank_accuracy"),
        (quantus.AUC, "roc_auc", "roc_auc"),
    ],
)
def test_quantus_agrees_on_positive_maps_without_ties(metric, name, measure):
    maps, masks = normal(20, *SHAPES["image"]).abs(), masks_for(20, "image")
    expected = theirs(metric, maps, masks)
    assert len(set(expected)) > 1
    assert values(scores(name, maps, masks), measure).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_relevance_mass_of_quantus_leaves_negative_values_in_and_the_unit_interval():
    maps, masks = normal(50, *SHAPES["image"]), masks_for(50, "image")
    expected, ours = theirs(quantus.RelevanceMassAccuracy, maps, masks), scores("relevance_mass", maps, masks)
    assert expected.min() < 0
    assert expected.max() > 1
    assert values(ours, "positive_mass").min() > 0
    assert values(ours, "positive_mass").max() < 1
    clipped = theirs(quantus.RelevanceMassAccuracy, maps.sum(1, keepdim=True).clamp(min=0), masks)
    assert values(ours, "positive_mass").tolist() == pytest.approx(clipped.tolist(), rel=1e-9)


def test_the_pointing_game_of_quantus_hits_empty_masks_and_takes_any_tie_for_a_hit():
    maps, masks = normal(2, *SHAPES["image"]).abs(), masks_for(2, "image")
    masks[0] = 0
    masks[1, 0, 0, 0], maps[1] = 1, 1.0
    maps[1, :, 8, 6] = 0.5
    assert theirs(quantus.PointingGame, maps, masks).tolist() == [1.0, 1.0]
    frame = scores("pointing_game", maps, masks)
    share = (masks[1].sum() - masks[1, 0, 8, 6]) / 62
    assert values(frame, "hit").tolist() == pytest.approx([math.nan, share.item()], nan_ok=True)


@pytest.mark.parametrize("tolerance", [1, 2, 3, 5, 8, 15])
def test_a_tolerance_makes_hits_of_what_is_within_that_distance_of_the_mask(tolerance):
    """For each position of a small image its own map, which is largest there and nowhere else."""
    height, width = 21, 17
    mask = torch.zeros(1, 1, height, width)
    mask[0, 0, 3, 2] = mask[0, 0, 4, 2] = mask[0, 0, 15, 16] = 1
    far = ndimage.distance_transform_edt(mask[0, 0].numpy() == 0)
    maps = torch.eye(height * width).view(-1, 1, height, width)
    frame = scores("pointing_game", maps, mask.expand_as(maps), tolerance=tolerance)
    within = far.flatten() <= tolerance
    if within.all():
        assert set(frame["reason"]) == {"every position is within the tolerance"}
        return
    assert values(frame, "hit").tolist() == within.astype(float).tolist()
    assert values(frame, "chance").tolist() == pytest.approx([within.mean()] * len(maps), rel=1e-12)


@pytest.mark.parametrize("tolerance", [1, 4])
def test_a_tolerance_in_a_signal_is_along_time(tolerance):
    mask = torch.zeros(1, 1, 31)
    mask[0, 0, 5] = mask[0, 0, 29] = 1
    maps = torch.eye(31)[:, None].expand(-1, 2, -1)
    within = [min(abs(t - 5), abs(t - 29)) <= tolerance for t in range(31)]
    frame = scores("pointing_game", maps, mask.expand(31, -1, -1), tolerance=tolerance)
    assert values(frame, "hit").tolist() == [float(each) for each in within]


def test_a_tolerance_that_reaches_everything_tells_nothing():
    mask = torch.zeros(2, 1, 9, 7)
    mask[0, 0, 4, 3] = mask[1, 0, 0, 0] = 1
    frame = scores("pointing_game", normal(2, *SHAPES["image"]), mask, tolerance=6)
    reasons = frame.set_index("sample")["reason"]
    assert set(reasons["s0"]) == {"every position is within the tolerance"}
    assert reasons["s1"].isna().all()
    assert values(frame, "chance")[1] == (ndimage.distance_transform_edt(mask[1, 0].numpy() == 0) <= 6).mean()


def test_features_of_a_table_have_no_tolerance():
    maps, masks = normal(3, 12), masks_for(3, "table")
    with pytest.raises(NotApplicableError, match="no neighbours"):
        scores("pointing_game", maps, masks, tolerance=1)
    assert values(scores("pointing_game", maps, masks, tolerance=0), "hit").isfinite().all()


@each_kind
@each_metric
def test_random_maps_score_as_stated_for_chance(name, kind):
    n = 500
    maps, masks = normal(n, *SHAPES[kind]), masks_for(n, kind)
    frame = scores(name, maps, masks)
    chance = values(frame, "chance")
    stated = masks.flatten(1).double().mean(1) if name != "roc_auc" else torch.full((n,), 0.5).double()
    torch.testing.assert_close(chance, stated, rtol=1e-12, atol=0)
    for measure in SCORES[name]:
        excess = values(frame, measure) - stated
        assert excess.std() > 0
        assert excess.mean().abs() < 4 * excess.std() / n**0.5
    lift = values(frame, "lift")
    assert lift.mean().abs() < 4 * lift.std() / n**0.5
    expected = (values(frame, HEADLINES[name]) - stated) / (1 - stated)
    torch.testing.assert_close(lift, expected, rtol=1e-12, atol=1e-15)
    assert METRICS[name].chance == 0
    assert METRICS[name].headline == "lift"


@pytest.mark.parametrize("tolerance", [1, 2])
def test_chance_grows_with_the_tolerance(tolerance):
    n = 500
    maps, masks = normal(n, *SHAPES["image"]), torch.zeros(n, 1, 9, 7)
    masks[:, :, 2, 3] = 1
    frame = scores("pointing_game", maps, masks, tolerance=tolerance)
    assert values(frame, "chance").tolist() == pytest.approx([{1: 5, 2: 13}[tolerance] / 63] * n, rel=1e-12)
    lift = values(frame, "lift")
    assert lift.mean().abs() < 4 * lift.std() / n**0.5


@each_kind
@each_metric
def test_the_mask_is_the_best_map_and_its_complement_the_worst(name, kind):
    masks = masks_for(8, kind)
    best, worst = scores(name, masks, masks), scores(name, 1 - masks, masks)
    assert values(best, "lift").tolist() == [1.0] * 8
    for measure in SCORES[name]:
        assert values(best, measure).tolist() == [1.0] * 8
        # Where the mask covers more than half of the positions some of the first m must lie in it.
        least = [max(0.0, 2 - 1 / m) if measure == "rank_accuracy" else 0.0 for m in masks.flatten(1).mean(1).tolist()]
        assert values(worst, measure).tolist() == least
    assert (values(worst, "lift") < 0).all()


@each_kind
@each_metric
def test_the_mask_with_its_sign_reversed_is_never_above_chance(name, kind):
    masks = masks_for(8, kind)
    frame = scores(name, -masks, masks)
    if name == "relevance_mass":
        # Nothing speaks for the class; what does not look at signs cannot tell this map from the best one.
        lost = frame[frame["measure"].isin(["positive_mass", "chance", "lift"])]
        assert set(lost["reason"]) == {"nothing is positive"}
        assert values(frame, "absolute_mass").tolist() == values(frame, "squared_mass").tolist() == [1.0] * 8
    else:
        assert values(frame, HEADLINES[name]).tolist() == [0.0] * 8
        assert (values(frame, "lift") < 0).all()
        assert values(scores(name, -masks, masks, sign="absolute"), "lift").tolist() == [1.0] * 8


@each_kind
@each_metric
def test_no_score_depends_on_the_scale_of_a_map_or_on_the_other_samples(name, kind):
    maps, masks = normal(7, *SHAPES[kind]), masks_for(7, kind)
    frame, order = scores(name, maps, masks), [4, 0, 6, 2, 1, 3, 5]
    for power in (-600, -20, 20, 600):
        again = scores(name, maps * 2.0**power, masks)
        assert again["value"].tolist() == frame["value"].tolist()
    shuffled = scores(name, maps[order], masks[order])
    alone = [scores(name, maps[i : i + 1], masks[i : i + 1]) for i in range(7)]
    for measure in (*SCORES[name], "chance", "lift"):
        assert values(shuffled, measure).tolist() == values(frame, measure)[order].tolist()
        assert [values(each, measure).item() for each in alone] == values(frame, measure).tolist()


@each_metric
def test_channels_are_summed_before_anything_else(name):
    """Two channels that cancel where the mask is and add up elsewhere: larger there in each, smaller in their sum."""
    masks = torch.zeros(1, 1, 2, 3)
    masks[..., 0] = 1
    maps = torch.tensor([[[[5.0, 1.0, 1.0], [5.0, 1.0, 1.0]], [[-5.0, 1.0, 1.0], [-5.0, 1.0, 1.0]]]])
    assert values(scores(name, maps, masks), SCORES[name][0]).tolist() == [0.0]
    torch.testing.assert_close(
        values(scores(name, maps.sum(1, keepdim=True), masks), "lift"), values(scores(name, maps, masks), "lift")
    )


@each_metric
@pytest.mark.parametrize("kind", ["image", "table"])
def test_nothing_is_said_where_there_is_nothing_to_tell_and_the_reason_is_given(name, kind):
    maps, masks = normal(8, *SHAPES[kind]), masks_for(8, kind)
    masks[0], masks[1] = 0.0, 1.0
    maps[2], maps[3] = 0.7, 0.0
    maps[4].view(-1)[3], maps[5].view(-1)[3], maps[6].view(-1)[3] = math.nan, math.inf, -math.inf
    expected = ["empty mask", "full mask", *2 * ["constant map"], *3 * ["not finite"], None]
    frame = scores(name, maps, masks)
    for _, each in frame.groupby("measure"):
        assert [None if reason is None or reason != reason else reason for reason in each["reason"]] == expected
        assert each["value"].isna().tolist() == [*7 * [True], False]


@each_metric
def test_an_empty_mask_is_the_reason_even_where_the_map_is_broken_too(name):
    maps, masks = normal(2, *SHAPES["image"]), masks_for(2, "image")
    masks[0], maps[0] = 0.0, math.nan
    assert set(scores(name, maps, masks).set_index("sample").loc["s0", "reason"]) == {"empty mask"}


@each_kind
def test_of_maps_without_positive_values_only_the_positive_mass_is_unknown(kind):
    maps, masks = -normal(5, *SHAPES[kind]).abs() - 0.1, masks_for(5, kind)
    for name in SCORES:
        frame = scores(name, maps, masks)
        for measure in SCORES[name]:
            if measure == "positive_mass":
                assert set(frame[frame["measure"] == measure]["reason"]) == {"nothing is positive"}
            else:
                assert values(frame, measure).tolist() == pytest.approx(literal(measure, maps, masks), rel=1e-12)


@each_metric
def test_maps_and_masks_of_one_position_have_the_values_by_hand(name):
    """A single positive position of 63, in the mask and outside; a mask of one position, and all but one."""
    maps, masks = torch.zeros(4, 1, 9, 7).double(), torch.zeros(4, 1, 9, 7).double()
    maps[:, 0, 2, 3] = 1
    masks[0, 0, 2, 3] = masks[1, 0, 5, 5] = 1
    masks[2], masks[3] = 1 - masks[1], 1 - masks[0]
    expected = {
        "hit": [1, 0, 1, 0],
        "positive_mass": [1, 0, 1, 0],
        # 61 of the 62 equal zeros are taken beside the one; then 62 of 62.
        "rank_accuracy": [1, 0, (1 + 61 * 61 / 62) / 62, 61 / 62],
        "roc_auc": [1, 61 / 62 / 2, 1 / 62 + 61 / 62 / 2, 0],
    }[HEADLINES[name]]
    assert values(scores(name, maps, masks), HEADLINES[name]).tolist() == pytest.approx(expected, rel=1e-12)


@each_kind
@each_metric
def test_all_is_invalid_where_the_model_does_not_use_what_was_planted(name, kind):
    maps, masks = normal(3, *SHAPES[kind]), masks_for(3, kind)
    maps[0], masks[1] = 1.0, 0.0
    frame = scores(name, maps, masks, no_truth="the model looks elsewhere")
    assert frame["value"].isna().all()
    assert set(frame["reason"]) == {"invalid: the model looks elsewhere"}


@each_metric
def test_a_mask_of_another_class_than_the_explained_one_says_nothing(name):
    maps, masks = normal(4, *SHAPES["image"]), masks_for(4, "image")
    maps[0], masks[1] = 1.0, 0.0
    case = case_with(maps, masks)
    case.of_another = torch.tensor([True, True, False, True])
    reason = "the mask is of another class"
    for _, each in rows(case, name).groupby("measure"):
        assert each["reason"].astype(object).fillna("").tolist() == [reason, reason, "", reason]
        assert each["value"].isna().tolist() == [True, True, False, True]
    case.no_truth = "the model looks elsewhere"
    assert set(rows(case, name)["reason"]) == {"invalid: the model looks elsewhere"}


@each_metric
def test_methods_and_float32_maps_go_the_same_way(name):
    """The oracle control shows the mask itself, and single precision changes nothing but rounding."""
    maps, masks = normal(5, *SHAPES["image"]), masks_for(5, "image")
    case = case_with(maps, masks)
    case.explainer = case_of(case.model, case.x, case.target, "oracle").explainer
    del case.__dict__["maps"]
    assert values(rows(case, name), "lift").tolist() == [1.0] * 5
    single = scores(name, maps.float(), masks.float())
    torch.testing.assert_close(values(single, "lift"), values(scores(name, maps, masks), "lift"), rtol=1e-5, atol=1e-6)
