"""For tests of your own: `assert_sane` in pytest, or in any script."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.space import InputSpace
from harness.subjects import Target
from harness.types import InputError

if TYPE_CHECKING:
    from harness.results import Results

TESTS = ("parameter_randomization",)


def assert_sane(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | Sequence[int | float] | None = None,
    *,
    method: str | dict[str, Any] | Callable[..., Any] = "gradient",
    tests: Sequence[str | dict[str, Any]] = TESTS,
    measure: str = "spearman",
    sign: str = "signed",
    undecided: bool = False,
    space: InputSpace | None = None,
    build: Callable[[], nn.Module] | None = None,
    target: Target = "predicted",
    seed: int = 0,
) -> "Results":
    """Fail unless the maps of a method pass randomization tests on this model and these samples.

    A plain function that raises `AssertionError`, with what survived, between which levels, and what to do. A verdict
    needs about 100 samples; a pass is necessary for trusting maps, not sufficient.

    Args:
        model: returns logits [n, classes], in evaluation mode.
        x: samples as the model takes them.
        y: their labels, where the target asks for them.
        method: a name, an entry such as {"method": "lrp_epsilon", "epsilon": 0.1}, or a function
            `f(model, x, target) -> maps`.
        tests: the tests whose verdicts count: `parameter_randomization`, `random_logit`, or entries with options.
        measure: of similarity.
        sign: of the maps that are compared: signed, absolute or up_to_sign.
        undecided: whether INCONCLUSIVE is let through, with a warning.
        space: what the numbers in `x` mean.
        build: the model's constructor, for randomized networks.
        target: the explained class: predicted, label, runner_up or an index.
        seed: of every draw.

    Returns:
        All results, to look further.

    Raises:
        AssertionError: a verdict is FAIL, INVALID, or INCONCLUSIVE unless that is let through; or a test gave none.
        InputError: something is wrong with the arguments; nothing has been computed.
    """
    from harness.api import evaluate

    results = evaluate(
        model, x, y, methods=[method], metrics=list(tests), space=space, build=build, target=target, seed=seed
    )
    judged = results.table("verdicts")
    views = judged[(judged["measure"] == measure) & (judged["sign"] == sign)] if len(judged) else judged
    if len(judged) and views.empty:
        there = sorted({f"{m} of {s} maps" for m, s in judged[["measure", "sign"]].itertuples(index=False)})
        raise InputError(f"no verdict by {measure} of {sign} maps; there are: {', '.join(there)}")
    told = views.set_index("metric") if len(views) else views
    for _, headline in results.table("headlines").iterrows():
        name = headline["metric"]
        if name not in told.index:
            why = headline["reason"] or "it gives no verdict; tests are parameter_randomization and random_logit"
            raise AssertionError(f"{headline['method']}: {name} {headline['status'].replace('_', ' ')}: {why}")
        _judge(headline["method"], told.loc[name], undecided)
    return results


def _judge(method: str, row: Any, undecided: bool) -> None:
    """Raise if the verdict is none to rely on.

    Raises:
        AssertionError: it is not PASS.
    """
    words = (
        f"{method}: {row['test']} is {row['verdict']}: {row['reason']}. Similarity {row['similarity']:.2f}, by chance "
        f"{row['floor_shift']:.2f}, of two calls {row['ceiling_rerun']:.2f}, over {row['draws']} draws"
    )
    if row["verdict"] == "PASS":
        return
    if row["verdict"] == "INCONCLUSIVE":
        words += "; more samples narrow the interval"
        if undecided:
            warnings.warn(words, stacklevel=3)
            return
    raise AssertionError(words)
