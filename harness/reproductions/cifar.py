"""Photographs of CIFAR-10 and published ResNets, as folders that are given to a reproduction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGENET_SCALE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def files(*models: str) -> tuple[str, ...]:
    """What the folder must hold for these models."""
    return (*(f"{model}.safetensors" for model in models), "test", "train")


def part(folder: Path, models: Sequence[str]) -> dict[str, Any]:
    """The data and the models of a study: 50 photographs that each model classifies correctly."""
    data = {"source": f"folder:{folder / 'test'}", "train": str(folder / "train"), **IMAGENET_SCALE}
    return {
        "name": "cifar",
        "data": {**data, "select": "correct", "samples": 50},
        "models": [{"name": model, "weights": str(folder / f"{model}.safetensors")} for model in models],
    }
