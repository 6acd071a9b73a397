"""Randomized versions of a trained network, block by block. The trained network is never written to."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from harness.case import Block, Case, counted
from harness.metrics.similarity import pearson
from harness.random import torch_seeded
from harness.snapshot import copy_of
from harness.types import NotApplicableError

BatchNormPolicy = Literal["keep", "reset", "recalibrate"]
CascadeMode = Literal["top_down", "bottom_up", "independent"]
BATCH, VALUES = 256, 2**22
"""How many samples, and values of samples, go through a network at once to estimate its statistics."""


@dataclass(frozen=True)
class Randomization:
    """How networks are randomized.

    Attributes:
        batch_norm: in randomized blocks running statistics are kept, reset to those of a new network, or estimated
            again. All other blocks keep theirs.
        fresh: whether every stage of a cascade has a twin of its own; else a block that is randomized in one stage
            keeps these parameters in the next.
        stages: of a cascade, at most: the block at the output makes one, the others are joined to nearly equal groups.
            0: a stage for each block.
    """

    batch_norm: BatchNormPolicy = "recalibrate"
    fresh: bool = False
    stages: int = 0


@dataclass(frozen=True)
class Stage:
    """A randomized network, good until the next one is asked for.

    Attributes:
        mode: `full`, `shuffled`, or the kind of cascade.
        index: how many groups of blocks are randomized; in mode `independent`, which one, counted from the output.
        name: of the block that was randomized last; `all` in modes `full` and `shuffled`.
        draw: of the twin.
        model: the network.
        key: says which network it is, whatever is explained with it.
    """

    mode: Literal["full", "shuffled", "top_down", "bottom_up", "independent"]
    index: int
    name: str
    draw: int
    model: nn.Module
    key: tuple[object, ...]


def check_parameters(case: Case) -> None:
    """Check that there is something to randomize.

    Raises:
        NotApplicableError: the model has no parameters.
    """
    if not case.source.blocks:
        raise NotApplicableError("the model has no parameters that could be randomized")


def cascade(case: Case, mode: CascadeMode, draw: int, how: Randomization) -> Iterator[Stage]:
    """The stages of a cascade, one for each block or group of blocks.

    `top_down`: stage k randomizes the last k, counted from the output. `bottom_up`: the first k, counted from the
    input. `independent`: the k-th from the output and no other.
    """
    order = groups_of(case.source.blocks, how.stages)
    if mode == "bottom_up":
        order = [tuple(reversed(group)) for group in reversed(order)]
    twin, model = case.twin(draw), copy_of(case.model)
    for index, group in enumerate(order, 1):
        fresh, randomized = group, tuple(block for each in order[:index] for block in each)
        if how.fresh:
            twin, fresh = case.twin(draw, index), randomized
        if mode == "independent":
            model, randomized, fresh = copy_of(case.model), group, group
        for each in fresh:
            _copy(each, twin, model, how.batch_norm)
        key = (mode, draw, index, how)
        yield Stage(mode, index, group[-1].name, draw, _settled(case, model, randomized, how.batch_norm, key), key)


def groups_of(blocks: Sequence[Block], stages: int) -> list[tuple[Block, ...]]:
    """The blocks from the output down, joined to at most so many groups: see `Randomization`.

    Args:
        blocks: in execution order.
        stages: how many groups; 0: one for each block.
    """
    order = tuple(reversed(blocks))
    if stages == 0 or stages >= len(order):
        return [(block,) for block in order]
    if stages == 1:
        return [order]
    below, groups = order[1:], stages - 1
    ends = [round(len(below) * group / groups) for group in range(groups + 1)]
    return [order[:1], *(below[start:end] for start, end in itertools.pairwise(ends))]


def full(case: Case, draw: int, how: Randomization) -> Stage:
    """Every block holds the twin's parameters; without `fresh`, the last stage of `top_down` and of `bottom_up`."""
    blocks = case.source.blocks
    twin, model = case.twin(draw), copy_of(case.model)
    for block in blocks:
        _copy(block, twin, model, how.batch_norm)
    index = len(groups_of(blocks, how.stages))
    key = ("full", draw, index, how)
    return Stage("full", index, "all", draw, _settled(case, model, blocks, how.batch_norm, key), key)


