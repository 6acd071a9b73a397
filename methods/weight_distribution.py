"""Weight distributions: how far each layer has come from its initializer, in scale and in structure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from harness.case import Source
from harness.introspecting import Samples
from harness.methods.weight_laws import Law, edge_of, laws_of, matrices_of, measured, quantiles, singular_values
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, NotApplicableError, Score

BINS, PICTURED = 60, 8
"""Of a histogram, and of how many layers there is one."""


@introspection(
    compares={"spectral_excess": "higher", "kolmogorov_smirnov": "higher"},
    cite="martin2021implicit",
    uses=("recipe",),
    question="How far have the weights of each layer come from their initializer, in distribution and in structure?",
    misleads="in a large layer the smallest difference is significant, so that layers of different size are compared "
    "by effect sizes and never by p; a distribution of values is blind to their order: shuffled weights, which do "
    "nothing that was learnt, have the same, which is why it fails against them and the spectrum is asked too.",
)
def weight_distribution(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    twins: Count = 4,
    values: Count = 100_000,
    history: bool = False,
    source: Source,
    reference: nn.Module,
) -> Iterator[Score | Artifact]:
    r"""Each layer's weights against its initializer's law, and its singular values against Marchenko and Pastur's.

    The law is what newly initialized networks of the same architecture hold in the same place. From it differ the
    empirical distributions, by their largest distance (Kolmogorov-Smirnov) and by the area between them, in units of
    the law's standard deviation $s$ (Wasserstein-1), and the moments.

    The structure is in the singular values of the weights as a matrix, $[out, in \cdot h \cdot w]$ of a convolution,
    from which their mean was taken. If entries are independent with the layer's own variance $\sigma^2$, all singular
    values stay below $\sigma (\sqrt m + \sqrt n)$ in the limit (`marchenko1967distribution`), and the largest one
    below a slightly higher edge in 99.9 % of cases (`johnstone2001distribution`). The share of them above that edge is
    what is not explained by the distribution of values: shuffled weights have none, whatever their variance.

    Biases and what normalizes are left out: tensors that are no matrices, and those that an initializer sets to a
    constant.

    Yields:
        By layer, and of the network the mean over layers, of which each counts the same: `kolmogorov_smirnov` and
        `spectral_excess`, both in [0, 1]; `wasserstein`; `mean` in units of s; `deviation_ratio`, the standard
        deviation over s; `skewness`; `kurtosis`, 0 of a normal distribution; `spectral_norm`; `stable_rank`, the sum
        of squared singular values over the largest one. By layer `kolmogorov_smirnov_p`. With a history, the same by
        fraction of the training.

    Args:
        model: the network.
        space: what the numbers in the samples mean, which are not used.
        data: the samples.
        twins: how many networks make the law.
        values: larger tensors are represented by so many quantiles, where distributions are compared.
        history: whether the network is trained over again by its recipe, to look on the way.
        source: makes the twins.
        reference: the trained network; only it has a history.

    Raises:
        NotApplicableError: no layer has a matrix of weights that an initializer draws, or a history is wanted of a
            network without a recipe.
    """
    laws = laws_of(source, twins, values)
    if not laws:
        raise NotApplicableError("weight_distribution: no layer has a matrix of weights that its initializer draws")
    found = measured(model, laws, values)
    yield from scores_of(found)
    yield from _pictured(model, laws, values)
    if history and model is reference:
        try:
            passed = source.history()
        except LookupError as error:
            raise NotApplicableError(f"weight_distribution: no history: {error}") from error
        yield from (each for step, network in passed for each in scores_of(measured(network, laws, values), step))
        yield _course(passed, laws, values)


def scores_of(found: Mapping[str, Mapping[str, float]], step: float | None = None) -> Iterator[Score]:
    """The numbers of each layer, and their means."""
    for index, (name, numbers) in enumerate(found.items()):
        for measure, value in numbers.items():
            yield _score(measure, value, name, index, step)
    for measure in next(iter(found.values())):
        if measure != "kolmogorov_smirnov_p":
            yield _score(measure, float(np.mean([each[measure] for each in found.values()])), None, None, step)


def _score(measure: str, value: float, stage: str | None, index: int | None, step: float | None) -> Score:
    undefined = {"all weights of a layer are the same": torch.tensor(True)} if np.isnan(value) else {}
    return Score(measure, torch.tensor(value), undefined, stage=stage, stage_index=index, step=step)


def _pictured(model: nn.Module, laws: Mapping[str, Law], values: int) -> Iterator[Artifact]:
    """Histograms and spectra of some layers."""
    of, names = matrices_of(model), list(laws)
    some = np.unique(np.linspace(0, len(names) - 1, min(len(names), PICTURED)).round().astype(int))
    for name in (names[each] for each in some):
        ours, theirs = quantiles(of[name], values), laws[name].values
        ends = min(ours[0], theirs[0]), max(ours[-1], theirs[-1])
        densities = [np.histogram(each, BINS, ends, density=True)[0] for each in (ours, theirs)]
        bins = np.linspace(*ends, BINS + 1)
        yield Artifact(
            "distribution of weights",
            "curves",
            torch.tensor(np.stack(densities)).float(),
            labels=("this network", "initializer"),
            columns=tuple(((bins[:-1] + bins[1:]) / 2).tolist()),
            axes=("density", "weight"),
            stage=name,
            caption="The weights of the layer, and those that its initializer draws.",
        )
        centred = of[name] - of[name].mean()
        spectrum = singular_values(centred).cpu()
        edge = torch.full_like(spectrum, edge_of(centred))
        yield Artifact(
            "singular values",
            "curves",
            torch.stack([spectrum, edge]).float(),
            labels=("this network", "edge of random matrices"),
            axes=("singular value", "rank"),
            stage=name,
            caption="Singular values of the centred weights. Above the edge is what no random matrix has whose entries "
            "are as large.",
        )


def _course(passed: Sequence[tuple[float, nn.Module]], laws: Mapping[str, Law], values: int) -> Artifact:
    """The compared measures on the way."""
    means = [
        [np.mean([each[measure] for each in measured(network, laws, values).values()]) for _, network in passed]
        for measure in ("kolmogorov_smirnov", "spectral_excess")
    ]
    return Artifact(
        "weights during training",
        "curves",
        torch.tensor(np.array(means)).float(),
        labels=("Kolmogorov-Smirnov distance from the initializer", "spectral excess"),
        columns=tuple(step for step, _ in passed),
        axes=("mean over layers", "fraction of the training"),
        caption="How far weights have come from their initializer when so much of the training is done.",
    )
