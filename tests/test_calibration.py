"""Verdicts on simulated maps of which it is known how much survives: from the maps to the word. Slow: many runs."""

import numpy as np
import pytest
import torch

from harness.metrics.comparison import compare, ready
from harness.random import Draws
from harness.statistics import survival

SAMPLES, DRAWS, SIDE, RUNS = 200, 10, 12, 150
SAMPLE_EFFECT, DRAW_EFFECT = 0.1, 0.05


def simulated(survives, run):
    r"""Similarities of maps $a$ with $\rho a + \sqrt{1 - \rho^2} e$, whose Pearson correlation has the mean $\rho$.

    $\rho$ differs between samples and draws, around what survives; the floor is that of unrelated maps, 0, and the
    ceiling 1, so that the mean of $\rho$ is the survival.
    """
    draws = Draws.of([str(row) for row in range(SAMPLES)], "calibration", survives, run)
    trained = draws.normal(1, SIDE, SIDE)
    ours = ready(trained, "trained network", ["pearson"])
    of_samples = SAMPLE_EFFECT * draws.normal(1, draw=1)[:, 0]
    of_draws = DRAW_EFFECT * Draws.of(["draws"], "calibration", survives, run).normal(DRAWS)[0]
    # Symmetric around the truth where it is 0 or 1 as well: a correlation of 1 leaves no room above.
    room = min(1.0, 4 * (1 - survives))
    found = {"test": [], "floor_shift": [], "floor_random": []}
    previous = None
    for draw in range(DRAWS):
        rho = (survives + room * (of_samples + of_draws[draw])).clamp(-1, 1).view(-1, 1, 1, 1)
        noise = draws.normal(1, SIDE, SIDE, draw=2 + draw)
        maps = ready(rho * trained + (1 - rho**2).sqrt() * noise, "compared network", ["pearson"])
        words = draws.uniform(2, draw=100 + draw)
        found["test"].append(signed(ours, maps))
        found["floor_shift"].append(signed(ours, maps.shifted(words)))
        # Two randomized networks share nothing: their maps are the noise.
        random = ready(noise, "compared network", ["pearson"])
        if previous is not None:
            found["floor_random"].append(signed(previous, random))
        previous = random
    return {name: np.stack(values, 1) for name, values in found.items()} | {"ceiling": np.ones((SAMPLES, 1))}


def signed(a, b):
    (values,) = (score.values.numpy() for score in compare(a, b) if score.sign == "signed")
    return values


@pytest.mark.slow
def test_verdicts_on_simulated_maps_are_calibrated():
    """200 samples, 10 draws: at most 5 % of false PASS and of false FAIL, and 90 % decided where it is clear."""
    shares, estimates = {}, {}
    for survives in (0.0, 0.2, 0.35, 0.5, 1.0):
        results = [survival(**simulated(survives, run), output=np.zeros((SAMPLES, DRAWS))) for run in range(RUNS)]
        shares[survives] = {w: sum(r.verdict == w for r in results) / RUNS for w in ("PASS", "FAIL", "INCONCLUSIVE")}
        estimates[survives] = float(np.mean([r.survival.value for r in results]))
        print(survives, shares[survives], f"mean estimate {estimates[survives]:.3f}")
    for survives, estimate in estimates.items():
        assert estimate == pytest.approx(survives, abs=0.01)
    assert max(shares[at]["PASS"] for at in (0.2, 0.35, 0.5, 1.0)) <= 0.05
    assert max(shares[at]["FAIL"] for at in (0.0, 0.2, 0.35, 0.5)) <= 0.05
    assert shares[0.0]["PASS"] >= 0.9
    assert shares[1.0]["FAIL"] >= 0.9


def test_the_simulated_maps_are_as_alike_as_they_are_meant_to_be():
    for survives in (0.0, 0.35, 1.0):
        made = simulated(survives, 0)
        assert made["test"].mean() == pytest.approx(survives, abs=0.06)
        assert abs(made["floor_shift"].mean()) < 0.01
        assert torch.isfinite(torch.from_numpy(made["floor_random"])).all()
