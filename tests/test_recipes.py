"""The recipes of the built-in networks: good on true labels, and a valid partner on permuted ones. Slow: it trains."""

from pathlib import Path

import pytest
import torch

from harness.model_entries import models_of
from harness.places import Place
from harness.progress import silent
from harness.subjects import load_entry
from harness.training import accuracy


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("mlp", 0.95),
        pytest.param("cnn-gelu", 0.95, marks=pytest.mark.slow),
        pytest.param("cnn-tanh", 0.95, marks=pytest.mark.slow),
        pytest.param("vit", 0.92, marks=pytest.mark.slow),
    ],
)
def test_a_network_is_good_and_its_partner_has_memorized_noise(name, least):
    (entry,) = models_of([name], None, Place("test"))
    loaded, data = load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)
    assert accuracy(loaded.model, data.batch(range(len(data))), data.labels) >= least
    partner = loaded.partner()
    assert partner.invalid == ""
    assert partner.train_accuracy >= 0.98
