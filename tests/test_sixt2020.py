"""The rules for Sixt et al. on simulated rows, both ways."""

import pytest

from harness.claims import judge
from harness.evidence import TODAY, evidence_of
from harness.reproductions.sixt2020 import KEEPING, MODIFIED, REPRODUCTION
from made_rows import cascades, classes, cosines, results_of

KEPT, GONE = (0.95, 0.9, 0.5, 0.2), (0.1, 0.05, 0.0, 0.0)


def outcomes(cascade=None, logits=None, cosine=None, spread=0.02, n=40):
    """The world of the paper, but for the methods that are named."""
    made = {}
    for method in (*KEEPING, *MODIFIED):
        modified = method in MODIFIED
        stages = (cascade or {}).get(method, KEPT if modified else GONE)
        levels = {"up_to_sign": stages, "signed": stages}
        made[method, "parameter_randomization"] = cascades(levels, spread=spread, n=n)
        made[method, "random_logit"] = classes((logits or {}).get(method, 0.9 if modified else 0.1), spread=spread, n=n)
        value = (cosine or {}).get(method, 0.99 if modified else 0.5)
        made[method, "cosine_convergence"] = cosines(value, spread=spread / 4, n=n)
    table = judge(REPRODUCTION.claims, evidence_of(results_of(made), [TODAY]))
    return table.set_index("claim")["outcome"]


def test_in_the_world_of_the_paper_every_claim_is_reproduced():
    assert set(outcomes()) == {"reproduced"}


@pytest.mark.slow
@pytest.mark.parametrize("method", [*MODIFIED, *KEEPING])
@pytest.mark.parametrize("test", ["cascade", "logits", "cosine"])
def test_a_method_that_does_not_behave_as_claimed_is_not_reproduced_alone(method, test):
    modified = method in MODIFIED
    other = {
        "cascade": GONE if modified else KEPT,
        "logits": 0.1 if modified else 0.9,
        "cosine": 0.5 if modified else 0.99,
    }
    found = outcomes(**{test: {method: other[test]}})
    number = 1 + ["cascade", "logits", "cosine"].index(test)
    assert list(found[found != "reproduced"].index) == [f"S-{number} {method if modified else 'others'}"]
    assert set(found[found != "reproduced"]) == {"not reproduced"}


def test_a_handful_of_noisy_samples_tells_nothing():
    found = outcomes(spread=4.0, n=3)
    # Each of some thirty intervals misses by chance one time in twenty.
    assert (found == "not testable").sum() >= len(found) - 3
