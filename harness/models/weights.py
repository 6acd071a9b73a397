"""Weights from files: tensors only, every name accounted for."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.data.files import existing
from harness.types import InputError

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and training frameworks put before every name."""

INSIDE, DEEPEST = "classifier.", 3
"""What the networks of `harness.models.wrapped` have before every name of the model in them, and how often at most."""

CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
"""Where checkpoints of training scripts keep the weights beside other things."""

REMEDY = "save the state dict alone, by torch.save(model.state_dict(), ...) or as safetensors"
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
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: not a safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what a damaged file may be
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # of any kind: bytes that are no weights are read as if they were
        raise InputError(f"{path}: {_reason(str(error))}") from None
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise InputError(f"{path}: expected a state dict (name -> tensor), got {_told(content)}: {REMEDY}")
    return content


def _reason(message: str) -> str:
    """Why torch did not open a file, from its long message."""
    if "TorchScript" in message:
        return f"refused, because it is a TorchScript archive, a program: {REMEDY}"
    named = re.search(r"GLOBAL (\S+)", message)
    if named:
        return f"refused, because opening it would run code (it names {named[1]}): {REMEDY}"
    return "not a file of weights that torch.save wrote, or a damaged one"


def _told(content: object) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return f"a mapping with the keys {_few([str(key) for key in content])}" if content else "an empty mapping"


def load_weights(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict strictly; prefixes that wrappers put before every name are taken off, or on for our own.

    Raises:
        InputError: names or shapes do not fit; the message says which, and what the likely reason is.
    """
    own = model.state_dict()
    while prefix := next((p for p in WRAPPERS if state and all(name.startswith(p) for name in state)), ""):
        if own.keys() & state.keys():
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if own.keys().isdisjoint(state):
        prefixes = (INSIDE * depth for depth in range(1, DEEPEST + 1))
        inside = next((prefix for prefix in prefixes if any(prefix + name in own for name in state)), "")
        state = {inside + name: value for name, value in state.items()}
    # Files of safetensors hold tied weights once.
    held = {own[name].data_ptr() for name in state if name in own}
    # Old checkpoints and other libraries do not count batches; nothing depends on it.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    missing = [name for name in missing if own[name].data_ptr() not in held]
    unexpected = [name for name in state if name not in own]
    shapes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state}
    shapes = {name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours}
    problems = list(_problems(missing, unexpected, shapes))
    if problems:
        likely = "" if missing or unexpected else _likely(list(shapes.values()))
        likely = likely or "the file is of another network"
        raise InputError(f"{origin} does not fit the network ({likely}): {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=False)


Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Those of one tensor in the file and in the network."""


def _problems(missing: list[str], unexpected: list[str], shapes: Mapping[str, Shapes]) -> Iterator[str]:
    for what, names in (("lacks", missing), ("has unknown", unexpected)):
        if names:
            yield f"it {what} {_few(names)}"
    for name, (theirs, ours) in list(shapes.items())[:SHOWN]:
        yield f"{name} is {list(theirs)} there and {list(ours)} in the network"
    if len(shapes) > SHOWN:
        yield f"{len(shapes) - SHOWN} more shapes differ"


def _likely(shapes: list[Shapes]) -> str:
    """What makes all these shapes differ, if it is the number of classes or the shape of the input; else empty."""
    outputs = {(theirs[:1], ours[:1]) for theirs, ours in shapes}
    if len(outputs) == 1 and all(len(theirs) == len(ours) and theirs[1:] == ours[1:] for theirs, ours in shapes):
        ((theirs, ours),) = outputs
        return f"the file is of a network with {theirs[0]} classes, this one has {ours[0]}"
    if len(shapes) == 1 and len(shapes[0][0]) == len(shapes[0][1]):
        return "the file is of a network for inputs of another shape"
    return ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
