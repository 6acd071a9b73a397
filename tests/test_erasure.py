"""Comprehensiveness and sufficiency of few units: no fraction is rounded to nothing, or to everything."""

import pytest
import torch

from cases import Linear, case_of, rows, values


def table_of(features, n=4):
    """A linear model with two classes, and its exact maps: (case, contributions of each feature to the logit)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, features, generator=generator, dtype=torch.float64)
    x, target = torch.rand(n, features, generator=generator, dtype=torch.float64), torch.arange(n) % 2
    return case_of(Linear(weight), x, target, weight[target] * x), weight


@pytest.mark.parametrize(
    ("features", "removed", "kept"),
    [(9, (1, 1, 1, 2, 4), (1, 1, 1, 2, 5)), (3, (1, 1, 1, 1, 2), (1, 1, 1, 1, 1)), (200, (2, 10, 20, 40, 100), None)],
)
def test_every_fraction_takes_at_least_one_unit_and_leaves_one(features, removed, kept):
    case, weight = table_of(features)
    order = case.maps.argsort(1, descending=True)

    def lost(row, gone):
        left = case.x[row].clone()
        left[gone] = 0
        probabilities = [(weight @ each).softmax(0)[case.target[row]] for each in (case.x[row], left)]
        return float(probabilities[0] - probabilities[1])

    for metric, mode, numbers in (
        ("comprehensiveness", "most_first", removed),
        ("sufficiency", "least_first", kept or removed),
    ):
        frame = rows(case, metric, fill="black")
        for row in range(len(case.x)):
            parts = [order[row, :number] if mode == "most_first" else order[row, number:] for number in numbers]
            expected = [lost(row, part) for part in parts]
            # Steps are fractions removed, so that what keeps the least stands last.
            found = values(frame, f"{metric}_at_fraction", sample=f"s{row}", mode=mode).tolist()
            assert found == pytest.approx(expected if mode == "most_first" else expected[::-1], abs=1e-12)
            [mean] = values(frame, metric, sample=f"s{row}", mode=mode).tolist()
            assert mean == pytest.approx(sum(expected) / 5, abs=1e-12)
        assert (values(frame, f"{metric}_at_fraction") != 0).all()


def test_a_single_unit_is_removed_whole_and_has_no_order():
    case, _ = table_of(1)
    frame = rows(case, "comprehensiveness", fill="black")
    assert (values(frame, "comprehensiveness", mode="random") != 0).all()
    assert set(frame.loc[frame["value"].isna(), "reason"]) == {"constant map"}
    assert values(frame, "comprehensiveness_beyond_random").isnan().all()
