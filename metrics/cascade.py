"""Randomized versions of a trained network, block by block. The trained network is never written to."""

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.case import Block, Case

BatchNormPolicy = Literal["keep", "reset", "recalibrate"]
BATCH = 256


def top_down(case: Case, draw: int, batch_norm: BatchNormPolicy) -> Iterator[tuple[int, str, nn.Module]]:
    """Stage k: the last k blocks hold the twin's parameters, the others the trained ones.

    Yields:
        (k, name of the block that was randomized last, network). The last stage is fully randomized. The network
        is good until the next one is asked for.
    """
    twin, current = case.twin(draw), copy.deepcopy(case.model)
    blocks = case.source.blocks
    for index in range(1, len(blocks) + 1):
        _copy(blocks[-index], twin, current, batch_norm)
        yield index, blocks[-index].name, _settled(case, current, blocks[-index:], batch_norm)


def full(case: Case, draw: int, batch_norm: BatchNormPolicy) -> nn.Module:
    """Every block holds the twin's parameters."""
    twin, current = case.twin(draw), copy.deepcopy(case.model)
    for block in case.source.blocks:
        _copy(block, twin, current, batch_norm)
    return _settled(case, current, case.source.blocks, batch_norm)


def _copy(block: Block, twin: nn.Module, model: nn.Module, batch_norm: BatchNormPolicy) -> None:
    names = block.parameters if batch_norm == "keep" else (*block.parameters, *block.buffers)
    theirs = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name in names:
            ours[name].copy_(theirs[name])


def _settled(case: Case, model: nn.Module, randomized: Sequence[Block], batch_norm: BatchNormPolicy) -> nn.Module:
    """The network, with batch-norm statistics in the randomized blocks that fit its new activations if so wanted.

    The other blocks keep theirs: their inputs have not changed, and neither may their outputs.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for block in randomized for name in block.buffers)
    norms = [module for module in map(model.get_submodule, owners) if isinstance(module, _BatchNorm)]
    if batch_norm == "recalibrate" and norms:
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # the plain average over all batches
            module.train()
        with torch.no_grad():
            # Nearly equal batches, because each counts the same; clones, because a model may write in place.
            for inputs in case.source.calibration.tensor_split(-(-len(case.source.calibration) // BATCH)):
                model(inputs.clone())
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
            module.eval()
    return model
