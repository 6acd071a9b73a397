"""Mask leakage: does the shape of what is removed tell the class, with nothing left to see?"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from harness.case import Case
from harness.metrics.perturbation import Order, Removal, order_of
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.metrics.road import Fraction
from harness.registry import metric
from harness.types import Count, NotApplicableError, Role, Score

FOLDS, PENALTY = 5, 10.0
ROLES: dict[Order, Role] = {"most_first": "test", "random": "floor_random"}


@metric(
    family="descriptor",
    direction="lower",
    headline="class_from_mask",
    version=2,
    cite="rong2022consistent",
    question="Does the shape of what is removed tell the class?",
    misleads="A property of method and data: maps that follow the object have its shape.",
)
def mask_leakage(case: Case, *, fraction: Fraction = 0.3, patch: Count = 1) -> Iterator[Score]:
    r"""Mask leakage (`rong2022consistent`): how often the explained class is read from the mask of what is removed.

    The most relevant `fraction` of each sample is marked, and a linear classifier (ridge regression, five stratified
    folds) has to tell the class from the marks alone: `class_from_mask` is 1 where it is right on a sample that it
    was not fitted to, else 0. Role `floor_random`: the same of marks in random order. `commonest_class` is what
    guessing gives. What leaks by the mask is credited to the map by every metric that lets a network see what was
    removed, and most by those that train one (`remove_and_retrain`).

    A property of method and data, not a fault of either: maps that follow the object have its shape. Undefined where a
    map does not differ between units or is not finite, which then is left out of the fit as well, so that this alone of
    all metrics gives other samples other values; and where too few of its class, or of any other, are left.

    Args:
        case: what to test.
        fraction: of the units that is marked.
        patch: side of the square patches that are marked together; 1: single pixels.

    Raises:
        NotApplicableError: fewer than two classes with five samples each.
    """
    classes, counts = case.target.unique(return_counts=True)
    usable = torch.isin(case.target, classes[counts >= FOLDS])
    if len(case.target[usable].unique()) < 2:
        raise NotApplicableError(f"needs two classes with {FOLDS} samples each, the largest has {int(counts.max())}")
    removing = Removal("zero", patch).on(case)
    relevance, broken = order_of(removing)
    marked = (fraction * removing.counts).round()[:, None]
    for order, role in ROLES.items():
        undefined = _untold(case.target, broken if role == "test" else {})
        marks = (removing.ranks(order, relevance) < marked).double()
        right = torch.zeros(len(case.x), dtype=torch.float64, device=case.x.device)
        told = ~undefined_as_nan(right, undefined).isnan()
        if told.any():
            right[told] = (_predicted(marks[told], case.target[told]) == case.target[told]).double()
        values = undefined_as_nan(right, undefined)
        yield Score("class_from_mask", values, undefined, channels="sum", sign="signed", role=role)
    yield Score("commonest_class", counts[counts >= FOLDS].max().double() / usable.sum())


def _untold(target: Int[Tensor, " n"], broken: dict[str, Bool[Tensor, " n"]]) -> dict[str, Bool[Tensor, " n"]]:
    """Why samples take no part, neither to be told nor to learn from; what has no order would be marked at random."""
    whole = torch.ones_like(target, dtype=torch.bool)
    for where in broken.values():
        whole = whole & ~where
    classes, counts = target[whole].unique(return_counts=True)
    enough = classes[counts >= FOLDS]
    return first_reason(
        broken,
        {f"fewer than {FOLDS} samples of its class": ~torch.isin(target, enough)},
        {f"no other class with {FOLDS} samples": torch.full_like(whole, len(enough) < 2)},
    )


def _predicted(marks: Float[Tensor, "n units"], target: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    values, classes = marks.cpu().numpy(), target.cpu().numpy()
    predicted = cross_val_predict(RidgeClassifier(alpha=PENALTY), values, classes, cv=folds)
    return torch.from_numpy(np.asarray(predicted)).to(target)
