"""Recordings: wav files as waveforms, as log spectrograms, or as spectrograms whose frequencies are channels."""

import warnings
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.io import wavfile
from scipy.signal import resample_poly, spectrogram
from torch import Tensor

from harness.data import BrokenSampleError, Data
from harness.data.files import Broken, of_files
from harness.registry import data_source
from harness.space import InputSpace
from harness.types import Count, InputError

EXTENSIONS = (".wav",)
HIGHEST_RATE = 1_000_000

Positive = Annotated[float, Field(gt=0)]
_WARNINGS = Lock()


@data_source(argument="PATH")
def audio(
    path: str,
    *,
    base: Path,
    labels: str = "",
    label: str = "label",
    classes: list[str] | None = None,
    train: str = "",
    held_out: str = "",
    broken: Broken = "refuse",
    rate: Count = 8000,
    seconds: Positive = 1.0,
    form: Literal["waveform", "spectrogram", "bands"] = "waveform",
    window: Count = 256,
    hop: Count = 128,
    decibels: Positive = 100.0,
) -> Data:
    """Wav files in a folder, as waveforms [1, t] in [-1, 1] or as log spectrograms in [0, 1].

    A `spectrogram` is a picture [1, frequencies, frames], for networks that convolve over both axes. `bands` are the
    same numbers, [frequencies, frames]: frequencies are channels, the lowest first, for networks that convolve over
    time.

    Channels are averaged, other sampling rates are resampled, and every recording is cut or padded with silence at
    its end. The spectrogram is 10 log10 of the power in Hann windows, clipped to `decibels` below full scale,
    which is 0, to full scale, which is 1.

    Args:
        path: of the folder.
        base: what paths are relative to.
        labels: a CSV file with the column `file`, or a regular expression whose first group is the class; by
            default the class is the subfolder.
        label: the column of that CSV file with the class.
        classes: names of all classes by index; by default those that occur, sorted.
        train: another folder, with the training samples.
        held_out: a regular expression that the paths of samples to explain match; the others are trained on.
        broken: refuse a file that cannot be read, or skip it.
        rate: samples a second that the model takes.
        seconds: the length that the model takes.
        form: waveform, spectrogram or bands.
        window: samples of one spectrum.
        hop: samples from one spectrum to the next.
        decibels: the range of the spectrogram.

    Raises:
        InputError: an empty folder, a file without a class, or windows that do not fit.
    """
    size = round(rate * seconds)
    if size < 1 or (form != "waveform" and not hop <= window <= size):
        raise InputError(
            f"audio:{path}: expected hop <= window <= rate * seconds, got {hop}, {window} and {rate * seconds:g}"
        )
    # Silence is zero in all forms: in the middle of a wave's box, at the end of a spectrogram's.
    spaces = {
        "waveform": InputSpace("signal", (0.0,), (1.0,), -1.0, 1.0),
        "spectrogram": InputSpace("image", (0.0,), (1.0,)),
        "bands": InputSpace("bands", (0.0,), (1.0,)),
    }

    def decode(file: Path) -> Float[Tensor, "c *axes"]:
        wave = read_wave(file, rate)[:size]
        wave = np.pad(wave, (0, size - len(wave)))
        values = wave if form == "waveform" else log_spectrogram(wave, rate, window, hop, decibels)
        sample = torch.from_numpy(values.astype(np.float32))
        return sample if form == "bands" else sample[None]

    return of_files(
        "audio",
        path,
        EXTENSIONS,
        spaces[form],
        decode,
        base=base,
        labels=labels,
        label=label,
        classes=classes,
        train=train,
        held_out=held_out,
        broken=broken,
    )


def read_wave(file: Path, rate: int) -> Float[np.ndarray, " t"]:
    """One channel in [-1, 1] at this sampling rate.

    Raises:
        BrokenSampleError: not a wav file, one that ends too early, or one without samples.
    """
    try:
        # What to do with warnings is one setting for all threads.
        with _WARNINGS, warnings.catch_warnings():
            # A file that ends too early is only warned about; unknown chunks are harmless.
            warnings.filterwarnings("error", message="Reached EOF")
            warnings.filterwarnings("ignore", message="Chunk")
            theirs, wave = wavfile.read(file)
    # SciPy stumbles over broken headers in many ways; whichever it is, this file cannot be read.
    except Exception as error:
        raise BrokenSampleError(f"cannot read {str(file)!r}: {error}") from None
    if not len(wave) or not 0 < theirs <= HIGHEST_RATE:
        raise BrokenSampleError(f"cannot read {str(file)!r}: {len(wave)} samples, {theirs} of them a second")
    values = wave.astype(np.float64)
    if wave.dtype == np.uint8:
        values = (values - 128) / 128
    elif wave.dtype.kind == "i":
        values /= -float(np.iinfo(wave.dtype).min)
    values = values.mean(1) if values.ndim == 2 else values
    if theirs != rate:
        divisor, loudest = np.gcd(rate, theirs), max(1.0, np.abs(values).max())
        # The filter swings beyond the range at steps.
        values = resample_poly(values, rate // divisor, theirs // divisor).clip(-loudest, loudest)
    return values


def log_spectrogram(
    wave: Float[np.ndarray, " t"], rate: int, window: int, hop: int, decibels: float
) -> Float[np.ndarray, "frequencies frames"]:
    """10 log10 of the power spectrum, from `decibels` below full scale (0) to full scale (1)."""
    _, _, power = spectrogram(
        wave, fs=rate, window="hann", nperseg=window, noverlap=window - hop, detrend=False, scaling="spectrum"
    )
    return 10 * np.log10(power.clip(10 ** (-decibels / 10), 1)) / decibels + 1
