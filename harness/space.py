"""What the numbers of an input mean, so that fills and baselines are named by their meaning.

Zero in normalised units is the mean colour, not black: a fill is therefore named in pixel space and
converted by the model's own normalization.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from harness.entries import nearest
from harness.random import Draws
from harness.types import InputError

Kind = Literal["image", "signal", "bands", "table"]

LEVELS = {"black": 0.0, "grey": 0.5, "white": 1.0}
"""Fills that are a fixed fraction of the valid range, from its low end to its high end."""

NEEDS_BOX = (*LEVELS, "mean", "noise")
KNOWN_FILLS = (*NEEDS_BOX, "zero", "blur")
IMPUTATIONS = ("noisy_linear", "inpaint")
"""Fills that are guessed from what is left, so that a metric can name them and a baseline cannot."""

KNOWN = {"fill": (*KNOWN_FILLS, *IMPUTATIONS), "baseline": KNOWN_FILLS}
"""The names that an option knows."""

SPATIAL_AXES = {"image": 2, "signal": 1, "bands": 1, "table": 0}
BLUR_FRACTION = 0.1


@dataclass(frozen=True)
class InputSpace:
    """How a model's input relates to what a person would call its pixels: `x = (pixel - mean) / std`.

    Attributes:
        kind: image [n,c,h,w], signal [n,c,t], bands [n,f,t] or table [n,f]. Bands are a signal whose channels are an
            ordered axis, frequencies from the lowest to the highest: what is removed, blurred or shifted are frames,
            with all their frequencies, and maps are compared and drawn over both axes.
        mean: mean of each channel in pixel units (one number serves all); None if nothing is declared.
        std: its standard deviation in pixel units; None if nothing is declared.
        low: the smallest valid pixel value, one for all channels or one each.
        high: the largest valid pixel value, likewise.

    Raises:
        InputError: mean without std, numbers that do not fit each other, an empty range.
    """

    kind: Kind
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SPATIAL_AXES:
            raise InputError(f"InputSpace: unknown kind {self.kind!r}; {nearest(self.kind, SPATIAL_AXES)}")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise InputError(f"InputSpace: mean and std come together, one each a channel; got {self.mean}, {self.std}")
        sizes = {len(v) for v in (self.mean, self.low, self.high) if isinstance(v, tuple)} - {1}
        if len(sizes) > 1:
            raise InputError(f"InputSpace: mean, low and high are for different numbers of channels: {sorted(sizes)}")
        if not np.less(self.low, self.high).all() or any(deviation <= 0 for deviation in self.std or ()):
            raise InputError(f"InputSpace: expected low < high and std > 0, got {self.low}, {self.high} and {self.std}")

    @property
    def channels(self) -> int:
        """For how many channels something is declared; 1 if it serves any number."""
        return max((len(v) for v in (self.mean, self.low, self.high) if isinstance(v, tuple)), default=1)

    def check(self, x: Float[Tensor, "n ..."]) -> None:
        """Check that inputs can come from this space.

        Raises:
            InputError: the number of axes or of channels differs.
        """
        axes = 2 + SPATIAL_AXES[self.kind]
        if x.ndim != axes:
            raise InputError(
                f"a space of kind {self.kind!r} has inputs with {axes} axes, got x of shape {list(x.shape)}"
            )
        if self.channels not in (1, x.shape[1]):
            raise InputError(f"the space declares {self.channels} channels, x has {x.shape[1]}")

    def excess(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
        """How far each sample leaves the valid box, in units of the box; 0 inside, and where none is declared."""
        if self.mean is None:
            return x.new_zeros(len(x))
        within = self.within_box(x)
        return torch.maximum(-within, within - 1).flatten(1).amax(1).clamp(min=0)

    def within_box(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """Where in the valid range each value lies, from 0 at its low end to 1 at its high end.

        Where no range is declared, the range of each sample serves.
        """
        if self.mean is None:
            flat = x.flatten(1)
            low, high = (end.view(-1, *(1,) * (x.ndim - 1)) for end in (flat.amin(1), flat.amax(1)))
            return (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)
        low, high = self._per_channel(self.low, x), self._per_channel(self.high, x)
        pixel = x * self._per_channel(self.std, x) + self._per_channel(self.mean, x)
        return (pixel - low) / (high - low)

    @classmethod
    def undeclared(cls, x: Float[Tensor, "n ..."]) -> "InputSpace":
        """The space of inputs of which only the shape is known.

        Raises:
            InputError: not 2, 3 or 4 axes.
        """
        kinds: dict[int, Kind] = {4: "image", 3: "signal", 2: "table"}
        if x.ndim not in kinds:
            raise InputError(f"expected x of shape [n,c,h,w], [n,c,t] or [n,f], got {list(x.shape)}")
        return cls(kinds[x.ndim])

    def bounds(self, x: Float[Tensor, "n *shape"]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The lowest and the highest valid input of each channel, in the units of the model's input.

        Raises:
            InputError: nothing is declared.
        """
        if self.mean is None:
            raise InputError(
                "the range of the input is not declared: InputSpace(kind, mean=..., std=..., low=..., high=...)"
            )
        mean, std = self._per_channel(self.mean, x), self._per_channel(self.std, x)
        low, high = ((self._per_channel(end, x) - mean) / std for end in (self.low, self.high))
        return low, high

    def scale(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """The width of the valid range in the units of the model's input; where none is declared, of each sample's."""
        if self.mean is not None:
            low, high = self.bounds(x)
            return (high - low).expand_as(x)
        flat = x.flatten(1)
        return (flat.amax(1) - flat.amin(1)).view(-1, *(1,) * (x.ndim - 1)).expand_as(x)

    @property
    def default_fill(self) -> str:
        """The fill and baseline that is taken where none is named."""
        return "black" if self.mean is not None and self.kind == "image" else "zero"

    @property
    def fills(self) -> tuple[str, ...]:
        """The names that `fill` knows here."""
        return tuple(name for name in KNOWN_FILLS if not self.refusal(name))

    def refusal(self, name: str, option: Literal["fill", "baseline"] = "baseline") -> str:
        """Why an option of this kind cannot have a fill here; empty if it can."""
        if name not in KNOWN[option]:
            known = f"known: {', '.join(KNOWN[option])}"
            return f"unknown fill {name!r}; {known if name in IMPUTATIONS else nearest(name, KNOWN[option])}"
        if name in NEEDS_BOX and self.mean is None:
            return (
                f"fill {name!r} needs the pixel space, and none is declared: pass "
                "space=InputSpace(kind, mean=..., std=...), or use one of: zero, blur"
            )
        if name in ("blur", *IMPUTATIONS) and self.kind == "table":
            return f"fill {name!r} needs neighbours, and a table has none: use one of: mean, zero"
        return ""

    def fill(self, name: str, x: Float[Tensor, "n *shape"], draws: Draws, draw: int = 0) -> Float[Tensor, "n *shape"]:
        """What stands in the place of what is removed, in the units of the model's input.

        `black`, `grey`, `white`: low end, middle and high end of the valid range. `mean`: the mean of the
        normalization. `noise`: uniform in the valid range, keyed by the sample. `blur`: the sample itself under
        a Gaussian whose standard deviation is a tenth of its longest side. `zero`: zero in the model's own units.

        Raises:
            InputError: the fill is unknown or needs what is not declared.
        """
        reason = self.refusal(name)
        if reason:
            raise InputError(reason)
        if name == "zero":
            return torch.zeros_like(x)
        if name == "blur":
            return self._blur(x)
        low, high = self._per_channel(self.low, x), self._per_channel(self.high, x)
        if name == "mean":
            pixel = self._per_channel(self.mean, x)
        elif name == "noise":
            uniform = draws.uniform(*x.shape[1:], draw=draw).to(x.dtype)
            pixel = low + (high - low) * uniform
        else:
            pixel = low + (high - low) * LEVELS[name]
        return ((pixel - self._per_channel(self.mean, x)) / self._per_channel(self.std, x)).expand_as(x).clone()

    def shifted(self, shift: float | tuple[float, ...]) -> "InputSpace":
        """The space of inputs that all have been moved by `shift`, in the model's units, one number or one a channel.

        What is named by its meaning moves along: levels, range, mean, noise, and also `zero`, which is `shift` now.
        """
        return ShiftedSpace(self.kind, self.mean, self.std, self.low, self.high, shift)

    def _per_channel(
        self, values: float | tuple[float, ...] | None, x: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "..."]:
        tensor = torch.tensor(values, dtype=x.dtype, device=x.device).reshape(-1)
        return tensor.view(-1, *(1,) * SPATIAL_AXES[self.kind])

    def _blur(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        signal = SPATIAL_AXES[self.kind] == 1
        image = x.unsqueeze(-2) if signal else x
        sigma = BLUR_FRACTION * max(image.shape[-2:])
        # Reflection needs a radius below the side, and a signal has no second axis to blur along.
        width, height = (2 * min(round(3 * sigma), side - 1) + 1 for side in (image.shape[-1], image.shape[-2]))
        blurred = gaussian_blur(image, [width, height], [sigma, sigma])
        return blurred.squeeze(-2) if signal else blurred


@dataclass(frozen=True)
class ShiftedSpace(InputSpace):
    """A space whose inputs have been moved: everything is what it was before the move, plus the move.

    Attributes:
        shift: by how much, in the units of the model's input, one number or one for each channel.
    """

    shift: float | tuple[float, ...] = 0.0

    def within_box(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """Where in the valid range each value lies."""
        return super().within_box(x - self._per_channel(self.shift, x))

    def bounds(self, x: Float[Tensor, "n *shape"]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The lowest and the highest valid input of each channel."""
        low, high = super().bounds(x)
        return low + self._per_channel(self.shift, x), high + self._per_channel(self.shift, x)

    def fill(self, name: str, x: Float[Tensor, "n *shape"], draws: Draws, draw: int = 0) -> Float[Tensor, "n *shape"]:
        """What stands in the place of what is removed."""
        shift = self._per_channel(self.shift, x)
        return super().fill(name, x - shift, draws, draw) + shift

    def shifted(self, shift: float | tuple[float, ...]) -> InputSpace:
        """A space moved twice, by the sum."""
        total = tuple(np.atleast_1d(np.add(self.shift, shift)).tolist())
        return super().shifted(total if len(total) > 1 else total[0])
