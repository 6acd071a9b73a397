"""The built-in networks, written for reading: between them they have what attribution methods stumble over.

Each is called as `Name(shape, classes, ...)` with the shape of one input, returns logits [n, classes], runs eagerly
and draws its weights from torch's generator, by torch's default initializers where it says nothing else.
"""

from harness.networks.adebayo import AdebayoCNN, AdebayoMLP
from harness.networks.cnn import CNN
from harness.networks.mlp import MLP
from harness.networks.resnet import CifarResNet
from harness.networks.spectrogram import SpectrogramCNN
from harness.networks.speech import SpeechCNN
from harness.networks.vit import VisionTransformer
from harness.networks.waveform import WaveformCNN

__all__ = [
    "CNN",
    "MLP",
    "AdebayoCNN",
    "AdebayoMLP",
    "CifarResNet",
    "SpectrogramCNN",
    "SpeechCNN",
    "VisionTransformer",
    "WaveformCNN",
]
