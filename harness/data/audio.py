"""Recordings: wav files as waveforms or as log spectrograms."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.io import wavfile
from scipy.signal import resample_poly, spectrogram
from torch import Tensor

from harness.data import BrokenSampleError, Data
from harness.data.files import Broken, of_files
from harness.registry import data_source
from harness.space import InputSpace

EXTENSIONS = (".wav",)
QUIETEST = 1e-12


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
    rate: int = 8000,
    seconds: float = 1.0,
    form: Literal["waveform", "spectrogram"] = "waveform",
    window: int = 256,
    hop: int = 128,
    decibels: float = 100.0,
) -> Data:
    """Wav files in a folder, as waveforms [1, t] in [-1, 1] or as log spectrograms [1, frequencies, frames] in [0, 1].

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
        form: waveform or spectrogram.
        window: samples of one spectrum.
        hop: samples from one spectrum to the next.
        decibels: the range of the spectrogram.

    Raises:
        InputError: an empty folder, or a file without a class.
    """
    size = round(rate * seconds)
    # Silence is zero in both forms, in the middle of the one box and at the end of the other.
    space = (
        InputSpace("signal", (0.0,), (1.0,), -1.0, 1.0) if form == "waveform" else InputSpace("image", (0.0,), (1.0,))
    )

    def decode(file: Path) -> Float[Tensor, "c *axes"]:
        wave = read_wave(file, rate)[:size]
        wave = np.pad(wave, (0, size - len(wave)))
        values = wave if form == "waveform" else log_spectrogram(wave, rate, window, hop, decibels)
        return torch.from_numpy(values.astype(np.float32))[None]

    return of_files(
        "audio",
        path,
        EXTENSIONS,
        space,
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
        BrokenSampleError: not a wav file, or one that ends too early.
    """
    try:
        with warnings.catch_warnings():
            # A file that ends too early is only warned about; unknown chunks are harmless.
            warnings.filterwarnings("error", message="Reached EOF")
            warnings.filterwarnings("ignore", message="Chunk")
            theirs, wave = wavfile.read(file)
    except (ValueError, EOFError, OSError, wavfile.WavFileWarning) as error:
        raise BrokenSampleError(f"cannot read {str(file)!r}: {error}") from None
    values = wave.astype(np.float64)
    if wave.dtype == np.uint8:
        values = (values - 128) / 128
    elif wave.dtype.kind == "i":
        values /= -float(np.iinfo(wave.dtype).min)
    values = values.mean(1) if values.ndim == 2 else values
    if theirs != rate:
        divisor = np.gcd(rate, theirs)
        values = resample_poly(values, rate // divisor, theirs // divisor)
    return values


def log_spectrogram(
    wave: Float[np.ndarray, " t"], rate: int, window: int, hop: int, decibels: float
) -> Float[np.ndarray, "frequencies frames"]:
    """10 log10 of the power spectrum, from `decibels` below full scale (0) to full scale (1)."""
    _, _, power = spectrogram(
        wave, fs=rate, window="hann", nperseg=window, noverlap=window - hop, detrend=False, scaling="spectrum"
    )
    return np.clip(10 * np.log10(power + QUIETEST), -decibels, 0) / decibels + 1
