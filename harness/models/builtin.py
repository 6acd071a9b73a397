"""The built-in networks as model sources, with their recipes: between them they cover what breaks attribution."""

from collections.abc import Callable
from typing import Any

from torch import nn

from harness.models import ModelSource, Shape
from harness.networks import (
    CNN,
    MLP,
    AdebayoCNN,
    AdebayoMLP,
    CifarResNet,
    SpectrogramCNN,
    SpeechCNN,
    VisionTransformer,
    WaveformCNN,
)
from harness.registry import model_source
from harness.training import Recipe
from harness.types import InputError

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def _source(
    name: str, network: Callable[..., nn.Module], shape: Shape, recipe: Recipe, data: str = "", **options: Any
) -> ModelSource:
    def build(shape: Shape, classes: int) -> nn.Module:
        try:
            return network(shape, classes, **options)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(f"{name}: cannot be built for inputs of shape {list(shape)}: {error}") from None

    return ModelSource(name, build, recipe=recipe, data=data, shape=shape)


@model_source()
def mnist_cnn() -> ModelSource:
    """Two convolutions, two linear layers, batch norm, ReLU; trained on mnist-5k in seconds."""
    recipe = Recipe(epochs=8, permuted_epochs=20, batch=64, rate=3e-3)
    return _source("mnist-cnn", CNN, MNIST, recipe, "mnist-5k", batch_norm=True)


@model_source()
def cnn_gelu() -> ModelSource:
    """The same without batch norm and with GELU, which has no rectifier and passes negative values."""
    recipe = Recipe(epochs=8, permuted_epochs=30, batch=64, rate=3e-3)
    return _source("cnn-gelu", CNN, MNIST, recipe, "mnist-5k", activation=nn.GELU)


@model_source()
def cnn_tanh() -> ModelSource:
    """The same without batch norm and with tanh, which saturates."""
    recipe = Recipe(epochs=8, permuted_epochs=30, batch=64, rate=3e-3)
    return _source("cnn-tanh", CNN, MNIST, recipe, "mnist-5k", activation=nn.Tanh)


@model_source()
def adebayo_cnn() -> ModelSource:
    """The convolutional network of `adebayo2018sanity`, no batch norm, with its initializers; trained on mnist-5k."""
    return _source(
        "adebayo-cnn", AdebayoCNN, MNIST, Recipe(epochs=6, permuted_epochs=25, batch=64, rate=1e-3), "mnist-5k"
    )


@model_source()
def adebayo_mlp() -> ModelSource:
    """The multilayer perceptron of the same."""
    return _source(
        "adebayo-mlp", AdebayoMLP, MNIST, Recipe(epochs=6, permuted_epochs=15, batch=64, rate=5e-4), "mnist-5k"
    )


@model_source()
def mlp() -> ModelSource:
    """Two hidden layers with ReLU, for tables and small images; trained on digits by default."""
    return _source("mlp", MLP, (1, 8, 8), Recipe(epochs=20, permuted_epochs=100, batch=32, rate=5e-3), "digits")


@model_source()
def vit() -> ModelSource:
    """A small vision transformer: patches, class token, attention, layer norm, GELU."""
    recipe = Recipe(epochs=20, permuted_epochs=60, batch=64, rate=2e-3)
    return _source("vit", VisionTransformer, MNIST, recipe, "mnist-5k")


@model_source()
def resnet20() -> ModelSource:
    """The ResNet for CIFAR with 20 layers (`he2016deep`): residuals, batch norm, functional ReLUs."""
    return _resnet("resnet20", 20)


@model_source()
def resnet56() -> ModelSource:
    """The same with 56 layers."""
    return _resnet("resnet56", 56)


def _resnet(name: str, depth: int) -> ModelSource:
    recipe = Recipe(epochs=25, permuted_epochs=40, batch=64, rate=3e-3)
    return _source(name, CifarResNet, CIFAR, recipe, depth=depth)


@model_source()
def waveform_cnn() -> ModelSource:
    """Convolutions along a waveform: one axis, inputs of both signs."""
    recipe = Recipe(epochs=80, permuted_epochs=150, batch=20, rate=3e-3, shift=0.1)
    return _source("waveform-cnn", WaveformCNN, (1, 8000), recipe)


@model_source()
def spectrogram_cnn() -> ModelSource:
    """Convolutions over a log spectrogram, whose axes are no space."""
    recipe = Recipe(epochs=20, permuted_epochs=40, batch=20, rate=3e-3, shift=0.1)
    return _source("spectrogram-cnn", SpectrogramCNN, (1, 129, 61), recipe)


@model_source()
def speech_cnn() -> ModelSource:
    """Convolutions over time that take the frequencies of a log spectrogram as channels (`form: bands`)."""
    recipe = Recipe(epochs=30, permuted_epochs=150, batch=20, rate=3e-3, shift=0.1)
    return _source("speech-cnn", SpeechCNN, (129, 61), recipe)
