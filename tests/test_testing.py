"""`assert_sane`: passes for a gradient, and says what is wrong with the rest."""

import pytest
import torch
from torch import nn

import harness
from harness import InputError
from harness.testing import assert_sane


def build():
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 6))


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    return build().eval(), torch.randn(60, 30)


def test_a_gradient_is_sane_and_results_come_back(known):
    results = assert_sane(*known, method="gradient", build=build)
    assert isinstance(results, harness.Results)
    assert set(results.table("verdicts")["verdict"]) == {"PASS"}


def test_a_map_that_does_not_depend_on_the_network_is_not(known):
    def itself(model, x, target):
        """The input."""
        return x * 1.0

    with pytest.raises(
        AssertionError, match=r"itself: parameter_randomization is FAIL: .*does not depend on parameters"
    ):
        assert_sane(*known, method=itself, build=build)


def test_one_that_disagrees_with_itself_is_not(known):
    def noise(model, x, target):
        """Noise."""
        return torch.randn_like(x)

    with pytest.raises(AssertionError, match="noise: parameter_randomization is INVALID: uninformative"):
        assert_sane(*known, method=noise, build=build)


def test_what_is_not_decided_fails_unless_it_is_let_through(known):
    model, x = known
    few = [{"metric": "parameter_randomization", "full_draws": 3}]
    with pytest.raises(AssertionError, match=r"INCONCLUSIVE: 3 draws.*more samples"):
        assert_sane(model, x, tests=few, build=build)
    with pytest.warns(UserWarning, match="INCONCLUSIVE"):
        assert_sane(model, x, tests=few, build=build, undecided=True)


def test_a_test_without_a_verdict_is_none(known):
    with pytest.raises(AssertionError, match="gradient: completeness"):
        assert_sane(*known, tests=["completeness"], build=build)
    with pytest.raises(InputError, match="spearman of signed maps"):
        assert_sane(*known, measure="ssim", build=build)
    with pytest.raises(InputError, match="did you mean gradient"):
        assert_sane(*known, method="gradeint", build=build)
