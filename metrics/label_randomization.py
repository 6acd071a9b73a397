"""The data randomization test: does the map differ from that of a network that learnt nothing but noise?"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from harness.case import Case, Partner
from harness.metrics.comparison import MEASURES, Convention, Measures, Ready, compare, ready
from harness.registry import metric
from harness.types import Score


@metric(
    family="randomization",
    direction="lower",
    headline="spearman",
    version=2,
    needs=("partner",),
    uses=("second_partner", "retrained"),
    cite="adebayo2018sanity",
    question="Does it differ from the map of a network that learnt only noise?",
    misleads="Two networks trained on the truth differ, too: read it beside the ceiling.",
)
def label_randomization(
    case: Case, *, measures: Measures = MEASURES, convention: Convention = "harness"
) -> Iterator[Score]:
    r"""Label randomization test: similarity of $A(f_{true}, x)$ and $A(f_{permuted}, x)$ on held-out samples.

    The partner $f_{permuted}$ is the same architecture and recipe, trained on permuted labels until it has memorized
    them (`adebayo2018sanity`). If it has not (training accuracy below 95 %), or knows more than chance of held-out
    samples, the test is INVALID: all similarities to it are NaN with that reason, and nobody has failed.

    Networks differ also where both have learnt the same, so a low similarity means little by itself. Roles, which the
    source has none of:

    - `ceiling_retrain`: a network trained on the true labels from another seed takes the partner's place;
    - `ceiling_rerun`: a second call on the trained network, 1 for deterministic methods;
    - `floor_random`: two partners, of independent weights and permutations, against each other: what there is of
      similarity without anything learnt but noise comes from architecture and input. Undefined if either is invalid;
    - `floor_shift`: the partner's map is moved around the torus.

    Also yields `partner_train_accuracy`, `partner_test_accuracy`, the same of the second partner,
    `retrained_test_accuracy`, and `prediction_kept` for each sample by the partner and by the re-trained network.

    Args:
        case: what to test.
        measures: of similarity; see `harness.metrics.comparison`.
        convention: what is done to maps before they are compared; see `harness.metrics.comparison.ready`.

    Raises:
        NotApplicableError: none of the measures applies to these maps.
    """
    partner, second, retrained = case.partner(), case.partner(other=True), case.retrained()
    predicted = case.logits(case.x).argmax(1)

    def made_ready(maps: Float[Tensor, "n ..."], whose: str) -> Ready:
        return ready(maps, whose, measures, convention, case.space.kind)

    def explained(model: torch.nn.Module | None, whose: str, call: str) -> Ready:
        return made_ready(case.explain(model, call=call), whose)

    yield from _accuracies("partner", partner)
    yield from _accuracies("second_partner", second)
    yield Score("prediction_kept", (case.logits(case.x, partner.model).argmax(1) == predicted).double())
    ours = made_ready(case.maps, "trained network")
    noise = explained(partner.model, "partner", "partner")
    yield from _unless(partner.invalid, compare(ours, noise))
    words = case.draws("label_randomization", "shift").uniform(case.position_axes)
    yield from _unless(partner.invalid, compare(ours, noise.shifted(words), role="floor_shift"))
    other = explained(second.model, "second partner", "second_partner")
    reason = partner.invalid or (second.invalid and f"the second one: {second.invalid}")
    yield from _unless(reason, compare(noise, other, role="floor_random"))
    yield from compare(ours, explained(None, "trained network again", "rerun"), role="ceiling_rerun")
    if retrained is not None:
        yield _of_the_model("retrained_test_accuracy", case.source.retrained_test_accuracy)
        kept = case.logits(case.x, retrained).argmax(1) == predicted
        yield Score("prediction_kept", kept.double(), role="ceiling_retrain")
        again = explained(retrained, "re-trained network", "retrained")
        yield from compare(ours, again, role="ceiling_retrain")


def _accuracies(whose: str, partner: Partner) -> Iterator[Score]:
    yield _of_the_model(f"{whose}_train_accuracy", partner.train_accuracy)
    yield _of_the_model(f"{whose}_test_accuracy", partner.test_accuracy)


def _of_the_model(measure: str, value: float | None) -> Score:
    return Score(measure, torch.tensor(value, dtype=torch.float64))


def _unless(invalid: str, scores: Iterable[Score]) -> Iterator[Score]:
    """The scores, or NaN with the reason in their place."""
    for score in scores:
        nowhere = {f"invalid: {invalid}": torch.ones_like(score.values, dtype=torch.bool)}
        nan = torch.full_like(score.values, torch.nan)
        yield replace(score, values=nan, undefined=nowhere) if invalid else score
