"""Fixtures, one cache for trained networks (its keys hold everything that they depend on), and one thread."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from cases import Linear
from harness import registry

# Small tensors are slower on several threads, and what a test starts must compute the same bits.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ.setdefault("ATTRIBUTION_HARNESS_CACHE", str(Path(__file__).parents[1] / ".cache"))


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that at the end no worker waits for one that began late."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def _forget_what_is_registered():
    kept = [each for each in vars(registry).values() if isinstance(each, registry.Registry)]
    before = [dict(each) for each in kept]
    yield
    for each, entries in zip(kept, before, strict=True):
        each._entries = entries


# What a test registers is gone after it, and what a fixture of its module does after that module, so that no test sees
# the plugins of another.
registries_of_a_test = pytest.fixture(autouse=True)(_forget_what_is_registered)
registries_of_a_module = pytest.fixture(autouse=True, scope="module")(_forget_what_is_registered)


@pytest.fixture
def linear_image():
    """A linear model on 2 x 6 x 6 images with 5 classes, float64: (model, weight [classes, 2, 6, 6], x, target)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2 * 6 * 6, generator=generator, dtype=torch.float64)
    x = torch.randn(7, 2, 6, 6, generator=generator, dtype=torch.float64)
    model = Linear(weight, torch.randn(5, generator=generator, dtype=torch.float64)).eval()
    return model, weight.view(5, 2, 6, 6), x, torch.arange(7) % 5


@pytest.fixture
def mlp_batch():
    """Inputs of `relu_mlp()` and their targets."""
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(10) % 5


@pytest.fixture(scope="module")
def browser():
    """A headless browser, for the tests of reports."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), "")
    assert found, "chromium is needed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
