"""Subjects: a model together with the samples on which it is explained, checked before anything is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data import load_data
from harness.models import LoadedModel, load_model
from harness.space import InputSpace
from harness.study import DataEntry, ModelEntry, Study
from harness.training import Progress
from harness.twins import check_constructor
from harness.types import InputError

Target = Literal["predicted", "label", "runner_up"] | int
"""Which class is explained, as a policy."""

SAMPLES_A_BLOCK = 256
BATCH = 256


@dataclass(frozen=True)
class Subject:
    """A model, the samples it is explained on and the explained class of each.

    Attributes:
        label: the model's name in the study.
        dataset: the name of the data.
        source: the loaded model.
        x: the samples on the model's device.
        target: the explained classes.
        samples: a stable id for each sample.
        space: what the numbers in `x` mean.
    """

    label: str
    dataset: str
    source: LoadedModel
    x: Float[Tensor, "n ..."]
    target: Int[Tensor, " n"]
    samples: tuple[str, ...]
    space: InputSpace

    def blocks(self) -> list["Subject"]:
        """The subject in parts of at most 256 samples."""
        return [self._part(start, start + SAMPLES_A_BLOCK) for start in range(0, len(self.x), SAMPLES_A_BLOCK)]

    def first(self, count: int) -> "Subject":
        """The subject with its first samples only."""
        return self._part(0, count)

    def _part(self, start: int, stop: int) -> "Subject":
        part = slice(start, stop)
        return replace(self, x=self.x[part], target=self.target[part], samples=self.samples[part])


def subject_of_entry(
    entry: ModelEntry, study: Study, *, device: torch.device, samples: int | None, progress: Progress
) -> Subject:
    """The subject that a study's model entry names; trains the model if it has not been trained before.

    Raises:
        InputError: the samples do not fit the model.
    """
    wanted = entry.data
    assert isinstance(wanted, DataEntry)
    data = load_data(wanted.source)
    source = load_model(entry.source, model_seed=entry.model_seed, seed=study.seed, device=device, progress=progress)
    x, y, ids = data.x.to(device), data.y.to(device), data.ids
    logits = checked_logits(source.model, x, ids)
    if wanted.select == "correct":
        rows = torch.nonzero(logits.argmax(1) == y)[:, 0]
        x, y, logits, ids = x[rows], y[rows], logits[rows], tuple(ids[row] for row in rows.tolist())
    count = samples or wanted.samples or len(x)
    if count > len(x):
        raise InputError(f"{entry.name}: {count} samples asked for, {wanted.source} has {len(x)} ({wanted.select})")
    target = targets(study.target, logits[:count], y[:count], ids)
    return Subject(entry.name, wanted.source, source, x[:count], target, ids[:count], data.space)


def subject_of_tensors(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None,
    *,
    space: InputSpace | None,
    seed: int,
    build: Callable[[], nn.Module] | None,
    target: Target | Int[Tensor, " n"],
) -> Subject:
    """The subject of somebody who has a model and a batch of samples in Python.

    Raises:
        InputError: the model or the samples cannot give right numbers; says which and what to do.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(f"expected x as a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if torch.is_inference_mode_enabled():
        raise InputError("inside torch.inference_mode() no gradient can be taken: leave it; torch.no_grad() is fine")
    x = x.detach()
    space = space or InputSpace.undeclared(x)
    space.check(x)
    if build:
        check_constructor(model, build)
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        raise InputError(f"the model is on {parameter.device}, x on {x.device}: move one of them")
    if parameter is not None and parameter.dtype != x.dtype:
        raise InputError(f"the model has {parameter.dtype} parameters, x is {x.dtype}: convert one of them")
    ids = tuple(f"sample/{index}" for index in range(len(x)))
    logits = checked_logits(model, x, ids)
    source = LoadedModel(model, build, seed, x[:1], x)
    explained = targets("label", logits, target, ids) if isinstance(target, Tensor) else targets(target, logits, y, ids)
    name = type(model).__name__
    return Subject(name, "tensors", source, x, explained, ids, space)


def checked_logits(model: nn.Module, x: Float[Tensor, "n ..."], ids: tuple[str, ...]) -> Float[Tensor, "n classes"]:
    """The model's outputs on all samples, after everything that would make results silently wrong is ruled out.

    Raises:
        InputError: no samples, NaN or infinite inputs or outputs, a model in train mode, outputs that are not
            [n, classes].
    """
    if len(x) == 0:
        raise InputError("x holds no samples")
    if model.training or any(module.training for module in model.modules()):
        names = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
        raise InputError(f"the model is in train mode ({', '.join(names[:3])}): call model.eval() first")
    _finite(x, ids, "the input of sample", "clean the data or leave the sample out")
    with torch.no_grad():
        outputs = [model(batch.clone()) for batch in x.split(BATCH)]
    if not isinstance(outputs[0], Tensor) or outputs[0].ndim != 2:
        got = list(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
        raise InputError(
            f"the model must return logits of shape [n, classes], got {got}: wrap it in a module that does"
        )
    logits = torch.cat(outputs)
    if logits.shape[1] < 2:
        raise InputError("the model returns one output: wrap it in a module that returns [n, classes], classes >= 2")
    _finite(logits, ids, "the model's output for sample", "check its weights and the scale of the input")
    with torch.no_grad():
        alone = model(x[:1].clone())
    if not torch.allclose(alone, logits[:1], rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise InputError(
            f"the model's output for sample {ids[0]} depends on chance or on the rest of its batch: "
            "switch dropout off and let normalizations use their running statistics"
        )
    return logits


def targets(
    policy: Target,
    logits: Float[Tensor, "n classes"],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None,
    ids: tuple[str, ...],
) -> Int[Tensor, " n"]:
    """The explained class of each sample, frozen from here on.

    Raises:
        InputError: labels are missing or out of range, or the fixed class is.
    """
    classes = logits.shape[1]
    if y is not None:
        labels = torch.as_tensor(y, device=logits.device)
        if labels.dtype == torch.bool or labels.is_floating_point():
            raise InputError(f"expected labels and targets as integers, got {labels.dtype}")
        if labels.shape != (len(logits),):
            raise InputError(f"expected y of shape [{len(logits)}], got {list(labels.shape)}")
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise InputError(f"the label of sample {ids[row]} is {int(labels[row])}, outside 0 to {classes - 1}")
    if policy == "predicted":
        return logits.argmax(1)
    if policy == "runner_up":
        return logits.topk(2, dim=1).indices[:, 1]
    if policy == "label":
        if y is None:
            raise InputError("target='label' needs labels: pass y, or explain the predicted class")
        return labels.long()
    if isinstance(policy, np.integer):
        policy = int(policy)
    if isinstance(policy, bool) or not isinstance(policy, int):
        raise InputError(f"target is predicted, label, runner_up or a class index, got {policy!r}")
    if not 0 <= policy < classes:
        raise InputError(f"target {policy} is outside 0 to {classes - 1}")
    return torch.full((len(logits),), policy, dtype=torch.int64, device=logits.device)


def _finite(values: Float[Tensor, "n ..."], ids: tuple[str, ...], what: str, remedy: str) -> None:
    broken = ~values.flatten(1).isfinite().all(1)
    if broken.any():
        row = int(broken.nonzero()[0, 0])
        kind = "NaN" if values[row].isnan().any() else "infinite values"
        raise InputError(f"{what} {ids[row]} holds {kind} ({int(broken.sum())} samples do): {remedy}")
