"""Frequencies as channels: maps are compared and drawn over frequency and time, and move with the sound in time."""

import base64
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from sample_maps import generator, normal
from scipy import stats
from scipy.io import wavfile
from torch import nn

import harness
from harness.catalogue import DATA
from harness.data.planted_band import planted_band
from harness.drawn import maps_as_drawn, samples_as_drawn
from harness.figures import figures_of
from harness.gallery import Gallery, Shown
from harness.metrics.comparison import Measure, compare, ready, shifted
from harness.metrics.profiles import frequency_profile, time_profile
from harness.metrics.similarity import cosine, pearson, spearman, top_k
from harness.networks import SpeechCNN
from harness.panels import draw
from harness.pictures import keep_cascade, options_of, read_cascade
from harness.preparation import prepare
from harness.progress import silent
from harness.random import Draws
from harness.report import maps as report_maps
from harness.report.writing import _cascades
from harness.space import InputSpace
from harness.training import Lesson, Recipe, accuracy
from harness.types import InputError

IMAGES: tuple[Measure, ...] = ("spearman", "pearson", "cosine", "ssim", "hog", "top_k")
ALL: tuple[Measure, ...] = (*IMAGES, "time_profile", "frequency_profile")
LABELS = ("measure", "channels", "sign", "normalization")
PROFILES = {"time_profile": time_profile, "frequency_profile": frequency_profile}
FREQUENCIES, FRAMES = 13, 17


def literal_profile(values, name):
    """One sum after the other."""
    frequencies, frames = values.shape
    if name == "time_profile":
        return [sum(float(values[f, t]) for f in range(frequencies)) for t in range(frames)]
    return [sum(float(values[f, t]) for t in range(frames)) for f in range(frequencies)]


def literal_pearson(a, b):
    """By the definition."""
    left, right = [x - sum(a) / len(a) for x in a], [x - sum(b) / len(b) for x in b]

    def product(one, other):
        return sum(x * y for x, y in zip(one, other, strict=True))

    return product(left, right) / (product(left, left) * product(right, right)) ** 0.5


def opened(folder, **options):
    source = DATA["audio"]
    return source.load(str(folder), source.resolve(options), base=folder)


def compared(a, b, measures=ALL, kind="bands"):
    """Scores by measure and sign."""
    first, second = (ready(maps, whose, measures, kind=kind) for maps, whose in ((a, "trained"), (b, "compared")))
    return {(score.measure, score.sign): score for score in compare(first, second)}


