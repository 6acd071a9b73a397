"""The data randomization test: does the map differ from that of a network that learnt nothing but noise?"""

from collections.abc import Iterator

import torch

from harness.case import Case
from harness.metrics.comparison import compare
from harness.registry import metric
from harness.types import Score


@metric(family="randomization", direction="lower", headline="spearman", needs=("partner",))
def label_randomization(case: Case) -> Iterator[Score]:
    r"""Label randomization test: similarity of $A(f_{true}, x)$ and $A(f_{permuted}, x)$ on held-out samples.

    The partner is the same architecture and recipe, trained on permuted labels until it has memorized them
    (`adebayo2018sanity`). If it has not (training accuracy below 95 %), or knows more than chance of held-out
    samples, the test is INVALID: all similarities are NaN with that reason, and nobody has failed.

    Also yields `partner_train_accuracy` and `partner_test_accuracy`, and `prediction_kept` for each sample.
    """
    partner = case.partner()
    for measure, accuracy in (
        ("partner_train_accuracy", partner.train_accuracy),
        ("partner_test_accuracy", partner.test_accuracy),
    ):
        yield Score(measure, torch.tensor(accuracy, dtype=torch.float64))
    kept = case.logits(case.x, partner.model).argmax(1) == case.logits(case.x).argmax(1)
    yield Score("prediction_kept", kept.double())
    maps = case.explain(partner.model, call="partner")
    for score in compare(case.maps, maps):
        if partner.invalid:
            everywhere = torch.ones_like(score.values, dtype=torch.bool)
            nan = torch.full_like(score.values, torch.nan)
            reason = {f"invalid: {partner.invalid}": everywhere}
            yield Score(score.measure, nan, reason, score.channels, score.sign, score.normalization)
        else:
            yield score
