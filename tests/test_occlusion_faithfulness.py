"""Occlusion faithfulness: 1 for exact attributions of a linear model, -1 reversed, and a slow literal twin."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from cases import case_of, network, rows, values


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_exact_attributions_of_a_linear_model_correlate_perfectly(linear_image, patch, sign):
    model, weight, x, target = linear_image
    case = case_of(model, x, target, sign * weight[target] * (x - 0.5))
    frame = rows(case, "occlusion_faithfulness", fill="grey", patch=patch)
    for measure in ("pearson", "spearman"):
        torch.testing.assert_close(values(frame, measure), torch.full((7,), float(sign), dtype=torch.float64))


def test_a_slow_literal_twin_agrees_also_at_ragged_borders():
    model, x, target = network("functional", torch.float64)
    maps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frame = rows(case_of(model, x, target, maps), "occlusion_faithfulness", fill="white", patch=5)
    for sample in range(len(x)):
        sums, drops = [], []
        for top in range(0, 12, 5):
            for left in range(0, 12, 5):
                image = x[sample].clone()
                image[:, top : top + 5, left : left + 5] = 1.0
                with torch.no_grad():
                    drop = (model(x[sample : sample + 1]) - model(image[None]))[0, target[sample]]
                sums.append(float(maps[sample, :, top : top + 5, left : left + 5].sum()))
                drops.append(float(drop))
        assert float(values(frame, "pearson")[sample]) == pytest.approx(pearsonr(sums, drops).statistic, abs=1e-10)
        assert float(values(frame, "spearman")[sample]) == pytest.approx(spearmanr(sums, drops).statistic, abs=1e-10)


def test_what_cannot_be_correlated_is_undefined_with_its_reason(linear_image):
    model, weight, x, target = linear_image
    maps = (weight[target] * x).clone()
    maps[0] = 1.0
    maps[1] = 0.0
    maps[1, 0, ::2, ::2] = 1.0
    x = x.clone()
    x[2] = 0.0
    frame = rows(case_of(model, x, target, maps), "occlusion_faithfulness", fill="black", patch=2)
    reasons = frame.loc[frame["measure"] == "pearson", "reason"].astype(object)
    assert list(reasons.iloc[:3]) == ["constant map", "the same sum in every patch", "the same drop for every patch"]
    assert reasons.iloc[3:].isna().all()
