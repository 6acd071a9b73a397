"""Hashes of what a result depends on."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def digest(*parts: object) -> str:
    """A short hexadecimal BLAKE2b hash of tensors (contents, shape, type) and of anything else's `repr`."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(part)
        if isinstance(part, dict):
            part = sorted(part.items())
        if isinstance(part, (list, tuple)):
            # One by one: the repr of a tensor inside would be abbreviated.
            state.update(digest(*part).encode())
        elif isinstance(part, Tensor):
            state.update(repr((part.dtype, tuple(part.shape))).encode())
            part = part.detach().cpu().contiguous()
            state.update(part.reshape(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        else:
            state.update(repr(part).encode())
    return state.hexdigest()