def shuffled(case: Case, draw: int, how: Randomization) -> Stage:
    """Every parameter keeps its values and loses their order: the trained distribution of weights, and no structure."""
    model = copy_of(case.model)
    with torch.no_grad(), torch_seeded("shuffled", case.seed, draw):
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    blocks = case.source.blocks
    index = len(groups_of(blocks, how.stages))
    key = ("shuffled", draw, index, how)
    return Stage("shuffled", index, "all", draw, _settled(case, model, blocks, how.batch_norm, key), key)


def _copy(block: Block, twin: nn.Module, model: nn.Module, batch_norm: BatchNormPolicy) -> None:
    # Running statistics and no others: a spectral norm, say, goes with its weights.
    kept = [owner for owner, module in model.named_modules() if batch_norm == "keep" and isinstance(module, _NormBase)]
    names = (*block.parameters, *(name for name in block.buffers if name.rpartition(".")[0] not in kept))
    theirs = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    ours = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name in names:
            ours[name].copy_(theirs[name])


def _settled(
    case: Case, model: nn.Module, randomized: Sequence[Block], batch_norm: BatchNormPolicy, key: tuple[object, ...]
) -> nn.Module:
    """The network, with batch-norm statistics in the randomized blocks that fit its new activations if so wanted."""
    owners = dict.fromkeys(name.rpartition(".")[0] for block in randomized for name in block.buffers)
    norms = [module for module in map(model.get_submodule, owners) if isinstance(module, _BatchNorm)]
    if batch_norm == "recalibrate" and norms:
        # The same for every method and every block of samples, and often dearer than the maps themselves.
        known = case.source.shared.get(("statistics", *key))
        if known is None:
            _estimate(case, model, norms)
            buffers = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
            case.source.shared["statistics", *key] = buffers
        else:
            for norm, buffers in zip(norms, known, strict=True):
                norm.load_state_dict(buffers, strict=False)
    return model


def _estimate(case: Case, model: nn.Module, norms: Sequence[_BatchNorm]) -> None:
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain average over all batches
        module.train()
    inputs = case.source.calibration
    case.passes.statistics += len(inputs)
    with torch.no_grad(), counted(model, case.passes):
        # Nearly equal batches, because each counts the same; clones, because a model may write in place.
        size = max(min(BATCH, VALUES // max(inputs[:1].numel(), 1)), 2)
        for batch in inputs.tensor_split(-(-len(inputs) // size)):
            try:
                model(batch.clone())
            except ValueError as error:
                if len(inputs) > 1:
                    raise
                advice = "give more samples, or batch_norm: keep or reset"
                raise NotApplicableError(f"one sample gives no batch-norm statistics: {advice}") from error
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()


@dataclass(frozen=True)
class Output:
    """What a randomized network does with the samples of a case.

    Attributes:
        pearson: the correlation of its logits with the trained network's, over classes; NaN where either is constant.
        kept: whether the predicted class is the same.
        predicted: the class.
    """

    pearson: Float[Tensor, " n"]
    kept: Bool[Tensor, " n"]
    predicted: Int[Tensor, " n"]


def output_of(case: Case, stage: Stage) -> Output:
    """How the randomized network's output differs from the trained one's: asked for by every method, computed once."""
    known = case.shared_here("outputs")
    if "trained" not in known:
        known["trained"] = case.logits(case.x)
    if stage.key not in known:
        trained, logits = known["trained"], case.logits(case.x, stage.model)
        predicted = logits.argmax(1)
        known[stage.key] = Output(pearson(trained, logits), predicted == trained.argmax(1), predicted)
    output: Output = known[stage.key]
    return output
