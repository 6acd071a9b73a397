"""The label randomization test: its comparisons are what they are called, and an invalid partner fails nobody."""

import pytest
import torch
from scipy.stats import spearmanr

from cases import Functional, case_of, network, rows, values
from harness.case import Explainer, Partner
from harness.data import of_tensors
from harness.data.bundled import mnist_5k
from harness.entries import Method
from harness.methods.gradients import gradient
from harness.metrics.comparison import shifted
from harness.models.school import invalid
from harness.space import InputSpace
from harness.training import Trained

SIDE = 14
REASON = "the partner memorized 80.0% of its permuted labels, needs 95%"
TO_THE_PARTNER = ["test", "floor_shift", "floor_random"]
CEILINGS = ["ceiling_rerun", "ceiling_retrain"]


def another(seed):
    """A network like that of `network("functional")`, with other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Functional().double().eval()


def case_with(maps, *, partner=None, second=None, retrained=None, invalid="", invalid_second="", n=6):
    """A case whose partners and re-trained network are these, by default three different ones."""
    model, _, target = network("functional", torch.float64, n=n)
    x = torch.rand(n, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = case_of(model, x, target, maps, build=Functional)
    case.source.__dict__["_partner"] = Partner(partner or another(2), 0.97, 0.1, invalid)
    case.source.__dict__["_second_partner"] = Partner(second or another(3), 0.98, 0.2, invalid_second)
    case.source.__dict__["_retrained"] = (retrained or another(4), 0.9)
    return case


def similar(frame):
    return frame[frame["measure"].isin(["spearman", "ssim", "hog"])]


def test_a_method_that_ignores_the_model_is_exactly_one_in_every_comparison():
    frame = rows(case_with("sobel"), "label_randomization")
    for role in ("test", "floor_random", *CEILINGS):
        found = similar(frame)[similar(frame)["role"] == role]
        assert set(found["measure"]) == {"spearman", "ssim", "hog"}
        assert (found["value"] == 1).all(), role
    assert (values(frame, "spearman", role="floor_shift") < 0.9).all()


def test_a_method_that_looks_at_the_model_differs_and_for_the_same_model_does_not():
    for name in TO_THE_PARTNER[:1] + CEILINGS[1:]:
        other = rows(case_with("gradient"), "label_randomization")
        assert (values(other, "spearman", role=name, sign="signed") < 0.9).all()
    model = network("functional", torch.float64)[0]
    same = rows(case_with("gradient", partner=model, second=model, retrained=model), "label_randomization")
    for role in ("test", "floor_random", *CEILINGS):
        assert (values(same, "spearman", role=role) == 1).all()
    assert (values(same, "prediction_kept", role="test") == 1).all()


def test_each_role_compares_the_maps_of_its_two_networks():
    case = case_with("gradient")
    frame = rows(case, "label_randomization")
    networks = {
        "trained": case.model,
        "partner": case.partner().model,
        "second": case.partner(other=True).model,
        "retrained": case.retrained(),
    }
    maps = {name: gradient(model, case.x, case.target) for name, model in networks.items()}
    words = case.draws("label_randomization", "shift").uniform(2)
    maps["shifted"] = shifted(maps["partner"], words)
    pairs = {
        "test": ("trained", "partner"),
        "floor_shift": ("trained", "shifted"),
        "floor_random": ("partner", "second"),
        "ceiling_rerun": ("trained", "trained"),
        "ceiling_retrain": ("trained", "retrained"),
    }
    for role, (a, b) in pairs.items():
        for sign in ("signed", "absolute"):
            first, second = (
                (maps[name].abs() if sign == "absolute" else maps[name]).sum(1).flatten(1) for name in (a, b)
            )
            wanted = [float(spearmanr(i, j).statistic) for i, j in zip(first, second, strict=True)]
            ours = values(frame, "spearman", role=role, sign=sign)
            torch.testing.assert_close(ours, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6, msg=role)
    predicted = {name: model(case.x).argmax(1) for name, model in networks.items()}
    for role, name in (("test", "partner"), ("ceiling_retrain", "retrained")):
        kept = (predicted[name] == predicted["trained"]).double()
        torch.testing.assert_close(values(frame, "prediction_kept", role=role), kept)


def test_a_stochastic_method_has_new_noise_for_each_network():
    model = network("functional", torch.float64)[0]
    frame = rows(case_with("smoothgrad", partner=model, second=model, retrained=model), "label_randomization")
    found = [values(frame, "spearman", role=role, sign="signed") for role in ("test", "floor_random", *CEILINGS)]
    assert all((similarity < 1).all() for similarity in found)
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_partner_that_did_not_memorize_makes_the_test_invalid_not_failed():
    frame = similar(rows(case_with("gradient", invalid=REASON), "label_randomization"))
    judged = frame["role"].isin(TO_THE_PARTNER)
    assert frame.loc[judged, "value"].isna().all()
    assert set(frame.loc[judged, "reason"]) == {f"invalid: {REASON}"}
    assert frame.loc[~judged, "value"].notna().all()


@pytest.mark.parametrize("value", [0.0, 0.3, torch.nan, torch.inf])
@pytest.mark.parametrize("whose", ["trained", "partner"])
def test_a_map_without_an_order_or_a_finite_value_is_like_no_other(whose, value):
    """Of the third sample only, on one of the two networks; nothing is said of the other samples but what was."""
    other = another(2)

    def broken(model, x, target, *, ids):
        maps = gradient(model, x, target)
        maps[[each == "s2" and model is networks[whose] for each in ids]] = value
        return maps

    case = case_with("gradient", partner=other)
    networks = {"trained": case.model, "partner": other}
    case.explainer = Explainer(Method("broken", broken, "control", 1, ()), {})
    frames = [rows(each, "label_randomization") for each in (case, case_with("gradient", partner=other))]
    found, ordinary = (frame[frame["measure"] == "spearman"].reset_index() for frame in frames)
    touched = [*TO_THE_PARTNER[:2], *CEILINGS] if whose == "trained" else TO_THE_PARTNER
    lost = (found["sample"] == "s2") & found["role"].isin(touched)
    assert found[lost]["value"].isna().all()
    assert found[lost]["reason"].str.startswith("constant map" if value in (0.0, 0.3) else "not finite").all()
    assert found[~lost]["value"].equals(ordinary[~lost]["value"])


def test_an_invalid_second_partner_takes_away_the_floor_and_nothing_else():
    frame = similar(rows(case_with("gradient", invalid_second=REASON), "label_randomization"))
    floor = frame["role"] == "floor_random"
    assert frame.loc[floor, "value"].isna().all()
    assert set(frame.loc[floor, "reason"]) == {f"invalid: the second one: {REASON}"}
    assert frame.loc[~floor, "value"].notna().all()
    assert set(frame.loc[~floor, "role"]) == {"test", "floor_shift", *CEILINGS}


def test_without_a_retrained_network_there_is_no_such_ceiling():
    case = case_with("gradient")
    case.source.__dict__["_retrained"] = None
    frame = rows(case, "label_randomization")
    assert "ceiling_retrain" not in set(frame["role"])
    assert "retrained_test_accuracy" not in set(frame["measure"])
    assert "ceiling_rerun" in set(frame["role"])


def test_how_well_the_networks_were_trained_stands_beside_it():
    frame = rows(case_with("gradient"), "label_randomization")
    accuracies = {
        "partner_train_accuracy": 0.97,
        "partner_test_accuracy": 0.1,
        "second_partner_train_accuracy": 0.98,
        "second_partner_test_accuracy": 0.2,
        "retrained_test_accuracy": 0.9,
    }
    for measure, value in accuracies.items():
        assert values(frame, measure).tolist() == [value]


def test_the_measures_are_those_that_were_asked_for():
    frame = rows(case_with("gradient"), "label_randomization", measures=["cosine"])
    similarities = set(frame["measure"]) & {"spearman", "ssim", "hog", "cosine", "pearson", "top_k"}
    assert similarities == {"cosine"}


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        (1.0, 0.1, ""),
        (0.95, 0.069, ""),
        (0.949, 0.1, "the partner memorized 94.9% of its permuted labels, needs 95%"),
        (1.0, 0.2, "the partner's test accuracy 20.0% is above chance, 10.0%"),
    ],
)
def test_a_partner_must_have_memorized_and_know_nothing_more(train, test, reason):
    assert invalid(Trained({}, train, test), mnist_5k()) == reason


def test_knowing_the_commonest_class_is_knowing_nothing():
    labels = torch.tensor([0] * 700 + [1, 2, 3] * 100)
    data = of_tensors("skewed", torch.rand(1000, 3), labels, InputSpace("table"))
    assert invalid(Trained({}, 1.0, 0.7), data) == ""
    assert invalid(Trained({}, 1.0, 0.77), data) == "the partner's test accuracy 77.0% is above chance, 70.0%"
