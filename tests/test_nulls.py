"""The table of null similarities, held against the numbers that were measured with scipy and scikit-image."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter

from harness import nulls
from harness.data.bundled import mnist_5k
from harness.metrics.similarity import spearman
from harness.nulls import ROWS, markdown, null, similarities
from harness.random import Draws

COLUMNS = (
    "Spearman signed",
    "Spearman absolute",
    "SSIM min-max, range 1",
    "SSIM min-max, range 2",
    "SSIM absolute p99, range 1",
    "HOG",
)
# Mean and standard deviation as published, two decimals, in the order of the columns. What was not written down is set
# as it fits: blurring on the torus, HOG cells of 7 pixels at 28 x 28, 7 x 7 maps enlarged from corner to corner.
PUBLISHED = {
    "iid Gaussian, 28": ((0, 0.033), (0, 0.037), (0.02, 0.05), (0.07, 0.05), (0.01, 0.05), (0.15, 0.10)),
    "iid Student-t3, 28": ((0, 0.036), (0, 0.035), (0.09, 0.05), (0.27, 0.08), (0.02, 0.04), (0.27, 0.10)),
    "Gaussian blurred s=2, 28": ((0.01, 0.17), (0, 0.11), (0.04, 0.15), (0.12, 0.14), (0.03, 0.09), (0.06, 0.12)),
    "iid Gaussian, 224": ((0, 0.003), (0, 0.005), (0.03, 0.00), (0.12, 0.01), (0.01, 0.01), (0.03, 0.02)),
    "iid Student-t3, 224": ((0, 0.004), (0, 0.004), (0.57, 0.10), (0.79, 0.08), (0.02, 0.00), (0.47, 0.02)),
    "Gaussian blurred s=8, 224": ((0.01, 0.07), (-0.01, 0.06), (0.36, 0.04), (0.61, 0.04), (0.09, 0.02), (0, 0.03)),
    "ReLU(7x7 noise) bilinear to 224": (
        (0.04, 0.20),
        (0.04, 0.20),
        (0.36, 0.08),
        (0.47, 0.08),
        (0.30, 0.08),
        (0.03, 0.07),
    ),
    "noise * MNIST digit in [0, 1]": ((0, 0.08), (0.991, 0.006), (0.24, 0.13), (0.37, 0.12)),
    "noise * MNIST digit, standardized": ((0, 0.04), (0.22, 0.07), (0.10, 0.08), (0.27, 0.08)),
}
THEIR_PAIRS, ROUNDING = 100, 0.005


def surprise(mean, standard_error, published, spread):
    """The difference less the rounding of the published mean, in standard errors of both."""
    return (abs(mean - published) - ROUNDING) / np.hypot(standard_error, spread / THEIR_PAIRS**0.5)


def assert_as_published(row, pairs):
    table = null(row, pairs).set_index("similarity")
    for column, (mean, spread) in zip(COLUMNS, PUBLISHED[row], strict=False):
        found = table.loc[column]
        assert surprise(found["mean"], found["standard_error"], mean, spread) < 4, (column, found["mean"], mean)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_similarities_of_unrelated_maps_are_as_published(row):
    assert_as_published(row, 25 if "224" in row else 200)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if "224" in row])
def test_similarities_of_many_large_unrelated_maps_are_as_published(row):
    assert_as_published(row, 150)


def deviations(a, b, row):
    """Of each column from the published mean, in standard errors."""
    found = {name: (float(v.mean()), float(v.std()) / len(v) ** 0.5) for name, v in similarities(a, b).items()}
    return {name: surprise(*found[name], *PUBLISHED[row][index]) for index, name in enumerate(COLUMNS)}


def test_other_settings_are_told_apart_from_the_published_ones():
    draws = Draws.of([f"pair/{pair}" for pair in range(25)], "other settings")
    noises = [draws.normal(224, 224, draw=draw).numpy() for draw in range(2)]
    reflected = [torch.from_numpy(gaussian_filter(noise, 8.0, mode="reflect", axes=(1, 2))) for noise in noises]
    assert deviations(*reflected, "Gaussian blurred s=8, 224")["SSIM min-max, range 1"] > 4
    sharper = [torch.from_numpy(gaussian_filter(noise, 6.0, mode="wrap", axes=(1, 2))) for noise in noises]
    assert deviations(*sharper, "Gaussian blurred s=8, 224")["SSIM min-max, range 1"] > 4
    table = null("iid Student-t3, 28", 200).set_index("similarity")
    for name, published in (("HOG, cells of compare", 0.27), ("SSIM min-max, range 1", 0.27)):
        assert surprise(table.loc[name, "mean"], table.loc[name, "standard_error"], published, 0.10) > 4


def test_shared_zeros_of_digits_give_the_closed_form():
    pixels = (mnist_5k().batch(range(300))[:, 0] > 0).double()
    draws = Draws.of([f"pair/{pair}" for pair in range(300)], "closed form")
    a, b = (draws.normal(28, 28, draw=draw) * pixels for draw in range(2))
    q = 1 - pixels.flatten(1).mean(1)
    difference = spearman(a.abs(), b.abs()) - 3 * q / (3 * q + (1 - q) ** 2)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 300**0.5
    # Grey values make the ranks of the two noises more alike.
    grey = mnist_5k().batch(range(300))[:, 0]
    assert float(spearman(*(draws.normal(28, 28, draw=draw).abs() * grey for draw in range(2))).mean()) > 0.988


def test_chunks_do_not_change_the_table(monkeypatch):
    rows = ["iid Student-t3, 28", "noise * MNIST digit in [0, 1]"]
    whole = pd.concat([null(row, 9) for row in rows])
    monkeypatch.setattr(nulls, "CHUNK", 4)
    pd.testing.assert_frame_equal(pd.concat([null(row, 9) for row in rows]), whole)


def test_a_row_is_the_mean_spread_and_standard_error_of_its_pairs():
    draws = Draws.of([f"pair/{pair}" for pair in range(9)], "nulls", "iid Gaussian, 28")
    values = similarities(draws.normal(28, 28, draw=0), draws.normal(28, 28, draw=1))["HOG"].numpy()
    found = null("iid Gaussian, 28", 9).set_index("similarity").loc["HOG"]
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["sd"] == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert found["standard_error"] == pytest.approx(values.std(ddof=1) / 3, rel=1e-12)


def test_the_noise_is_what_its_name_says():
    draws = Draws.of([f"pair/{pair}" for pair in range(60)], "noise")
    assert stats.kstest(nulls.gaussian(draws, 0, 28).flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(nulls.student(draws, 0, 28).flatten().numpy(), stats.t(3).cdf).pvalue > 0.01
    maps, noise = nulls.coarse(draws, 0, 224), draws.normal(7, 7).relu()
    corners = [0, 0, -1, -1], [0, -1, 0, -1]
    assert torch.equal(maps[:, *corners], noise[:, *corners])


def test_the_command_prints_and_writes_the_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(nulls, "ROWS", {row: ROWS[row] for row in list(ROWS)[:2]})
    monkeypatch.setattr("sys.argv", ["nulls", "--pairs", "5", "--out", str(tmp_path / "out")])
    nulls.main()
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "nulls.md").read_text()
    table = pd.read_csv(tmp_path / "out" / "nulls.csv")
    assert len(table) == 2 * 7
    assert markdown(table).count("\n") == text.count("\n") == 4
    first = table.iloc[0]
    assert f"| iid Gaussian, 28 | 5 | {first['mean']:.3f} ± {first['standard_error']:.3f} ({first['sd']:.3f}) |" in text


@pytest.mark.parametrize("pairs", ["1", "1001"])
def test_the_command_refuses_more_pairs_than_digits(monkeypatch, capsys, pairs):
    monkeypatch.setattr("sys.argv", ["nulls", "--pairs", pairs])
    with pytest.raises(SystemExit):
        nulls.main()
    assert f"expected 2 to 1000, a digit for each, got {pairs}" in capsys.readouterr().err
