"""Axioms that hold for a method or do not, whatever it is good for: tested on the user's own network."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.case import Case
from harness.metrics.perturbation import PATCHES, Removal, about, outputs, rounding, unknown
from harness.metrics.preprocessing import first_reason, reduce_channels, undefined_as_nan
from harness.registry import metric
from harness.types import Count, NonNegative, NotApplicableError, Score

CHECKERS = 4
"""Squares along the longest side of what the network is made blind to, as far as there are positions."""


class Blind(nn.Module):
    r"""A network that does not see where the mask is zero: $g(x) = f(m \odot x)$."""

    def __init__(self, model: nn.Module, mask: Float[Tensor, "..."]) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return self.model(x * self.mask)


class Mirrored(nn.Module):
    """A network that sees the sample and its mirror image: $g(x) = f(x) + f(mirrored x)$."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return self.model(x) + self.model(x.flip(-1))


class Sum(nn.Module):
    """The sum of two networks."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return self.first(x) + self.second(x)


@metric(
    family="axioms",
    direction="lower",
    headline="mass_on_dummies",
    cite="sundararajan2017axiomatic",
    question="Does what the network cannot see get no relevance?",
    misleads="Coarse maps fail by their resolution.",
)
def dummy(case: Case) -> Iterator[Score]:
    r"""Dummy, or sensitivity (b) (`sundararajan2017axiomatic`): what the network cannot see gets no relevance.

    The network is made blind to every other square of the sample, $g(x) = f(m \odot x)$, and explained.
    `mass_on_dummies` is $\sum_{m_i = 0} |a_i| / \sum |a_i|$, in [0, 1]: 0 is exact, the share of the squares is what
    a map has that does not know (`share_of_dummies`). Maps that are upsampled from a layer are not 0.

    Undefined where a map is zero everywhere or not finite.

    Args:
        case: what to test.
    """
    axes = case.axes
    side = max(max(axes) // (2 * CHECKERS), 1)
    places = sum(
        (torch.arange(size, device=case.x.device) // side).view(-1, *(1,) * (len(axes) - axis - 1))
        for axis, size in enumerate(axes)
    )
    mask = (torch.as_tensor(places) % 2 == 0).to(case.x.dtype)
    maps = reduce_channels(case.explain(Blind(case.model, mask).eval()), "abs_sum").double()
    total = maps.flatten(1).sum(1)
    undefined = first_reason({"not finite": ~total.isfinite(), "the map is zero everywhere": total == 0})
    on_dummies = (maps * (mask == 0)).flatten(1).sum(1) / total
    yield Score("mass_on_dummies", undefined_as_nan(on_dummies, undefined), undefined, channels="abs_sum")
    yield Score("share_of_dummies", (mask == 0).double().mean())


@metric(
    family="axioms",
    direction="lower",
    headline="asymmetry",
    cite="sundararajan2017axiomatic",
    question="Do inputs that the network treats alike get the same?",
    misleads="A method may be symmetric and wrong.",
)
def symmetry(case: Case) -> Iterator[Score]:
    r"""Symmetry (`sundararajan2017axiomatic`): inputs that the network treats alike, and that are alike, get the same.

    The network is made symmetric, $g(x) = f(x) + f(x')$ with $x'$ mirrored along the last axis, and explained on the
    symmetric sample $(x + x') / 2$. `asymmetry` is $|a - a'| / 2 |a|$ in the Euclidean norm, in [0, 1]: 0 is exact, 1
    an antisymmetric map, $\sqrt{1/2}$ in expectation what an unrelated map has.

    Undefined where a map is zero everywhere or not finite. Not applicable where a method needs one layer that
    everything passes through.

    Args:
        case: what to test.
    """
    maps = case.explain(Mirrored(case.model).eval(), (case.x + case.x.flip(-1)) / 2).double()
    norm = _norm(maps)
    asymmetry = _norm(maps - maps.flip(-1)) / (2 * norm)
    yield _of_vectors("asymmetry", asymmetry, norm)


@metric(
    family="axioms",
    direction="lower",
    headline="nonlinearity",
    cite="sundararajan2017axiomatic",
    question="Is the map of a sum of networks the sum of their maps?",
    misleads="Many good methods are not linear by design.",
)
def linearity(case: Case) -> Iterator[Score]:
    r"""Linearity (`sundararajan2017axiomatic`): the map of a sum of two networks is the sum of their maps.

    The second one is a randomly initialized network $g$ of the same architecture. `nonlinearity` is $|A(f + g) - A(f)
    - A(g)| / (|A(f)| + |A(g)|)$ in the Euclidean norm: 0 is exact, 1/2 a map that is the same whatever the
    network. A stochastic method has the same noise in all three.

    Undefined where the maps of both networks are zero everywhere, or one of the three maps is not finite. Not
    applicable where a method needs one layer that everything passes through.

    Args:
        case: what to test.
    """
    twin = case.twin(0)
    first, second = case.maps.double(), case.explain(twin).double()
    both = case.explain(Sum(case.model, twin).eval()).double()
    scale = _norm(first) + _norm(second)
    yield _of_vectors("nonlinearity", _norm(both - first - second) / scale, scale + 0 * _norm(both))


@metric(
    family="axioms",
    direction="lower",
    headline="unnoticed",
    cite="sundararajan2017axiomatic",
    question="Does an input that alone changes the output get relevance?",
    misleads="Asked far from the data, where all else is the baseline.",
)
def sensitivity(case: Case, *, fill: str, units: Count = 4, patch: NonNegative = 0) -> Iterator[Score]:
    r"""Sensitivity (a) (`sundararajan2017axiomatic`): one input that alone changes the output gets relevance.

    Everything but one random unit of the sample is replaced by the baseline $b$ (the method's own where it has one),
    and the result is explained. `unnoticed` is the share of such units, of those that change the logit, on which the
    map is zero everywhere, in [0, 1]: 0 is exact, 1 a map of zeros. The gradient misses what saturates. Undefined
    where no unit changes the output, or a map or an output is not finite.

    Args:
        case: what to test.
        fill: the baseline, for methods without one of their own.
        units: how many units, each explained by itself.
        patch: side of the square patches that are units; 0 makes about 49 of them, single features of a table.

    Raises:
        NotApplicableError: the method's own baseline depends on the sample that is explained.
    """
    own = case.explainer.options.get("baseline")
    if own == "blur":
        raise NotApplicableError(f"{case.explainer.method.name}: its baseline is the blurred sample, another for each")
    removing = Removal(fill, patch or about(case, PATCHES)).on(case)
    count = removing.sizes.shape[1]
    chosen = case.draws("axioms", "units").permutation(count)[:, :units]
    rows = torch.arange(len(case.x), device=case.x.device)
    number = torch.arange(count, device=case.x.device)

    def alone(unit: Int[Tensor, "n"]) -> tuple[Float[Tensor, " n"], Tensor]:
        gone = number != unit[:, None]
        if case.baseline is None:
            x = removing.without(rows, gone)
        else:
            where = removing.positions(rows, gone)
            x = torch.where(where if case.x.ndim == 2 else where.unsqueeze(1), case.baseline, case.x)
        return outputs(case.logits(x), case.target)["logit"], x

    nothing, _ = alone(torch.full_like(rows, -1))
    found, changed, silent, broken = [nothing], [], [], torch.zeros_like(rows, dtype=torch.bool)
    for unit in chosen.T:
        output, x = alone(unit)
        level = rounding(case, output.abs().maximum(nothing.abs()))
        relevance = removing.sums(reduce_channels(case.explain(x=x), "abs_sum"))
        found.append(output)
        changed.append((output - nothing).abs() > level)
        silent.append(relevance.gather(1, unit[:, None])[:, 0] == 0)
        broken |= ~relevance.isfinite().all(1)
    counts = torch.stack(changed).sum(0)
    undefined = first_reason(
        unknown(torch.stack(found, 1)), {"not finite": broken}, {"no unit alone changes the output": counts == 0}
    )
    missed = (torch.stack(changed) & torch.stack(silent)).sum(0)
    yield Score("unnoticed", undefined_as_nan(missed.double() / counts, undefined), undefined, channels="abs_sum")


def _norm(maps: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    return maps.flatten(1).norm(dim=1)


def _of_vectors(measure: str, values: Float[Tensor, " n"], scale: Float[Tensor, " n"]) -> Score:
    undefined = first_reason({"not finite": ~scale.isfinite()}, {"the map is zero everywhere": scale == 0})
    return Score(measure, undefined_as_nan(values, undefined), undefined, channels="each", sign="signed")
