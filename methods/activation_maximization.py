"""Activation maximization: images that excite a unit of a network as much as possible."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from harness.case import Source
from harness.introspecting import Samples, once
from harness.methods.correlations import correlation
from harness.methods.image_ascent import Ascent
from harness.methods.image_parameters import Box, Coefficients
from harness.methods.image_prior import Decoder, PrincipalComponents
from harness.methods.image_regularizers import spectral_slope
from harness.methods.image_regularizers import total_variation as variation
from harness.methods.maximal_images import Found, Search
from harness.methods.unit_objectives import OF_OUTPUT, Kind
from harness.methods.variational_autoencoder import VariationalAutoencoder
from harness.random import Draws
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, Count, NonNegative, NotApplicableError, Score

Amount = Annotated[float, Field(ge=0)]
"""An option that must not be negative."""

Units = Annotated[list[NonNegative], Field(min_length=1)]
"""Indices of units."""

Prior = Literal["none", "principal_components", "variational_autoencoder"]

CANDIDATES = 64
"""How many images of random codes those of optimized codes are compared with."""


@introspection(
    compares={"recognition": "higher", "similarity": "alike", "gain": "higher"},
    cite="erhan2009visualizing",
    needs=("spatial",),
    uses=("retrained",),
    question="What does an image look like that excites a unit most, and does another network see the same in it?",
    misleads="units of random networks are excited by some images as far beyond natural ones; with a prior, or begun "
    "from a sample, images look natural for any unit.",
)
def activation_maximization(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    objective: Kind = "logit",
    layer: str = "",
    units: Count | Units = 10,
    direction: Literal["class_difference", "random"] | list[float] = "class_difference",
    steps: Count = 64,
    rate: Annotated[float, Field(gt=0)] = 0.1,
    fourier: bool = True,
    jitter: Amount = 0.07,
    rotation: Amount = 10.0,
    scale: Amount = 0.1,
    frequency_penalty: Amount = 0.0,
    total_variation: Amount = 5.0,
    prior: Prior = "none",
    start: Literal["noise", "sample"] = "noise",
    octaves: Count = 1,
    repeats: Count = 2,
    seed: int,
    source: Source,
    chunk: int,
    reference: nn.Module,
) -> Iterator[Score | Artifact]:
    r"""$x^* = \arg\max_x z_u(x) - \lambda R(x)$, by gradient ascent within the valid range.

    $z_u(x) = (J_u(x) - \bar J_u) / s_u$ is how strongly x excites unit u, in standard deviations of the samples' from
    their mean, so that penalties weigh the same in every network (`erhan2009visualizing`, `simonyan2013deep`). Fourier
    coefficients and random transformations are as in `olah2017feature`, total variation as in
    `mahendran2015understanding`, DeepDream (objective `layer`, start `sample`, some octaves) as in
    `mordvintsev2015inceptionism`, codes of a decoder as in `nguyen2016synthesizing`. Scores are means over images:

    - `recognition`: the share that an independently trained network assigns to the class of their unit
    - `similarity`: Pearson correlation with the trained network's image for the same unit, from the same noise
    - `gain`: $z_u(x^*)$; `natural_gain`: that of the sample which excites the unit most
    - `excess`: the share that excites its unit more than each sample does
    - `seed_similarity`: Pearson correlation of images for the same unit, from other noise
    - `spectral_slope`, `total_variation`; `natural_spectral_slope`, `natural_total_variation`: those of the samples
    - with a prior, gain and recognition of images of random codes (`random_code_...`), and of that of 64 which
      excites the unit most (`best_random_code_...`)

    Where a unit is silent for all that is close to the start, as many behind rectifiers are in random networks, there
    is no gradient, and its image stays what it was.

    Args:
        model: returns logits [n, classes].
        space: what the numbers in the samples mean.
        data: the samples.
        objective: what J is; see `harness.methods.unit_objectives.objective_of`.
        layer: of objectives that are not of the output; by default the last with more than one position.
        units: their indices; or how many, evenly spaced. Of a whole layer: the samples to start from.
        direction: over channels, from the mean of all other classes to that of one; random; or its numbers.
        steps: of each ascent.
        rate: of the ascent.
        fourier: whether coefficients belong to frequencies, and else to pixels.
        jitter: by how much images are shifted at random at most, as a share of each side.
        rotation: by how much they are turned at random at most, in degrees; signals are not.
        scale: by how much they are scaled at random at most, 0.1 from 1 / 1.1 to 1.1; signals are not.
        frequency_penalty: its weight; see `harness.methods.image_regularizers`.
        total_variation: its weight.
        prior: of what codes are optimized in the place of pixels: a decoder that is fitted to the samples, linear or
            a small network.
        start: what images begin from.
        octaves: how many sizes images are optimized in one after the other, each 1.4 times the one before.
        repeats: how many images for each unit.
        seed: of noise and transformations.
        source: has the independently trained network.
        chunk: how many images go through a network at once.
        reference: the trained network.

    Raises:
        NotApplicableError: no such layer or unit; a prior with octaves or a sample to start from; octaves of a network
            that takes inputs of one size only; samples with too many values for an autoencoder.
    """
    if prior != "none" and (start == "sample" or octaves > 1):
        raise NotApplicableError("a prior has codes in the place of pixels: no octaves, and no sample to start from")
    box = Box.of(space, data.x)
    decoder = once(source, ("decoder", prior, seed, tuple(data.ids)), lambda: _decoder(prior, data.x, box, seed))
    search = Search(
        {"kind": objective, "layer": layer, "units": units, "direction": direction},
        Ascent(steps, rate, jitter, rotation, scale, frequency_penalty, total_variation),
        decoder or Coefficients(box, fourier),
        start,
        octaves,
        repeats,
        seed,
        chunk,
    )
    found = search.of(model, data)
    images = found.images.flatten(0, 1)
    # Every network is compared with the trained one.
    how = (search.objective, search.ascent, fourier, prior, start, octaves, repeats, seed, chunk)
    trained = once(
        source,
        ("activation_maximization", repr(how), tuple(data.ids)),
        lambda: images if model is reference else search.of(reference, data).images.flatten(0, 1),
    )
    classes = objective in OF_OUTPUT or (objective, direction) == ("direction", "class_difference")
    target = torch.tensor(found.objective.units, device=images.device)

    yield _recognition("recognition", source, images, target.repeat(repeats), classes, chunk)
    yield _mean("similarity", correlation(images, trained), "images have one colour")
    constant = "what the units return is the same for all samples"
    yield _mean("gain", found.gains(found.peaks), constant)
    yield _mean("natural_gain", found.gains(found.natural).amax(0), constant)
    yield _mean("excess", (found.peaks > found.natural.amax(0)).double())
    if repeats > 1:
        yield _mean(
            "seed_similarity", correlation(images, found.images.roll(1, 0).flatten(0, 1)), "images have one colour"
        )
    for which, some in (("", images), ("natural_", data.x)):
        yield _mean(f"{which}spectral_slope", spectral_slope(some), "images have one colour")
        yield _mean(f"{which}total_variation", variation(box.inside(some)))
    if decoder:
        draws = Draws.of([str(each) for each in range(CANDIDATES)], seed, "random codes", device=data.x.device)
        candidates = decoder.images(draws.normal(decoder.codes).to(data.x.dtype))
        values = torch.cat([found.objective.values(model, part) for part in candidates.split(chunk)])
        gains, best = found.gains(values), values.argmax(0)
        yield _mean("random_code_gain", gains, constant)
        yield _mean("best_random_code_gain", gains.amax(0), constant)
        yield _recognition("best_random_code_recognition", source, candidates[best], target, classes, chunk)
    yield _shown(found, _names(found, data, objective, classes, start))


def _decoder(prior: Prior, x: Float[Tensor, "n c *axes"], box: Box, seed: int) -> Decoder | None:
    if prior == "principal_components":
        return PrincipalComponents.fitted(x, box)
    return VariationalAutoencoder.fitted(x, box, seed) if prior == "variational_autoencoder" else None


def _recognition(
    measure: str, source: Source, x: Float[Tensor, "n ..."], target: Int[Tensor, " n"], classes: bool, chunk: int
) -> Score:
    """The share of images that an independently trained network assigns to these classes."""
    independent = source.retrained() if classes else None
    if independent is None:
        why = "no recipe trains an independent network" if classes else "units of this objective are no classes"
        return _mean(measure, x.new_full((1,), torch.nan), why)
    predicted = torch.cat([independent(part.clone()).argmax(1) for part in x.split(chunk)])
    return _mean(measure, (predicted == target).double())


def _mean(measure: str, values: Float[Tensor, "..."], why: str = "") -> Score:
    """The mean of the values that there are; `why` there may be none."""
    known = values.double()[values.isfinite()]
    if not len(known):
        return Score(measure, torch.tensor(torch.nan, dtype=torch.float64), {why: torch.tensor(True)})
    return Score(measure, known.mean())


def _shown(found: Found, names: tuple[str, ...]) -> Artifact:
    """The first image of each unit; a signal is a curve, and of several channels a picture with a row for each."""
    x, layer = found.images[0].float(), found.objective.layer
    caption = "What excites each unit most, among what the penalties allow."
    stage = layer.name if layer else None
    if x.ndim == 3 and x.shape[1] == 1:
        return Artifact("images", "curves", x[:, 0], names, axes=("input", "position"), stage=stage, caption=caption)
    pictures = x.unsqueeze(1) if x.ndim == 3 else x
    return Artifact("images", "pictures", pictures, names, stage=stage, caption=caption)


def _names(found: Found, data: Samples, objective: str, classes: bool, start: str) -> tuple[str, ...]:
    units = found.objective.units
    if classes:
        return tuple(data.name(unit) for unit in units)
    if objective == "layer" and start == "sample":
        return tuple(data.ids[unit] for unit in units)
    return tuple(f"{objective} {unit}" for unit in units)
