"""Weights from files: tensors only, every name accounted for."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.data.files import existing
from harness.types import InputError

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and training frameworks put before every name."""

CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
"""Where checkpoints of training scripts keep the weights beside other things."""

SHOWN = 3


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file: safetensors, or what `torch.save` wrote. No code in it is run.

    Raises:
        InputError: no such file, a damaged one, or one that holds more than tensors.
    """
    existing(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file: {error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because opening it would run code ({_culprit(str(error))}): save the state dict alone, "
            "by torch.save(model.state_dict(), ...) or as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a file of weights: {line}") from None
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise InputError(f"{path}: expected a state dict (name -> tensor), got {type(content).__name__}")
    return content


def _culprit(message: str) -> str:
    """The line of torch's long message that names what was to be run."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0])


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict strictly; a prefix that wrappers put before every name is taken off.

    Raises:
        InputError: names or shapes do not fit; the message says which, and what the likely reason is.
    """
    own = model.state_dict()
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state) and not all(name.startswith(prefix) for name in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    # Old checkpoints and other libraries do not count batches; nothing depends on it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    problems = []
    for what, names in (("lacks", missing), ("has unknown", unexpected)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            problems.append(f"it {what} {', '.join(names[:SHOWN])}{more}")
    problems += [
        f"{name} is {list(state[name].shape)} there and {list(own[name].shape)} in the network"
        for name in shapes[:SHOWN]
    ]
    if problems:
        likely = "the file is of another network"
        if shapes and not missing and not unexpected and len(shapes) <= 2:
            likely = "the file is of a network with another number of classes or inputs"
        raise InputError(f"{origin} does not fit the network ({likely}): {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=False)
