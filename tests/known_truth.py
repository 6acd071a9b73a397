"""Networks whose right maps are known, with their samples, for tests."""

import pytest
import torch

from harness.data.evidence import MEAN, SAMPLES, STD, evidence
from harness.data.suppressors import suppressors
from harness.models.analytic import evidence_additive, evidence_linear, suppressor_optimal

SUBJECTS = {
    "region": (evidence_linear, lambda: evidence(truth="region")),
    "spots": (evidence_additive, lambda: evidence(truth="spots")),
    "suppressors": (suppressor_optimal, suppressors),
}
EVERY = range(SAMPLES)

each_subject = pytest.mark.parametrize("name", SUBJECTS)
each_picture = pytest.mark.parametrize("name", ["region", "spots"])


def subject(name, n=6, dtype=torch.float64):
    """The network, some samples with targets of both kinds, and what is black (zero in a table)."""
    source, data = SUBJECTS[name]
    x = data().batch(range(n)).to(dtype)
    black = torch.full_like(x, -MEAN / STD if x.ndim > 2 else 0.0)
    return source().build((), 0).to(dtype), x, torch.arange(n) % 2, black


def explained(model, x, target):
    with torch.no_grad():
        return model(x).gather(1, target[:, None])[:, 0]


def unit(maps):
    return maps / maps.flatten(1).norm(dim=1).view(-1, *(1,) * (maps.ndim - 1))


def cosine(one, other):
    return (unit(one) * unit(other)).flatten(1).sum(1)


def target_of(n):
    return torch.zeros(n, dtype=torch.int64)
