"""The images that excite units of one network most, many units at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from harness.introspecting import Samples
from harness.methods.image_ascent import Ascent
from harness.methods.image_parameters import Coefficients
from harness.methods.image_prior import Decoder
from harness.methods.unit_objectives import Objective, objective_of
from harness.random import Draws
from harness.types import NotApplicableError

NOISE = 0.1
"""The standard deviation of the coefficients that an image starts from."""

OCTAVE = 1.4
"""By how much each size of an image is larger than the one before."""


@dataclass(frozen=True)
class Found:
    """What excites the units of a network most: r images for each unit, which began from other noise.

    Attributes:
        objective: the units.
        natural: how strongly the samples excite them.
        images: in the units of the model's input.
        peaks: how strongly each image excites its unit.
    """

    objective: Objective
    natural: Float[Tensor, "n units"]
    images: Float[Tensor, "r units c *axes"]
    peaks: Float[Tensor, "r units"]

    def gains(self, values: Float[Tensor, "some units"]) -> Float[Tensor, "some units"]:
        """Excitations in standard deviations of the samples' from their mean; NaN where these do not differ."""
        deviation = self.natural.std(0, correction=0)
        return torch.where(deviation > 0, (values - self.natural.mean(0)) / deviation, torch.nan)


@dataclass(frozen=True)
class Search:
    """How the images are sought.

    Attributes:
        objective: of what, the options of `objective_of` by name.
        ascent: by which steps.
        medium: what is optimized in the place of pixels.
        start: from what.
        octaves: in how many sizes.
        repeats: how many images for each unit.
        seed: of noise and transformations.
        chunk: how many images go through the network at once.
    """

    objective: Mapping[str, Any]
    ascent: Ascent
    medium: Coefficients | Decoder
    start: Literal["noise", "sample"]
    octaves: int
    repeats: int
    seed: int
    chunk: int

    def of(self, model: nn.Module, data: Samples) -> Found:
        """What it finds. Each image depends on its unit and its repeat alone, and not on the other images.

        Raises:
            NotApplicableError: no such layer or unit, or octaves of a network that takes inputs of one size only.
        """
        x, options = data.x, {**self.objective, "seed": self.seed, "chunk": self.chunk}
        objective = objective_of(model=model, x=x, labels=data.labels, **options)
        excited = [
            torch.cat([objective.values(model, part, climbing) for part in x.split(self.chunk)])
            for climbing in ((False, True) if objective.climbed else (False,))
        ]
        natural, scale = excited[0], excited[-1]
        mean, deviation = scale.mean(0), scale.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        self._check_sizes(model, x)
        images, peaks = [], []
        for some in torch.arange(self.repeats * len(objective.units), device=x.device).split(self.chunk):
            at = some % len(objective.units)

            def height(batch: Tensor, at: Tensor = at) -> Float[Tensor, " n"]:
                values = objective.values(model, batch, climbing=True)
                return ((values - mean) / deviation).gather(1, at[:, None])[:, 0]

            names = [f"{each // len(objective.units)}/{objective.units[each % len(objective.units)]}" for each in some]
            samples = x[[objective.units[each] % len(x) for each in at]]
            images.append(self._climbed(height, samples, names))
            peaks.append(objective.values(model, images[-1]).gather(1, at[:, None])[:, 0])
        shape = (self.repeats, len(objective.units))
        return Found(objective, natural, torch.cat(images).unflatten(0, shape), torch.cat(peaks).unflatten(0, shape))

    def _climbed(
        self, height: Callable[[Tensor], Tensor], samples: Float[Tensor, "n c *axes"], names: list[str]
    ) -> Float[Tensor, "n c *axes"]:
        medium = self.medium
        draws = Draws.of(names, self.seed, "start", device=samples.device)
        if isinstance(medium, Decoder):
            code = draws.normal(medium.codes).to(samples.dtype)
            return medium.images(self._ascended(height, code, names, 0))
        noise = NOISE * draws.normal(*samples.shape[1:]).to(samples.dtype)
        begun = samples if self.start == "sample" else medium.images(noise)
        change = torch.zeros_like(begun)
        for octave, sides in enumerate(self._sizes(begun)):
            base = resized(begun, sides)
            code = medium.of(base + resized(change, sides))
            x = medium.images(self._ascended(height, code, names, octave))
            change = x - base
        return x

    def _ascended(self, height: Callable[[Tensor], Tensor], code: Tensor, names: list[str], octave: int) -> Tensor:
        draws = Draws.of(names, self.seed, "transformations", octave, device=code.device)
        return self.ascent.climb(height, self.medium.images, code, self.medium.box, draws)

    def _sizes(self, x: Float[Tensor, "n c *axes"]) -> list[tuple[int, ...]]:
        shrunk = [OCTAVE**-octave for octave in reversed(range(self.octaves))]
        return [tuple(max(1, round(side * factor)) for side in x.shape[2:]) for factor in shrunk]

    def _check_sizes(self, model: nn.Module, x: Float[Tensor, "n c *axes"]) -> None:
        """Check that the network takes images of all sizes.

        Raises:
            NotApplicableError: it does not.
        """
        smallest = self._sizes(x)[0]
        try:
            model(resized(x[:1], smallest).clone())
        except RuntimeError as error:
            raise NotApplicableError(f"octaves: the network takes no inputs of {list(smallest)} positions") from error


def resized(x: Float[Tensor, "n c *axes"], sides: tuple[int, ...]) -> Float[Tensor, "n c *others"]:
    """Images or signals at another size, by linear interpolation, averaged where they become smaller."""
    if tuple(x.shape[2:]) == sides:
        return x
    if x.ndim == 3:
        return resized(x.unsqueeze(2), (1, *sides)).squeeze(2)
    return F.interpolate(x, list(sides), mode="bilinear", antialias=True)
