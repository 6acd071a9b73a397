"""The comparisons of two batches of maps that the randomization tests report, as scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from harness.metrics.preprocessing import (
    Channels,
    degenerate,
    diverging_clip,
    first_reason,
    min_max,
    percentile_clip,
    reduce_channels,
    undefined_as_nan,
)
from harness.metrics.profiles import SUMMED, profile
from harness.metrics.similarity import Prepared, Vectors, centred, largest, ranked, vectors
from harness.metrics.structure import LEAST_SIDE, WINDOW, Channelwise, Descriptors, descriptors, windows
from harness.space import Kind
from harness.types import Distinct, NotApplicableError, Score

Measure = Literal["spearman", "pearson", "cosine", "ssim", "hog", "top_k", "time_profile", "frequency_profile"]
Measures = Annotated[Sequence[Measure], Field(min_length=1), Distinct]
"""An option that names the measures of a test."""

Convention = Literal["harness", "adebayo2018"]
"""An option that says what is done to raw maps before they are compared: see `ready`."""

MEASURES: tuple[Measure, ...] = ("spearman", "ssim", "hog")
VIEWS: tuple[tuple[Channels, str], ...] = (("sum", "signed"), ("abs_sum", "absolute"))
VIEWS_OF_BANDS: tuple[tuple[Channels, str], ...] = (("kept", "signed"), ("kept", "absolute"))
FRACTION = 0.1
"""Of the positions, whose largest values `top_k` compares."""

Reasons = dict[str, Bool[Tensor, " n"]]


@dataclass(frozen=True)
class Part:
    """What one measure compares of a batch of maps, in one view of them.

    Attributes:
        measure: what will be computed.
        channels: see `Score`.
        sign: see `Score`.
        normalization: see `Score`.
        prepared: the maps.
        undefined: reason -> the maps that have no similarity to any in this view.
    """

    measure: Measure
    channels: Channels
    sign: str
    normalization: str
    prepared: Prepared
    undefined: Reasons

    def reasons(self, whose: str) -> Reasons:
        """Why maps have no similarity to any, also those that lie in what was prepared."""
        match self.prepared:
            case Descriptors(squares=squares):
                return self.undefined | {f"constant HOG descriptor ({whose})": squares.isnan()}
            case Vectors(squares=squares) if self.measure in SUMMED:
                return self.undefined | {f"constant {self.measure.replace('_', ' ')} ({whose})": squares.isnan()}
            case Vectors(squares=squares) if self.normalization.endswith("clip"):
                return self.undefined | {f"constant once it is clipped ({whose})": squares == 0}
        return self.undefined


@dataclass(frozen=True)
class Ready:
    """A batch of maps with everything that can be computed of it once, however often it is compared.

    Attributes:
        parts: one for each measure and view.
        axes: the shape of the positions of a map, of bands with that of their frequencies before it.
        whose: the maps, named in reasons.
        bands: whether the first axis is frequency.
    """

    parts: tuple[Part, ...]
    axes: tuple[int, ...]
    whose: str
    bands: bool = False

    def shifted(self, words: Float[Tensor, "n axes"]) -> "Ready":
        """What `ready` makes of the `shifted` maps, for the rank measures at the price of a look-up.

        Bands are moved in time only, because a map moved in frequency is that of another sound. That leaves their
        frequency profile as it is, which is moved around its own axis instead.
        """
        if not self.bands:
            return self._moved(torus_index(self.axes, words), {})
        frequencies, frames = self.axes
        in_time = torus_index((frames,), words)
        rows = frames * torch.arange(frequencies, device=words.device)
        profiles = {"time_profile": in_time, "frequency_profile": torus_index((frequencies,), words)}
        return self._moved((rows[:, None] + in_time[:, None]).flatten(1), profiles)

    def _moved(self, index: Int[Tensor, "n d"], others: Mapping[str, Int[Tensor, "n places"]]) -> "Ready":
        """With the positions of each part rearranged, those of some measures in their own way."""
        moved = (replace(part, prepared=part.prepared.moved(others.get(part.measure, index))) for part in self.parts)
        return replace(self, parts=tuple(moved))

    def rolled(self) -> "Ready":
        """The map of another sample in the place of each: that of the one before. A batch of one has none."""
        return replace(self, parts=tuple(_rolled(part) for part in self.parts))


def ready(
    maps: Float[Tensor, "n *shape"],
    whose: str,
    measures: Sequence[Measure] = MEASURES,
    convention: Convention = "harness",
    kind: Kind | None = None,
) -> Ready:
    """Everything that can be computed of a batch of maps before it is compared with others.

    Spearman, Pearson, cosine and top_k (the largest tenth) are of the signed and of the absolute maps; SSIM is of
    absolute ones clipped at their 99th percentile, for images and signals of at least 11 positions an axis; HOG is of
    signed ones scaled to [0, 1], for images of at least 12 pixels a side. What does not apply is left out.

    Of bands channels are kept, which are frequencies: measures are over frequency and time. SSIM and HOG, which compare
    neighbours, are left out; `time_profile` and `frequency_profile`, which nothing else has, come in where they are
    named (`harness.metrics.profiles`). Conventions are about pictures, and make no difference.

    By the convention of `adebayo2018sanity`, as in its notebooks, maps of several channels are clipped at their 99th
    percentile before they are ranked; SSIM is of signed maps scaled to [0, 1], channel by channel, with a data range of
    2 and sample covariances; HOG is compared by rank. That makes unrelated maps look alike: see `harness.nulls`.

    Args:
        maps: raw maps [n,c,h,w], [n,c,t] or, for tables, [n,f].
        whose: the maps, named in reasons.
        measures: of similarity.
        convention: what is done to the maps before.
        kind: of the inputs; only `bands` makes a difference.

    Raises:
        NotApplicableError: none of the measures applies.
    """
    parts, bands = [], kind == "bands"
    prepared_by = _of_bands if bands else _prepared if convention == "harness" else _originally
    for channels, sign in VIEWS_OF_BANDS if bands else VIEWS:
        values, whole = reduce_channels(maps.abs() if bands and sign == "absolute" else maps, channels), maps
        undefined = first_reason(degenerate(values, whose))
        if undefined:
            # What a measure does to a broken map is no number of ours; zeros in, NaN out.
            values, whole = values.nan_to_num(0, 0, 0), maps.nan_to_num(0, 0, 0)
        for measure in measures:
            for normalization, prepared in prepared_by(measure, sign, values, whole):
                seen: Channels = "each" if isinstance(prepared, Channelwise) else channels
                parts.append(Part(measure, seen, sign, normalization, prepared, undefined))
    if not parts:
        needs = f"ssim needs {WINDOW} positions an axis, hog images of {LEAST_SIDE} pixels a side, a profile bands"
        raise NotApplicableError(f"{', '.join(measures)}: nothing to compare maps {list(maps.shape[1:])} by: {needs}")
    return Ready(tuple(parts), tuple(values.shape[1:]), whose, bands)


def compare(a: Ready, b: Ready, **labels: Any) -> Iterator[Score]:
    """The similarities of each pair, in the measures that both were made ready for.

    A pair in which a map is constant or not finite has no similarity: NaN with the reason. The Spearman correlation of
    signed maps comes `up_to_sign` as well, as its absolute value: for a randomized network, or for another class, a map
    may keep its shape and only change its sign as a whole, with that of the output (`sixt2020explanations`).

    Args:
        a: maps, of the trained network for example.
        b: as many maps of the same shape, for the same measures.
        labels: further fields of the scores (role, mode, stage, draw).

    Raises:
        ValueError: they were made ready for different measures or shapes.
    """
    ours, theirs = ([(part.measure, part.sign) for part in side.parts] for side in (a, b))
    if (ours, a.axes) != (theirs, b.axes):
        raise ValueError(f"expected maps {a.axes} made ready for {ours}, got {b.axes} for {theirs}")
    for first, second in zip(a.parts, b.parts, strict=True):
        undefined = first_reason(first.reasons(a.whose), second.reasons(b.whose))
        values = undefined_as_nan(first.prepared.similarity(second.prepared), undefined)
        view: dict[str, Any] = {"channels": first.channels, "sign": first.sign, "normalization": first.normalization}
        yield Score(first.measure, values, undefined, **view, **labels)
        if first.measure == "spearman" and first.sign == "signed":
            yield Score(first.measure, values.abs(), undefined, **{**view, "sign": "up_to_sign"}, **labels)


def shifted(maps: Float[Tensor, "n *shape"], words: Float[Tensor, "n axes"]) -> Float[Tensor, "n *shape"]:
    """Each map moved around the torus by its own random offset, never by zero.

    The null that keeps what makes maps look alike by chance: their values and their smoothness. Permuting
    pixels would destroy the smoothness and understate chance more than tenfold.

    Args:
        maps: [n,c,h,w], [n,c,t] or, for tables, [n,f].
        words: uniform numbers in (0, 1), one for each position axis.
    """
    axes = maps.shape[2:] or maps.shape[1:]
    flat = maps.reshape(len(maps), -1, prod(axes))
    index = torus_index(tuple(axes), words)[:, None].expand_as(flat)
    return flat.gather(2, index).view_as(maps)


def torus_index(axes: tuple[int, ...], words: Float[Tensor, "n axes"]) -> Int[Tensor, "n d"]:
    """For each position of the `shifted` maps, in one row, the position that its value comes from."""
    index = torch.zeros(len(words), 1, dtype=torch.long, device=words.device)
    for size, word in zip(axes, words.unbind(1), strict=True):
        offset = 1 + (word * (size - 1)).long().clamp(max=max(size - 2, 0))
        line = (torch.arange(size, device=words.device) - offset[:, None]) % size
        index = (index[:, :, None] * size + line[:, None]).flatten(1)
    return index


def _prepared(
    measure: Measure, sign: str, values: Float[Tensor, "n *axes"], maps: Float[Tensor, "n *shape"]
) -> Iterator[tuple[str, Prepared]]:
    """Normalization and prepared maps, or nothing where the measure does not apply to this view."""
    images, least = values.ndim == 3, min(values.shape[1:])
    match measure:
        case "spearman":
            yield "none", ranked(values)
        case "pearson":
            yield "none", centred(values)
        case "cosine":
            yield "none", vectors(values)
        case "top_k":
            yield "none", largest(values, FRACTION)
        case "ssim" if sign == "absolute" and maps.ndim > 2 and least >= WINDOW:
            yield "percentile_clip", windows(percentile_clip(values), data_range=1.0)
        case "hog" if sign == "signed" and images and least >= LEAST_SIDE:
            yield "min_max", descriptors(min_max(values))


def _originally(
    measure: Measure, sign: str, values: Float[Tensor, "n *axes"], maps: Float[Tensor, "n *shape"]
) -> Iterator[tuple[str, Prepared]]:
    """The same by the convention of `adebayo2018sanity`."""
    images, least, channels = values.ndim == 3, min(values.shape[1:]), maps.shape[1]
    match measure:
        case "spearman" if maps.ndim > 2 and channels > 1:
            clip = diverging_clip if sign == "signed" else percentile_clip
            yield clip.__name__, ranked(clip(values))
        case "ssim":
            if sign == "signed" and maps.ndim > 2 and least >= WINDOW:
                scaled = windows(min_max(maps).flatten(0, 1), data_range=2.0, sample_covariance=True)
                yield "min_max_range_2", Channelwise(scaled, channels)
        case "hog":
            if sign == "signed" and images and least >= LEAST_SIDE:
                yield "min_max_rank", descriptors(min_max(values), rank=True)
        case _:
            yield from _prepared(measure, sign, values, maps)


def _of_bands(
    measure: Measure, sign: str, values: Float[Tensor, "n frequencies frames"], maps: Float[Tensor, "n *shape"]
) -> Iterator[tuple[str, Prepared]]:
    """The same over frequency and time."""
    match measure:
        case "time_profile" | "frequency_profile":
            # A map of one channel, which is that of all frequencies, has no profile over them.
            if measure == "time_profile" or values.shape[1] > 1:
                yield "none", centred(profile(values, measure))
        case "spearman" | "pearson" | "cosine" | "top_k":
            yield from _prepared(measure, sign, values, maps)


def _rolled(part: Part) -> Part:
    undefined = {reason: where.roll(1, 0) for reason, where in part.undefined.items()}
    everywhere = part.prepared.everywhere()
    if len(everywhere) == 1:
        undefined["no other sample"] = everywhere
    return replace(part, prepared=part.prepared.rolled(), undefined=first_reason(undefined))
