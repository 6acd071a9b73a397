"""The model parameter randomization test: does the map change when the network forgets?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor

from harness.case import Case
from harness.metrics.cascade import (
    BatchNormPolicy,
    CascadeMode,
    Randomization,
    Stage,
    cascade,
    check_parameters,
    full,
    output_of,
)
from harness.metrics.comparison import MEASURES, Convention, Measures, Ready, compare, ready
from harness.registry import metric
from harness.types import Count, Distinct, NonNegative, Score


@metric(
    family="randomization",
    direction="lower",
    headline="spearman",
    version=2,
    uses=("retrained",),
    cite="adebayo2018sanity",
    question="Does the map depend on what the network has learnt?",
    misleads="Noise that is keyed by the weights passes: necessary, not sufficient.",
)
def parameter_randomization(
    case: Case,
    *,
    full_draws: Count = 10,
    cascade_draws: NonNegative = 3,
    modes: Annotated[Sequence[CascadeMode], Distinct] = ("top_down",),
    batch_norm: BatchNormPolicy = "recalibrate",
    fresh: bool = False,
    repredict: bool = False,
    stages: NonNegative = 0,
    measures: Measures = MEASURES,
    convention: Convention = "harness",
) -> Iterator[Score]:
    r"""Model parameter randomization test: similarity of $A(f_\theta, x)$ and $A(f_{\theta_k}, x)$.

    Full randomization (mode `full`, stage `all`): all blocks take the parameters of a twin, drawn by their own
    initializers. Cascades: `top_down`, the last k blocks; `bottom_up`, the first k; `independent`, one block alone.
    Source: `adebayo2018sanity`; unlike there, by default the target is frozen, a block keeps its random parameters from
    stage to stage, every draw has a twin of its own, and the level of chance is reported.

    Roles. `floor_shift`: the map against the randomized network's map moved around the torus. `floor_random`:
    two randomized networks against each other; what it has above `floor_shift` comes from architecture and
    input, not from parameters. `floor_other`: the map against that of the sample before it. `ceiling_rerun`: a second
    call on the trained network. `ceiling_retrain`, where there is a recipe: a network trained from another seed.

    Also yields, in the same stages, how far the network's output itself changed: `output_pearson` (of the logits
    over classes) and `prediction_kept`. Where the output did not change, no change of the map can be expected.

    Undefined where a map is constant or not finite.

    Args:
        case: what to test.
        full_draws: twins for the full randomization.
        cascade_draws: of these, how many go through the cascades.
        modes: of the cascades.
        batch_norm: running statistics of randomized blocks are kept, reset to those of a new network, or estimated
            again.
        fresh: new random parameters for all randomized blocks at each stage, as in the original notebooks.
        repredict: explain what the randomized network predicts at each stage, as in the original notebooks.
        stages: of a cascade, at most, in networks of many blocks: the block at the output makes one, the others are
            joined to groups; 0: one for each block.
        measures: of similarity; see `harness.metrics.comparison`.
        convention: what is done to maps before they are compared; see `harness.metrics.comparison.ready`.

    Raises:
        NotApplicableError: the model has no parameters, or none of the measures applies to its maps.
    """
    check_parameters(case)
    ours = ready(case.maps, "trained network", measures, convention, case.space.kind)
    test = _Test(case, repredict, measures, convention, ours)
    yield from test.trained()
    how = Randomization(batch_norm, fresh, stages)
    previous: Ready | None = None
    for draw in range(full_draws):
        end: tuple[Stage, Ready] | None = None
        for mode in modes if draw < cascade_draws else ():
            for stage in cascade(case, mode, draw, how):
                maps = test.explained(stage)
                yield from test.scores(stage, maps)
            if mode != "independent" and not fresh:
                # Where every block is randomized, it is the network of the full randomization.
                end = replace(stage, mode="full", name="all"), maps
        stage = end[0] if end else full(case, draw, how)
        maps = end[1] if end else test.explained(stage)
        yield from test.scores(stage, maps)
        yield from test.floors(stage, maps, previous)
        previous = maps


@dataclass(frozen=True)
class _Test:
    """One case under test: what all stages have in common."""

    case: Case
    repredict: bool
    measures: Measures
    convention: Convention
    ours: Ready

    def ready(self, maps: Float[Tensor, "n ..."]) -> Ready:
        return ready(maps, "compared network", self.measures, self.convention, self.case.space.kind)

    def explained(self, stage: Stage) -> Ready:
        target = output_of(self.case, stage).predicted if self.repredict else None
        return self.ready(self.case.explain(stage.model, target=target, call=(stage.mode, stage.draw, stage.index)))

    def trained(self) -> Iterator[Score]:
        """What is compared with maps of trained networks."""
        where: dict[str, Any] = {"stage": "trained", "stage_index": 0}
        again = self.ready(self.case.explain(call="rerun"))
        yield from compare(self.ours, again, role="ceiling_rerun", **where)
        yield from compare(self.ours, self.ours.rolled(), role="floor_other", **where)
        retrained = self.case.retrained()
        if retrained is not None:
            maps = self.ready(self.case.explain(retrained, call="retrained"))
            yield from compare(self.ours, maps, role="ceiling_retrain", **where)

    def scores(self, stage: Stage, maps: Ready) -> Iterator[Score]:
        """The test itself, and how far the output changed."""
        yield from compare(self.ours, maps, **_place(stage))
        output = output_of(self.case, stage)
        flat = output.pearson.isnan()
        reason = {"constant or infinite logits": flat} if flat.any() else {}
        yield Score("output_pearson", output.pearson, reason, **_place(stage))
        yield Score("prediction_kept", output.kept.double(), **_place(stage))

    def floors(self, stage: Stage, maps: Ready, previous: Ready | None) -> Iterator[Score]:
        """What chance gives at this stage."""
        words = self.case.draws("parameter_randomization", "shift").uniform(self.case.position_axes, draw=stage.draw)
        yield from compare(self.ours, maps.shifted(words), role="floor_shift", **_place(stage))
        if previous is not None:
            yield from compare(previous, maps, role="floor_random", **_place(stage))


def _place(stage: Stage) -> dict[str, Any]:
    return {"mode": stage.mode, "stage": stage.name, "stage_index": stage.index, "draw": stage.draw}
