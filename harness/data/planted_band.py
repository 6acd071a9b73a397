"""A task with a known truth on spectrograms: the band of a burst of noise alone decides the class."""

from dataclasses import replace
from functools import cache
from math import tau
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.data import Data, Planted, of_tensors
from harness.data.audio import log_spectrogram
from harness.data.planting import exchanged
from harness.random import Draws
from harness.registry import data_source
from harness.space import InputSpace

RATE, SIZE, WINDOW, HOP, DECIBELS = 8000, 8000, 256, 128, 100.0
"""As the source `audio` has them by default, but for their number."""

CENTRES = (500.0, 1250.0, 2750.0, 3500.0)
NEUTRAL = 2000.0
"""Of the bands, in hertz: one a class, and that of the distractor."""

BURST, PARTIALS = 2048, 16
"""Samples in a burst, a quarter of a second, and sines that it is made of."""

BINS, FRAMES = 5, 15
"""How far a box reaches from the centre of its band, in bins, and how many frames are all in the burst."""

NOISE, LOUDNESS, BANDWIDTH = 0.01, 0.03, 60.0
"""Amplitudes of the noise everywhere and of bursts; standard deviation of the frequencies in a burst, in hertz."""

Form = Literal["spectrogram", "bands"]

COUNTS = {"planted-band/train": 800, "planted-band": 200}


@data_source()
@cache
def planted_band(*, form: Form = "spectrogram") -> Data:
    """1,000 log spectrograms of synthetic noise, 1 x 129 x 61, in which a burst in one of four bands is the class.

    As the source `audio` makes them of a second at 8 kHz. Each has white noise throughout, a burst of a quarter of a
    second in the band that is the class, and one in a fifth band that is the same for all classes; when they come is
    random. 800 to train and 200 held out.

    Masks are the box of the burst that decides, 11 bins by 15 frames. What the window spreads of it is cut off
    outside the box, so that nothing else tells the class.

    Args:
        form: a `spectrogram` is a picture; as `bands`, 129 x 61, its frequencies are channels, and masks are the
            frames of the burst, 1 x 61.
    """
    if form == "bands":
        return _as_bands(planted_band(form="spectrogram"))
    return _recordings("planted-band", _recordings("planted-band/train", None))


def _as_bands(data: Data) -> Data:
    """The same numbers without the axis of their one channel."""
    planted, read_mask = data.planted, data.read_mask
    assert read_mask is not None
    return replace(
        data,
        space=InputSpace("bands", (0.0,), (1.0,)),
        read=lambda row: data.read(row)[0],
        read_mask=lambda row: read_mask(row).amax(1),
        planted=planted and Planted(lambda row: planted.other_truth(row)[0], lambda row: planted.other_rest(row)[0]),
        train=data.train and _as_bands(data.train),
    )


def _recordings(name: str, train: Data | None) -> Data:
    """Recordings whose classes are equally frequent, in a random order that the name fixes."""
    count, classes = COUNTS[name], len(CENTRES)
    labels = Draws.of([name], "classes").permutation(count)[0] % classes
    ids = [f"{name}/{row}" for row in range(count)]
    draws = Draws.of(ids, "recordings")
    others = (labels + 1 + draws.integers(classes - 1, draw=0)) % classes
    onsets = draws.integers((SIZE - WINDOW) // HOP + 2 - FRAMES, 2, draw=1)
    # Four bytes of each word: uniform, and as white as normal noise.
    noise = (draws.bits(SIZE // 4, draw=2)[..., None] >> torch.arange(0, 32, 8)) & 255
    noise = NOISE * (noise.flatten(1).double() / 127.5 - 1)
    rest = noise + _bursts(torch.full((count,), NEUTRAL), onsets[:, 1], draws, 3)
    background = _spectrograms(rest)

    def with_burst(classes: Tensor) -> tuple[Tensor, Tensor]:
        """Where a burst of each class is, and the spectrograms with it."""
        box = _boxes(classes, onsets[:, 0])
        burst = _bursts(torch.tensor(CENTRES)[classes], onsets[:, 0], draws, 4)
        return box, torch.where(box, _spectrograms(rest + burst), background)

    box, x = with_burst(labels)
    space = InputSpace("image", (0.0,), (1.0,))
    data = of_tensors("planted-band", x, labels, space, ids=ids, train=train, masks=box.float())
    if train is None:
        return data
    other_rest = torch.where(box, x, background.roll(1, 0))
    return replace(data, planted=exchanged(with_burst(others)[1], other_rest))


def _bursts(centres: Float[Tensor, " n"], onsets: Int[Tensor, " n"], draws: Draws, draw: int) -> Float[Tensor, "n t"]:
    """Sines of random frequencies and phases under a Hann window that begins at these frames; silence around them."""
    frequencies = centres[:, None] + BANDWIDTH * draws.normal(PARTIALS, draw=2 * draw)
    phases = tau * draws.uniform(PARTIALS, draw=2 * draw + 1)
    time = torch.arange(BURST, dtype=torch.float64)
    angles = tau / RATE * frequencies[..., None] * time + phases[..., None]
    burst = LOUDNESS * torch.hann_window(BURST, dtype=torch.float64) * angles.cos().sum(1) / PARTIALS**0.5
    where = HOP * onsets[:, None] + torch.arange(BURST)
    return torch.zeros(len(onsets), SIZE, dtype=torch.float64).scatter(1, where, burst)


def _boxes(classes: Int[Tensor, " n"], onsets: Int[Tensor, " n"]) -> Bool[Tensor, "n 1 frequencies frames"]:
    """Where the bursts are: around the centre of the band, and in the frames that are all in the burst."""
    centre = (torch.tensor(CENTRES)[classes] * WINDOW / RATE).round()
    bins = (torch.arange(WINDOW // 2 + 1) - centre[:, None]).abs() <= BINS
    frames = torch.arange((SIZE - WINDOW) // HOP + 1) - onsets[:, None]
    return (bins[:, :, None] & ((frames >= 0) & (frames < FRAMES))[:, None])[:, None]


def _spectrograms(waves: Float[Tensor, "n t"]) -> Float[Tensor, "n 1 frequencies frames"]:
    found = [log_spectrogram(wave, RATE, WINDOW, HOP, DECIBELS) for wave in waves.numpy()]
    return torch.from_numpy(np.stack(found)).float()[:, None]
