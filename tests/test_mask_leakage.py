"""What masks say of the class: everything where their place is the class, nothing where they are random."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold

from cases import Linear, case_of, rows, values
from harness import METRICS
from harness.study import choose
from harness.types import InputError, NotApplicableError

SIDE, CLASSES = 8, 4


def case_with(maps, target):
    x = torch.rand(len(maps), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Linear(torch.ones(CLASSES, SIDE**2, dtype=torch.float64))
    return case_of(model, x, target, maps)


def noise(count, seed=1):
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corners(target):
    maps = noise(len(target))
    for row, label in enumerate(target.tolist()):
        top, left = divmod(label, 2)
        maps[row, :, top * 4 : top * 4 + 4, left * 4 : left * 4 + 4] += 5
    return maps


def test_a_map_whose_place_is_the_class_gives_it_away_and_random_masks_do_not():
    target = torch.arange(60) % CLASSES
    frame = rows(case_with(corners(target), target), "mask_leakage", fraction=0.25)
    assert values(frame, "class_from_mask", role="test").mean() == 1
    floor = values(frame, "class_from_mask", role="floor_random").mean()
    assert abs(float(floor) - 1 / CLASSES) < 4 * (0.25 * 0.75 / 60) ** 0.5
    assert values(frame, "commonest_class").tolist() == [0.25]


def test_it_reads_the_mask_and_not_the_values_of_the_map():
    target = torch.arange(60) % CLASSES
    maps = corners(target)
    frames = [rows(case_with(each, target), "mask_leakage", fraction=0.25) for each in (maps, maps.exp(), 3 * maps - 7)]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


def test_predictions_are_of_a_ridge_classifier_that_did_not_see_the_sample():
    target = torch.arange(50) % 2
    maps = noise(50)
    maps[target == 1, :, :2] += 0.7
    got = values(rows(case_with(maps, target), "mask_leakage", fraction=0.3), "class_from_mask", role="test")
    flat, removed = maps.flatten(1), round(0.3 * SIDE**2)
    marks = np.zeros(flat.shape)
    for row in range(50):
        marks[row, flat[row].argsort(descending=True)[:removed]] = 1
    right = torch.zeros(50)
    for fit, held_out in StratifiedKFold(5, shuffle=True, random_state=0).split(marks, target.numpy()):
        assert not set(fit) & set(held_out)
        model = RidgeClassifier(alpha=10.0).fit(marks[fit], target.numpy()[fit])
        right[held_out] = torch.from_numpy((model.predict(marks[held_out]) == target.numpy()[held_out]).astype("f4"))
    assert got.tolist() == right.tolist()
    assert 0.5 < right.mean() < 1


def test_classes_with_few_samples_and_flat_maps_are_left_out_with_a_reason():
    target = torch.tensor([0] * 10 + [1] * 10 + [2] * 3)
    maps = noise(23)
    maps[0] = 1.0
    frame = rows(case_with(maps, target), "mask_leakage")
    tested = frame[(frame["measure"] == "class_from_mask") & (frame["role"] == "test")]
    reasons = tested["reason"].tolist()
    assert reasons[0] == "constant map"
    assert reasons[20:] == ["fewer than 5 samples of its class"] * 3
    assert tested["value"].notna().sum() == 19


@pytest.mark.parametrize("fraction", [0.0, 1.0, 30.0])
def test_a_mask_of_nothing_or_everything_is_refused(fraction):
    with pytest.raises(InputError, match=r"metrics\[0\].fraction: .*option 'fraction' expects float, got"):
        choose(METRICS, [{"metric": "mask_leakage", "fraction": fraction}], "metrics")


def test_a_map_without_an_order_of_patches_is_left_out():
    target = torch.arange(24) % 2
    maps = noise(24)
    maps[3] = (-1.0) ** (torch.arange(SIDE)[:, None] + torch.arange(SIDE))
    frame = rows(case_with(maps, target), "mask_leakage", patch=2)
    tested = frame[(frame["measure"] == "class_from_mask") & (frame["role"] == "test")]
    expected = ["the same mean in every unit" if row == 3 else "" for row in range(24)]
    assert tested["reason"].astype(object).fillna("").tolist() == expected


def test_one_class_is_not_applicable():
    with pytest.raises(NotApplicableError, match="two classes with 5 samples each, the largest has 6"):
        rows(case_with(noise(8), torch.tensor([0] * 6 + [1] * 2)), "mask_leakage")