# --- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_profile_correlation_is_that_of_literal_sums(name, dtype):
    a = normal(4, FREQUENCIES, FRAMES, dtype=dtype)
    b = a + normal(4, FREQUENCIES, FRAMES, seed=1, dtype=dtype)
    measure = PROFILES[name]
    expected = [literal_pearson(literal_profile(x, name), literal_profile(y, name)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(measure(a, b).numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(measure(a, b), measure(b, a))
    assert measure(a, a).tolist() == [1.0] * 4
    torch.testing.assert_close(measure(a, -3 * a + 1), -torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_each_profile_sees_its_own_axis_only():
    a = normal(5, FREQUENCIES, FRAMES)
    order = torch.randperm(FREQUENCIES, generator=generator())
    scrambled = a[:, order]
    torch.testing.assert_close(time_profile(a, scrambled), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (frequency_profile(a, scrambled) < 0.9).all()
    moved = a.roll(5, 2)
    torch.testing.assert_close(frequency_profile(a, moved), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (time_profile(a, moved) < 0.9).all()


def test_bands_are_compared_over_frequency_and_time_and_without_ssim_and_hog():
    a = normal(6, FREQUENCIES, FRAMES)
    b = a + normal(6, FREQUENCIES, FRAMES, seed=1)
    plain = {"spearman": spearman, "pearson": pearson, "cosine": cosine, "top_k": top_k, **PROFILES}
    views = {"signed": (a, b), "absolute": (a.abs(), b.abs())}
    expected = {(name, sign): measure(*pair) for name, measure in plain.items() for sign, pair in views.items()}
    expected["spearman", "up_to_sign"] = expected["spearman", "signed"].abs()
    found = compared(a, b)
    assert set(found) == set(expected)
    for name, score in found.items():
        torch.testing.assert_close(score.values, expected[name], rtol=0, atol=1e-14, msg=str(name))
        assert (score.channels, score.normalization, score.undefined) == ("kept", "none", {})
    for x, y, ours in zip(a, b, found["spearman", "signed"].values.tolist(), strict=True):
        assert ours == pytest.approx(stats.spearmanr(x.flatten(), y.flatten()).statistic, abs=1e-12)


def test_the_frequency_axis_is_not_reduced():
    a, detail = normal(5, FREQUENCIES, FRAMES), 3 * normal(5, FREQUENCIES, FRAMES, seed=1)
    b = a + detail - detail.mean(1, keepdim=True)  # the same sum over frequencies
    summed, whole = (compared(a, b, ("spearman",), kind)["spearman", "signed"] for kind in ("signal", "bands"))
    assert (summed.channels, whole.channels) == ("sum", "kept")
    assert (summed.values > 0.99).all()
    assert (whole.values < 0.6).all()


@pytest.mark.parametrize(
    ("kind", "shape"), [("image", (3, 14, 15)), ("signal", (3, 14)), ("table", (14,)), (None, (3, 14))]
)
@pytest.mark.parametrize("convention", ["harness", "adebayo2018"])
def test_of_other_inputs_nothing_changes(kind, shape, convention):
    a, b = normal(4, *shape), normal(4, *shape, seed=1)
    before = list(compare(*(ready(maps, "x", IMAGES, convention) for maps in (a, b))))
    after = list(compare(*(ready(maps, "x", ALL, convention, kind) for maps in (a, b))))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.values, other.values)
        assert all(getattr(one, name) == getattr(other, name) for name in LABELS)


def test_the_shift_floor_moves_bands_in_time_and_the_frequency_profile_around_its_own_axis():
    a, b = normal(6, FREQUENCIES, FRAMES), normal(6, FREQUENCIES, FRAMES, seed=1)
    words = torch.rand(6, 1, generator=generator(), dtype=torch.float64)
    moved = ready(b, "compared", ALL, kind="bands").shifted(words)
    found = {(s.measure, s.sign): s.values for s in compare(ready(a, "trained", ALL, kind="bands"), moved)}
    in_time = compared(a, shifted(b, words))
    in_frequency = compared(a, shifted(b.mT, words).mT)
    assert set(found) == set(in_time)
    for name, values in found.items():
        expected = (in_frequency if name[0] == "frequency_profile" else in_time)[name].values
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-13, msg=str(name))


def test_a_constant_profile_has_no_correlation_and_says_so():
    a, b = normal(3, FREQUENCIES, FRAMES), normal(3, FREQUENCIES, FRAMES, seed=1)
    # Sums over frequencies are zero in all frames; absolute ones are 2.
    b[1] = 0
    b[1, 0], b[1, 1] = 1, -1
    b[2] = torch.nan
    scores = compared(a, b)
    for (measure, sign), score in scores.items():
        reasons = {reason: where.nonzero().flatten().tolist() for reason, where in score.undefined.items()}
        constant = {"constant time profile (compared)": [1]} if measure == "time_profile" else {}
        assert reasons == {"not finite (compared)": [2], **constant}, (measure, sign)
        assert score.values.isnan().tolist() == [False, bool(constant), True]


def test_maps_of_one_channel_have_no_frequency_profile_and_all_else():
    a, b = normal(3, 1, FRAMES), normal(3, 1, FRAMES, seed=1)
    scores = compared(a, b)
    assert {measure for measure, _ in scores} == set(ALL) - {"ssim", "hog", "frequency_profile"}
    assert torch.equal(scores["spearman", "signed"].values, spearman(a, b))


# --- data ------------------------------------------------------------------------------------------------------------


def test_bands_of_recordings_are_the_numbers_of_the_spectrogram(tmp_path):
    wave = np.sin(np.arange(8000) * 0.3) * np.linspace(0, 1, 8000)
    wavfile.write(tmp_path / "a.wav", 8000, wave.astype(np.float32))
    bands, picture = opened(tmp_path, form="bands"), opened(tmp_path, form="spectrogram")
    assert bands.read(0).shape == (129, 61)
    assert torch.equal(bands.read(0), picture.read(0)[0])
    assert (bands.space, picture.space.kind) == (InputSpace("bands", (0.0,), (1.0,)), "image")
    level = bands.read(0).mean(1)
    assert int(level.argmax()) == round(0.3 / (2 * np.pi) * 256)  # row f is f times the rate over the window
    with pytest.raises(InputError, match="expected hop <= window <= rate"):
        opened(tmp_path, form="bands", hop=300)


def test_planted_bands_are_the_planted_spectrograms():
    bands, pictures = planted_band(form="bands"), planted_band()
    assert bands.space == InputSpace("bands", (0.0,), (1.0,))
    for ours, theirs in ((bands, pictures), (bands.train, pictures.train)):
        assert (ours.ids, ours.labels.tolist()) == (theirs.ids, theirs.labels.tolist())
        assert torch.equal(ours.batch(range(20)), theirs.batch(range(20))[:, 0])
        assert torch.equal(ours.masks(range(20)), theirs.masks(range(20)).amax(2))
    assert torch.equal(bands.planted.other_truth(3), pictures.planted.other_truth(3)[0])
    assert torch.equal(bands.planted.other_rest(3), pictures.planted.other_rest(3)[0])


@pytest.mark.parametrize("name", ["black", "grey", "white", "mean", "zero", "noise", "blur"])
def test_fills_of_bands_are_those_of_a_signal(name):
    x = normal(3, 5, 40)
    draws = Draws.of(["a", "b", "c"], 0)
    bands, signal = (InputSpace(kind, (0.2,) * 5, (0.5,) * 5).fill(name, x, draws) for kind in ("bands", "signal"))
    assert torch.equal(bands, signal)


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_bands_are_drawn_with_the_lowest_frequency_at_the_bottom():
    x, maps = torch.rand(2, 5, 7, generator=generator()), normal(2, 5, 7)
    assert torch.equal(samples_as_drawn(x, "bands")[:, 0, -1], x[:, 0])
    assert torch.equal(maps_as_drawn(maps, x, "bands")[:, -1], maps[:, 0])
    assert torch.equal(maps_as_drawn(maps[:, :1], x, "bands"), maps[:, :1].expand(2, 5, 7))
    assert torch.equal(maps_as_drawn(maps, x, "signal"), maps.sum(1))
    assert samples_as_drawn(x, "signal") is x


def lone_tone():
    """One sample whose lowest frequency alone sounds, with a map that is one there and minus one at the top."""
    x = torch.zeros(1, 40, 30)
    x[0, 0], maps = 1, torch.zeros(1, 40, 30)
    maps[0, 0], maps[0, -1] = 1, -1
    return x, maps


def of_the_tone(model, x, target):
    """A method that says what is drawn."""
    return lone_tone()[1].expand_as(x).clone()


def test_the_report_shows_maps_of_bands_as_pictures():
    x, _ = lone_tone()
    model = SpeechCNN((40, 30), 3).eval()
    results = harness.evaluate(
        model,
        x,
        methods=[of_the_tone, "center_gaussian"],
        metrics=["sparseness"],
        space=InputSpace("bands", (0.0,), (1.0,)),
        save_maps=True,
    )
    (shown,) = report_maps.gallery(results)
    ours, gaussian = ({"shape": None} | each for each in shown["methods"][:2])
    assert ours["shape"] == gaussian["shape"] == [40, 30]
    values = np.frombuffer(zlib.decompress(base64.b64decode(ours["values"])), np.int8).reshape(40, 30)
    assert (values[-1] == 127).all()
    assert (values[0] == -127).all()
    assert not values[1:-1].any()
    assert shown["samples"][0]["picture"].startswith("data:image/png")


def test_harness_show_draws_them_as_pictures():
    x, _ = lone_tone()
    gallery = Gallery("net", "bands", [Shown("a", samples_as_drawn(x, "bands")[0].numpy(), "class 0", "")])
    gallery.maps["of_the_tone"] = maps_as_drawn(of_the_tone(None, x, None), x, "bands").numpy()
    figure = draw(gallery)
    sample, ours = (axis.get_images()[0] for axis in figure.axes)
    assert (sample.get_cmap().name, ours.get_cmap().name) == ("gray", "RdBu_r")
    for image, bottom, top in ((sample, 1, 0), (ours, 1, -1)):
        assert image.origin == "upper"
        values = image.get_array()
        assert values.shape == (40, 30)
        assert ((values[-1] == bottom).all(), (values[0] == top).all()) == (True, True)
    said = " ".join(text.get_text() for text in figure.texts)
    assert "lowest frequency is at the bottom" in said
    assert "Channels are summed" not in said


# --- a network over time ---------------------------------------------------------------------------------------------

NEAR = 10
"""How many frames from an end the network can tell it: an output sees 6 to either side, and 4 outputs see the end."""


def lively(frequencies=9, classes=3, padding_mode="zeros"):
    """A network with batch norms that do something, in float64."""
    torch.manual_seed(0)
    model = SpeechCNN((frequencies, 40), classes).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Conv1d):
            module.padding_mode = padding_mode
    return model


METHODS_THAT_MOVE = ["gradient", "input_x_gradient", "integrated_gradients", "lrp_epsilon", "guided_backprop"]


@pytest.mark.parametrize("method", METHODS_THAT_MOVE[:3])  # the rules of others know no circular padding
def test_without_borders_maps_move_with_the_sound(method):
    """Circular convolutions, any shift, everywhere: the network has no way to know when something sounds."""
    model, x = lively(padding_mode="circular"), normal(4, 9, 40)
    target = torch.tensor([0, 1, 2, 0])
    maps = harness.explain(model, x, target, method=method)
    for by in (1, 7, 23):
        moved = harness.explain(model, x.roll(by, 2), target, method=method)
        torch.testing.assert_close(moved, maps.roll(by, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS_THAT_MOVE)
def test_in_silence_maps_move_with_the_sound_as_long_as_it_stays_off_the_ends(method):
    """Zero padding: the logits stay where the sound and both its places are `NEAR` frames from either end.

    So do maps, at all frames that are as far from them themselves; nearer, what is silent shows where the end is.
    """
    model, x = lively(), torch.zeros(4, 9, 40, dtype=torch.float64)
    x[:, :, NEAR : NEAR + 6] = normal(4, 9, 6)
    target, by = torch.tensor([0, 1, 2, 0]), 40 - 2 * NEAR - 6
    moved = x.roll(by, 2)
    torch.testing.assert_close(model(moved), model(x), rtol=0, atol=1e-12)
    assert not torch.allclose(model(x.roll(-1, 2)), model(x), rtol=0, atol=1e-6)
    maps, other = (harness.explain(model, each, target, method=method) for each in (x, moved))
    expected = maps[:, :, NEAR : 40 - NEAR - by]
    torch.testing.assert_close(other[:, :, NEAR + by : 40 - NEAR], expected, rtol=0, atol=1e-12)
    if method == "gradient":
        assert not torch.allclose(other[:, :, by : NEAR + by], maps[:, :, :NEAR], rtol=0, atol=1e-6)


def test_any_number_of_frames_will_do():
    model = lively()
    for frames in (1, 40, 100):
        assert model(normal(2, 9, frames)).shape == (2, 3)


@cache
def trained():
    """A network that knows the planted bands, and those that it has not seen."""
    data = planted_band(form="bands")
    torch.manual_seed(0)
    model = SpeechCNN((129, 61), 4)
    x, y = data.train.batch(range(400)), data.train.labels[:400]
    Recipe(3, 3, 20, 3e-3, 0.1).fit(model, x, y, Lesson("speech", 0), lambda *_: None)
    held_out, labels = data.batch(range(16)), data.labels[:16]
    assert accuracy(model, held_out, labels) > 0.9
    return model, held_out, data.space


@pytest.mark.slow
def test_the_randomization_test_passes_the_gradient_and_fails_the_energy_in_every_measure():
    model, x, space = trained()
    measures = ["spearman", "pearson", "cosine", "ssim", "hog", "time_profile", "frequency_profile"]
    results = harness.evaluate(
        model,
        x,
        methods=["gradient", "input_magnitude"],
        metrics=[{"metric": "parameter_randomization", "measures": measures, "cascade_draws": 1}],
        space=space,
        build=lambda: SpeechCNN((129, 61), 4),
    )
    judged = results.table("verdicts")
    signed = judged[judged["sign"] == "signed"].set_index(["method", "measure"])["verdict"]
    assert set(judged["channels"]) == {"kept"}
    assert set(judged["measure"]) == set(measures) - {"ssim", "hog"}
    for measure in set(measures) - {"ssim", "hog"}:
        assert signed["input_magnitude", measure] == "FAIL", measure
        assert signed["gradient", measure] == "PASS", measure
    energy = judged[judged["method"] == "input_magnitude"].set_index(["measure", "sign"])
    assert (energy["similarity"] == 1).all()
    assert (energy["floor_shift"] < 1).all()
    stages = results.table("cascade")
    assert set(stages["sign"]) == {"signed", "up_to_sign"}
    names = list(stages[stages["method"] == "gradient"]["stage"].unique())
    assert names == ["linear", "fc1", "hidden3", "hidden2", "hidden1"]


@pytest.mark.slow
def test_what_a_class_is_told_by_is_found_in_frequency():
    """Input times gradient, over frequency and time: what speaks for a class is in its box, many times above chance."""
    model, x, space = trained()
    data, pictures = planted_band(form="bands"), planted_band()
    box = pictures.masks(range(16))[:, 0].bool()
    maps = harness.explain(model, x, data.labels[:16], method="input_x_gradient", space=space).clamp(min=0)
    share = (maps * box).flatten(1).sum(1) / maps.flatten(1).sum(1)
    frames = (maps * data.masks(range(16))).flatten(1).sum(1) / maps.flatten(1).sum(1)
    assert (share > 5 * box.double().mean()).all()
    assert (frames >= share).all()


@pytest.mark.slow
def test_a_run_keeps_a_cascade_of_them_and_its_report_shows_it(tmp_path):
    for index in range(2):
        wavfile.write(tmp_path / f"{index}.wav", 800, np.sin(np.arange(300) * (0.4 + index)).astype(np.float32))
    options = {"form": "bands", "labels": r"(\d)", "rate": 800, "window": 64, "hop": 32}
    study = {
        "name": "bands",
        "data": {"source": f"audio:{tmp_path}", **options},
        "models": [{"name": "speech", "source": "speech-cnn", "weights": "random"}],
        "methods": ["gradient", "grad_cam"],
        "metrics": [{"metric": "parameter_randomization", "full_draws": 1, "cascade_draws": 1}],
    }
    results = harness.run(study, tmp_path / "out", views=False, save_maps=True)
    planned = prepare(study, tmp_path / "out", device="cpu", samples=None, chunk=None, progress=silent)
    groups = [group for group in planned.groups if group.tasks and options_of(group)]
    path = tmp_path / "out" / "figures" / "cascade-speech.npz"
    keep_cascade(groups, [group.tasks[0].cell.method for group in groups], path, seed=planned.seed)
    cascade, _ = read_cascade(path)
    assert cascade.image.shape == (1, 33, 24)
    assert cascade.maps.shape[1:] == (6, 33, 24)
    x = opened(tmp_path, **options).read(0)
    np.testing.assert_array_equal(cascade.image[0], x.flip(0).numpy())
    for row, method in enumerate(cascade.methods[:2]):
        kept = np.broadcast_to(results.maps(method).maps[0], (33, 24))
        np.testing.assert_allclose(cascade.maps[row, 0], kept[::-1], rtol=0, atol=1e-6, err_msg=method)
    assert "cascade-speech" in dict(figures_of(results, path.parent))
    (shown,) = _cascades(results)
    assert shown["address"].startswith("data:image/webp")
    assert results.samples().kind == "bands"
