"""On every torchvision family relevance adds up, DeepLIFT adds up, and guided backprop acts on every activation."""

import pytest
import torch
import torchvision

from families import SIDES, build, completeness, conservation, difference, guided_by_patching
from harness.methods.backward import guided_backprop
from harness.methods.gradients import gradient

FAST = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t")
every_family = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SIDES]
)


@every_family
def test_all_is_right(name, monkeypatch):
    model, x, target = build(name)
    assert conservation(model, x, target) < 1e-3
    assert completeness(model, x, target) < 1e-6
    expected, activations = guided_by_patching(model, x, target, monkeypatch)
    maps = guided_backprop(model, x, target)
    assert activations > 0
    assert difference(maps, expected) < 1e-10
    assert difference(maps, gradient(model, x, target)) > 0.1


def test_no_family_is_missing():
    families = {model.__module__.rpartition(".")[2] for model in torchvision_builders()}
    assert {builder.__module__.rpartition(".")[2] for builder in map(builder_of, SIDES)} == families


def builder_of(name):
    return torchvision.models.get_model_builder(name)


def torchvision_builders():
    return [builder_of(name) for name in torchvision.models.list_models(module=torchvision.models)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_the_model_is_as_it_was(name):
    model, x, target = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    completeness(model, x, target)
    conservation(model, x, target)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
