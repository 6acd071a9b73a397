"""Recordings: every encoding gives the same wave, the spectrogram is that of the definition, broken files are named."""

import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from harness.catalogue import DATA
from harness.data import BrokenSampleError
from harness.data.audio import log_spectrogram, read_wave
from harness.entries import OptionError
from harness.types import InputError

RATE = 8000


def opened(base, path="wavs", **options):
    source = DATA["audio"]
    return source.load(path, source.resolve(options), base=base)


def sine(frequency=440.0, rate=RATE, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def save(base, path, wave, rate=RATE):
    file = base / "wavs" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(file, rate, wave)
    return file


ENCODINGS = {
    "int16": (lambda x: np.round(x * 2**15).astype(np.int16), 2.0**-15),
    "int32": (lambda x: np.round(x * 2**31).astype(np.int32), 2.0**-24),
    "uint8": (lambda x: np.round(x * 2**7 + 128).astype(np.uint8), 2.0**-7),
    "float32": (lambda x: x.astype(np.float32), 2.0**-24),
    "float64": (lambda x: x, 2.0**-24),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_the_same_wave(tmp_path, name):
    encode, step = ENCODINGS[name]
    save(tmp_path, "a.wav", encode(sine()))
    data = opened(tmp_path)
    assert data.read(0).shape == (1, RATE)
    assert data.read(0).dtype == torch.float32
    np.testing.assert_allclose(data.read(0)[0].numpy(), sine(), rtol=0, atol=step / 2 + 1e-7)
    assert (data.space.kind, data.space.low, data.space.high, data.space.mean) == ("signal", -1.0, 1.0, (0.0,))


@pytest.mark.parametrize(("dtype", "lowest"), [(np.int16, -(2**15)), (np.int32, -(2**31)), (np.uint8, 0)])
def test_the_lowest_level_is_minus_one_and_silence_is_zero(tmp_path, dtype, lowest):
    file = save(tmp_path, "a.wav", np.array([lowest, 128 if dtype is np.uint8 else 0], dtype))
    assert read_wave(file, RATE).tolist() == [-1, 0]


def test_24_bits_are_scaled_by_their_own_range(tmp_path):
    file = save(tmp_path, "a.wav", np.zeros(4, np.int16))
    levels = [-(2**23), -1, 2**22, 2**23 - 1]
    body = b"".join(level.to_bytes(3, "little", signed=True) for level in levels)
    form = np.array([1, 1], "<u2").tobytes() + np.array([RATE, 3 * RATE], "<u4").tobytes()
    form += np.array([3, 24], "<u2").tobytes()
    chunks = b"WAVEfmt \x10\0\0\0" + form + b"data" + len(body).to_bytes(4, "little") + body
    file.write_bytes(b"RIFF" + len(chunks).to_bytes(4, "little") + chunks)
    np.testing.assert_allclose(read_wave(file, RATE), np.array(levels) / 2**23, rtol=0, atol=1e-12)


def test_channels_are_averaged(tmp_path):
    channels = np.stack([sine(300), sine(700), sine(900)], 1).astype(np.float32)
    file = save(tmp_path, "a.wav", channels)
    np.testing.assert_allclose(read_wave(file, RATE), channels.astype(np.float64).mean(1), atol=1e-12)


@pytest.mark.parametrize("theirs", [4000, 11025, 16000, 44100, 48000])
def test_another_sampling_rate_keeps_the_sound(tmp_path, theirs):
    wave = sine(500, theirs)
    file = save(tmp_path, "a.wav", wave)
    wavfile.write(file, theirs, wave)
    read = read_wave(file, RATE)
    assert len(read) == RATE
    inner = slice(100, -100)  # at the ends the filter sees the silence outside
    np.testing.assert_allclose(read[inner], sine(500)[inner], atol=5e-3)
    up, down = RATE // np.gcd(RATE, theirs), theirs // np.gcd(RATE, theirs)
    np.testing.assert_allclose(read, resample_poly(wave, up, down), atol=1e-12)
    assert np.abs(np.fft.rfft(read)).argmax() == 500
    wavfile.write(file, 16000, sine(7000, 16000))  # above what the lower rate can hold: gone, not mirrored to 1000
    assert np.abs(read_wave(file, RATE)[inner]).max() < 1e-2


def test_resampling_does_not_leave_the_range(tmp_path):
    square = np.sign(sine(100, 16000)).astype(np.float32)
    file = save(tmp_path, "a.wav", square, 16000)
    assert np.abs(resample_poly(square, 1, 2)).max() > 1.02
    assert np.abs(read_wave(file, RATE)).max() == 1
    assert opened(tmp_path).space.excess(opened(tmp_path).batch([0])).tolist() == [0]
    save(tmp_path, "a.wav", 3 * square, 16000)  # beyond full scale already, which is not ours to hide
    assert np.abs(read_wave(file, RATE)).max() == 3


@pytest.mark.parametrize(("seconds", "length"), [(0.25, 2000), (1.0, 8000), (1.00005, 8000), (2.5, 20000)])
def test_recordings_are_cut_or_padded_with_silence_at_their_end(tmp_path, seconds, length):
    save(tmp_path, "a.wav", sine().astype(np.float32))
    wave = opened(tmp_path, seconds=seconds).read(0)[0]
    expected = np.concatenate([sine(), np.zeros(20000)])[:length]
    np.testing.assert_allclose(wave.numpy(), expected, atol=1e-7)


def literal_spectrogram(wave, window, hop, decibels):
    """By the definition, one coefficient after the other."""
    times = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * times / window)
    columns = []
    for start in range(0, len(wave) - window + 1, hop):
        part = wave[start : start + window] * hann
        powers = []
        for k in range(window // 2 + 1):
            coefficient = sum(part * np.exp(-2j * np.pi * k * times / window)) / sum(hann)
            both_sides = 2 if 0 < k < window / 2 else 1
            powers.append(both_sides * abs(coefficient) ** 2)
        level = [10 * np.log10(power) if power > 0 else -np.inf for power in powers]
        columns.append([min(max(each, -decibels), 0) / decibels + 1 for each in level])
    return np.array(columns).T


@pytest.mark.parametrize(("window", "hop", "decibels"), [(64, 32, 100.0), (50, 7, 60.0), (31, 31, 150.0)])
def test_the_spectrogram_is_that_of_the_definition(window, hop, decibels):
    generator = np.random.default_rng(0)
    wave = generator.normal(size=5 * window) * np.logspace(-6, 0, 5 * window) + 0.1
    wave[: 2 * window] = 0
    ours = log_spectrogram(wave, RATE, window, hop, decibels)
    assert ours.shape == (window // 2 + 1, (4 * window) // hop + 1)
    np.testing.assert_allclose(ours, literal_spectrogram(wave, window, hop, decibels), rtol=0, atol=1e-9)
    assert (ours.min(), ours.max() < 1) == (0, True)


@pytest.mark.parametrize("decibels", [100.0, 60.0, 160.0])
def test_silence_is_zero_and_a_full_sine_three_decibels_below_full_scale(tmp_path, decibels):
    save(tmp_path, "a.wav", sine(1000, amplitude=1.0).astype(np.float32))
    save(tmp_path, "b.wav", np.zeros(RATE, np.int16))
    data = opened(tmp_path, form="spectrogram", decibels=decibels)
    x = data.batch([0, 1])
    assert x.shape == (2, 1, 129, 61)
    assert (data.space.kind, data.space.low, data.space.high) == ("image", 0.0, 1.0)
    assert torch.equal(x[1], torch.zeros(1, 129, 61))
    level = (x[0, 0].numpy() - 1) * decibels
    assert (level.argmax(0) == 1000 * 256 // RATE).all()
    np.testing.assert_allclose(level[32], 10 * np.log10(0.5), atol=1e-4)  # -3.01: the power of a sine is a half
    np.testing.assert_allclose(level[31], level[32] - 20 * np.log10(2), atol=1e-4)  # the neighbours of a Hann window
    assert data.space.excess(x).max() == 0


@pytest.mark.parametrize(
    "options",
    [{"window": 128}, {"hop": 64}, {"seconds": 0.5}, {"rate": 4000}, {"window": 9000, "seconds": 2.0, "hop": 9000}],
)
def test_the_shape_of_a_spectrogram_follows_from_its_options(tmp_path, options):
    save(tmp_path, "a.wav", sine().astype(np.float32))
    rate, seconds = options.get("rate", RATE), options.get("seconds", 1.0)
    window, hop = options.get("window", 256), options.get("hop", 128)
    x = opened(tmp_path, form="spectrogram", **options).read(0)
    assert x.shape == (1, window // 2 + 1, (round(rate * seconds) - window) // hop + 1)


def test_windows_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path, "a.wav", sine().astype(np.float32))
    for options in ({"window": 9000}, {"hop": 300}, {"seconds": 0.01}):
        with pytest.raises(InputError, match="audio:wavs: expected hop <= window <= rate"):
            opened(tmp_path, form="spectrogram", **options)
        assert opened(tmp_path, **options).read(0).ndim == 2  # nothing to a waveform
    with pytest.raises(InputError, match="expected hop <= window <= rate"):
        opened(tmp_path, seconds=1e-5)
    for option, value in (("rate", 0), ("hop", 0), ("window", -1), ("seconds", 0.0), ("decibels", -3.0), ("form", "x")):
        with pytest.raises(OptionError, match=f"audio: option '{option}' expects"):
            opened(tmp_path, **{option: value})


def test_labels_and_the_split_come_from_the_names_of_the_files(tmp_path):
    names = [f"{digit}_{who}_{take}.wav" for digit in (7, 0, 3) for who in ("ann", "bob") for take in range(4)]
    for seed, name in enumerate(names):
        save(tmp_path, name, np.random.default_rng(seed).normal(size=100).astype(np.float32))
    data = opened(tmp_path, labels=r"(\d)_.*", held_out=r"_[02]\.wav", seconds=100 / RATE)
    assert list(data.ids) == [name for name in sorted(names) if name[-5] in "02"]
    assert sorted([*data.ids, *data.train.ids]) == sorted(names)
    assert not set(data.ids) & set(data.train.ids)
    for part in (data, data.train):
        assert part.labels.tolist() == [int(name[0]) for name in part.ids]
        for row, name in enumerate(part.ids):
            wave = np.random.default_rng(names.index(name)).normal(size=100).astype(np.float32)
            np.testing.assert_array_equal(part.read(row)[0].numpy(), wave)
    speakers = opened(tmp_path, labels=r"_(ann|bob)_")
    assert speakers.classes == ("ann", "bob")
    assert speakers.labels.tolist() == [int("bob" in name) for name in sorted(names)]


def test_a_file_that_is_no_whole_recording_is_named(tmp_path):
    whole = save(tmp_path, "0.wav", sine().astype(np.float32)).read_bytes()
    broken = {
        "1_cut.wav": whole[:-400],
        "2_header.wav": whole[:30],
        "3_empty.wav": b"",
        "4_text.wav": b"no recording at all",
        "5_no_rate.wav": whole[:24] + bytes(4) + whole[28:],
        "6_fast.wav": whole[:24] + b"\xff\xff\xff\x7f" + whole[28:],
        "7_no_data.wav": whole[:36],
    }
    for name, content in broken.items():
        (tmp_path / "wavs" / name).write_bytes(content)
    save(tmp_path, "8_nothing.wav", np.zeros(0, np.int16))
    data = opened(tmp_path)
    assert len(data) == 9
    for row in range(1, 9):
        with pytest.raises(BrokenSampleError, match=re.escape(f"wavs/{data.ids[row]}'")):
            data.read(row)
    with pytest.raises(BrokenSampleError, match=r"1_cut\.wav.*`broken: skip`"):
        data.readable(range(9))
    rows, x, errors = opened(tmp_path, broken="skip").readable(range(9))
    assert (rows, x.shape, len(errors)) == ([0], (1, 1, RATE), 8)


def test_many_threads_tell_a_file_that_ends_too_early_and_leave_warnings_as_they_were(tmp_path, monkeypatch):
    file = save(tmp_path, "a.wav", np.ones(1000, np.int16))
    file.write_bytes(file.read_bytes()[:-200])
    before, read = list(warnings.filters), wavfile.read
    pauses = iter(np.random.default_rng(0).uniform(0, 4e-3, 200).tolist())

    def slow(path):
        time.sleep(next(pauses))
        return read(path)

    def is_refused(_):
        with pytest.raises(BrokenSampleError):
            read_wave(file, RATE)
        return True

    monkeypatch.setattr(wavfile, "read", slow)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(is_refused, range(200))) == 200
    assert warnings.filters == before


def test_unknown_parts_of_a_file_are_passed_over(tmp_path):
    file = save(tmp_path, "a.wav", sine().astype(np.float32))
    plain, chunk = file.read_bytes(), b"xyz \4\0\0\0note"
    size = (int.from_bytes(plain[4:8], "little") + len(chunk)).to_bytes(4, "little")
    file.write_bytes(plain[:4] + size + plain[8:] + chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(read_wave(file, RATE), sine(), atol=1e-7)


def test_no_bytes_whatever_raise_anything_else(tmp_path):
    file = save(tmp_path, "a.wav", sine(seconds=0.05).astype(np.float32))
    raw, generator, outcomes = file.read_bytes(), np.random.default_rng(0), set()
    for _ in range(400):
        damaged = np.frombuffer(raw, np.uint8).copy()[: generator.choice([len(raw), generator.integers(1, len(raw))])]
        where = generator.integers(min(len(damaged), 60), size=3)
        damaged[where[(where < 24) | (where > 27)]] = generator.integers(256)  # the rate is harmless, but slow
        file.write_bytes(damaged.tobytes())
        try:
            outcomes.add(str(read_wave(file, RATE).ndim))
        except BrokenSampleError as error:
            outcomes.add("broken" if str(file) in str(error) else str(error))
    assert outcomes == {"1", "broken"}
