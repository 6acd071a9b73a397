"""The subject of somebody who has a model and a batch of samples in Python."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data import of_tensors
from harness.findings import in_model, refuse
from harness.model_entries import DataEntry
from harness.models.loaded import LoadedModel
from harness.progress import silent
from harness.space import InputSpace
from harness.subjects import Subject, Target, checked_subject
from harness.twins import constructor_fault
from harness.types import InputError


def subject_of_tensors(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None,
    *,
    space: InputSpace | None,
    seed: int,
    build: Callable[[], nn.Module] | None,
    target: Target | Int[Tensor, " n"],
    background: Float[Tensor, "m ..."] | None = None,
    masks: Float[Tensor, "n ..."] | None = None,
    compiled: bool = False,
) -> Subject:
    """The subject of somebody who has a model and a batch of samples in Python.

    Raises:
        InputError: the model or the samples cannot give right numbers; says which and what to do.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(f"expected x as a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if len(x) == 0:
        raise InputError("x holds no samples")
    if torch.is_inference_mode_enabled():
        raise InputError("inside torch.inference_mode() no gradient can be taken: leave it; torch.no_grad() is fine")
    x = x.detach()
    space = space or InputSpace.undeclared(x)
    space.check(x)
    refuse(in_model(model))
    fault = constructor_fault(model, build) if build else ""
    if fault:
        raise InputError(f"build() makes no twins of the model: {fault}")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != x.device:
        raise InputError(f"the model is on {parameter.device}, x on {x.device}: move one of them")
    if parameter is not None and parameter.dtype != x.dtype:
        raise InputError(f"the model has {parameter.dtype} parameters, x is {x.dtype}: convert one of them")
    ids = [f"sample/{row}" for row in range(len(x))]
    given, policy = (target, "label") if isinstance(target, Tensor) else (y, target)
    labels = None if given is None else _labels(given, len(x))
    checked = None if masks is None else _masks(masks, x)
    data = of_tensors("tensors", x, labels, space, ids=ids, masks=checked)
    source = LoadedModel(model, build, seed, x[:1], lambda: x, compiled=compiled)
    if background is not None:
        samples = _background(background, x)
        source.read_background = lambda: samples
    return checked_subject(type(model).__name__, source, data, DataEntry(source="tensors"), policy, silent)


def _labels(y: Int[Tensor, " labels"] | Sequence[int | float], count: int) -> Int[Tensor, " n"]:
    """Labels that were given in Python.

    Raises:
        InputError: no integers, or another number than of samples.
    """
    labels = torch.as_tensor(y).cpu()
    if labels.dtype == torch.bool or labels.is_floating_point():
        raise InputError(f"expected labels and targets as integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise InputError(f"expected y of shape [{count}], got {list(labels.shape)}")
    return labels.long()


def _masks(masks: object, x: Float[Tensor, "n ..."]) -> Tensor:
    """Masks that were given in Python.

    Raises:
        InputError: no tensor, another shape than of one channel of `x`, or NaN or infinite values.
    """
    shape = [len(x), 1, *x.shape[2:]] if x.ndim > 2 else list(x.shape)
    if not isinstance(masks, Tensor):
        raise InputError(f"expected masks as a tensor of shape {shape}, got {type(masks).__name__}")
    if list(masks.shape) != shape:
        raise InputError(f"expected masks of shape {shape}, got {list(masks.shape)}")
    if not masks.isfinite().all():
        raise InputError("masks hold NaN or infinite values: expected 1 where the truth lies and 0 elsewhere")
    return masks.detach()


def _background(background: object, x: Float[Tensor, "n ..."]) -> Float[Tensor, "m ..."]:
    """Background samples that were given in Python.

    Raises:
        InputError: there are none, they hold NaN or infinite values, or they are not of the kind of `x`.
    """
    if not isinstance(background, Tensor) or background.ndim == 0 or len(background) == 0:
        raise InputError("expected background as a tensor of at least one sample")
    ours, theirs = ((list(each.shape[1:]), each.dtype, str(each.device)) for each in (x, background))
    if ours != theirs:
        raise InputError(f"expected background samples like those in x, {_described(ours)}, got {_described(theirs)}")
    if not background.isfinite().all():
        raise InputError("background holds NaN or infinite values")
    return background.detach()


def _described(kind: tuple[list[int], torch.dtype, str]) -> str:
    shape, dtype, device = kind
    return f"{dtype} of shape {shape} on {device}"
