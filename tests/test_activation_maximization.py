"""Activation maximization where the maximum is known, its objectives written out, and digits that two networks see."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from cases import Linear, network
from harness import INTROSPECTIONS, Artifact, NotApplicableError, Samples
from harness.entries import OptionError
from harness.methods.correlations import correlation
from harness.methods.image_ascent import Ascent
from harness.methods.image_parameters import Box, Coefficients
from harness.methods.maximal_images import OCTAVE, Search
from harness.methods.unit_objectives import objective_of
from harness.models.loaded import LoadedModel
from harness.preparation import prepare
from harness.progress import silent
from harness.random import Draws
from harness.space import InputSpace

ENTRY = INTROSPECTIONS["activation_maximization"]
UNIT = InputSpace("image", (0.0,), (1.0,))
PLAIN = {"jitter": 0.0, "rotation": 0.0, "scale": 0.0, "total_variation": 0.0, "fourier": False}
DRAWS = Draws.of(["one"], 0, "tests")
DEFAULTS = {"layer": "", "units": 10, "direction": "class_difference", "seed": 0, "chunk": 64}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Retrained(LoadedModel):
    """A model whose independently trained network is given."""

    other = None

    def retrained(self):
        return self.other


def samples(x, labels=None, classes=()):
    return Samples(x, labels, [f"s{index}" for index in range(len(x))], classes)


def source_of(model, x, other=None):
    source = Retrained(model, None, 0, x[:1], lambda: x)
    source.other = other
    return source


def ask(model, x, *, space=UNIT, other=None, reference=None, labels=None, source=None, seed=5, chunk=64, **options):
    source = source or source_of(model, x, other)
    filled = {"seed": seed, "source": source, "chunk": chunk, "reference": reference or model}
    with torch.no_grad():
        found = list(ENTRY.function(model, space, samples(x, labels), **ENTRY.resolve(options), **filled))
    (pictures,) = (each for each in found if isinstance(each, Artifact))
    scores = [each for each in found if not isinstance(each, Artifact)]
    assert len({each.measure for each in scores}) == len(scores)
    return {each.measure: each.values.item() for each in scores}, pictures, {s.measure: s.undefined for s in scores}


def search(model, x, labels=None, space=UNIT, repeats=1, chunk=64, octaves=1, start="noise", ascent=None, **objective):
    wanted = {"kind": "logit", "layer": "", "units": 10, "direction": "class_difference", **objective}
    pixels = Coefficients(Box.of(space, x), True)
    how = Search(wanted, ascent or Ascent(10, 0.1), pixels, start, octaves, repeats, 0, chunk)
    with torch.no_grad():
        return how.of(model, samples(x, labels))


def values(kind, model, x, labels=None, **options):
    with torch.no_grad():
        objective = objective_of(kind, model, x, labels, **{**DEFAULTS, **options})
        return objective, objective.values(model, x)


@pytest.fixture(scope="module")
def linear():
    return Linear(normal(4, 36), normal(4, seed=1)).eval(), uniform(200, 1, 6, 6)


def test_of_a_linear_model_the_maximum_is_at_the_ends_of_the_box_by_the_sign_of_the_weights(linear):
    model, x = linear
    scores, pictures, _ = ask(model, x, **PLAIN, steps=60, rate=2.0)
    weight = model.weight.detach()
    best = (weight > 0).double()
    torch.testing.assert_close(pictures.values.double().flatten(1), best, atol=1e-3, rtol=0)
    logits = model(x).detach()
    peaks = weight.clamp(min=0).sum(1) + model.bias.detach()
    gains = (peaks - logits.mean(0)) / logits.std(0, correction=0)
    assert scores["gain"] == pytest.approx(gains.mean().item(), rel=1e-3)
    natural = ((logits.amax(0) - logits.mean(0)) / logits.std(0, correction=0)).mean().item()
    assert scores["natural_gain"] == pytest.approx(natural)
    assert scores["excess"] == 1
    assert scores["seed_similarity"] == pytest.approx(1, abs=1e-3)


def test_the_first_step_follows_the_gradient(linear):
    model, x = linear
    box = Box.of(UNIT, x)
    pixels = Coefficients(box, False)
    start = pixels.of(x[:1])
    moved = Ascent(1, 1e-3).climb(lambda images: model(images)[:, 2], pixels.images, start, box, DRAWS)
    # The first step of Adam is the learning rate by the sign of the gradient.
    torch.testing.assert_close(
        moved - start, 1e-3 * model.weight[2].detach().sign().view(1, 1, 6, 6), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("fourier", [True, False])
def test_a_smooth_objective_with_penalties_ends_where_scipy_does(fourier):
    x, goal = uniform(20, 1, 4, 4), uniform(1, 1, 4, 4, seed=1)
    box = Box.of(UNIT, x)
    pixels = Coefficients(box, fourier)

    def value(images):
        return -(images - goal).square().flatten(1).sum(1)

    def height(image):
        image = torch.as_tensor(image).view(4, 4)
        spectrum = torch.fft.fft2(image, norm="ortho").abs().square()
        f = torch.fft.fftfreq(4, dtype=torch.float64)
        frequency = (spectrum * (f[:, None] ** 2 + f[None] ** 2)).mean()
        return (-(image - goal[0, 0]).square().sum() - 3 * frequency).item()

    ascent = Ascent(600, 0.05, frequency_penalty=3.0)
    ours = pixels.images(ascent.climb(value, pixels.images, 0 * goal, box, DRAWS))
    theirs = minimize(lambda image: -height(image), np.full(16, 0.5), bounds=[(0, 1)] * 16, method="L-BFGS-B")
    np.testing.assert_allclose(ours.flatten().numpy(), theirs.x, atol=2e-3)


def test_a_probability_is_reached_from_where_it_has_no_gradient(linear):
    model, x = linear
    certain = Linear(60 * model.weight.detach(), 400 * torch.arange(4, dtype=torch.float64)).eval()
    unlikely = certain(x).softmax(1)[:, 0]
    assert unlikely.max() < 1e-100
    found = search(certain, x, kind="probability", units=[0], ascent=Ascent(60, 0.5))
    assert found.peaks.item() > 1e20 * unlikely.max()


def test_total_variation_makes_images_of_fewer_edges_at_the_price_of_gain(linear):
    model, x = linear
    free, _, _ = ask(model, x, **PLAIN)
    smooth, _, _ = ask(model, x, **{**PLAIN, "total_variation": 100.0})
    assert smooth["total_variation"] < 0.5 * free["total_variation"]
    assert smooth["gain"] < free["gain"]


def test_objectives_are_what_they_are_by_definition():
    model, x, labels = network("modules", torch.float64, n=6)
    inner = nn.Sequential(*model[:3])(x).detach()
    logits = model(x).detach()
    where = {"layer": "2"}
    torch.testing.assert_close(values("logit", model, x)[1], logits)
    torch.testing.assert_close(values("logit", model, x, units=[3, 1])[1], logits[:, [3, 1]])
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(values("probability", model, x)[1], probability)
    objective, _ = values("probability", model, x)
    torch.testing.assert_close(objective.values(model, x, climbing=True), probability.log())
    torch.testing.assert_close(values("channel", model, x, **where)[1], inner.mean((2, 3)))
    torch.testing.assert_close(values("neuron", model, x, **where)[1], inner[:, :, 6, 6])
    objective, found = values("layer", model, x, units=2, **where)
    torch.testing.assert_close(found, (inner**2).sum((1, 2, 3))[:, None].expand(-1, 2))
    assert objective.units == (0, 1)
    objective, found = values("direction", model, x, labels, **where)
    assert objective.units == (0, 1, 2, 3)
    for unit in range(4):
        means = inner.mean((2, 3))
        v = means[labels == unit].mean(0) - means[labels != unit].mean(0)
        torch.testing.assert_close(found[:, unit], means @ v / v.norm())


def test_a_direction_along_one_channel_is_that_channel():
    model, x, _ = network("modules", torch.float64)
    _, channel = values("channel", model, x, layer="2", units=[4])
    _, along = values("direction", model, x, layer="2", direction=[0.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    torch.testing.assert_close(along, channel)
    images = [
        search(model, x, kind=kind, layer="2", **how).images
        for kind, how in (("channel", {"units": [0]}), ("direction", {"direction": [2.0] + [0.0] * 5}))
    ]
    torch.testing.assert_close(*images)


def test_random_directions_differ_have_length_one_and_are_the_same_for_every_network():
    model, x, _ = network("modules", torch.float64)
    _, one = values("direction", model, x, layer="2", direction="random", units=3)
    _, same = values("direction", model, x, layer="2", direction="random", units=[0, 2])
    torch.testing.assert_close(one[:, [0, 2]], same)
    _, other = values("direction", model, x, layer="2", direction="random", units=3, seed=1)
    assert not torch.allclose(one, other)


def test_the_default_layer_is_the_last_with_positions_and_units_are_evenly_spaced():
    model, x, _ = network("modules", torch.float64)
    objective, _ = values("channel", model, x, units=3)
    assert objective.layer.name == "5"
    assert objective.units == (0, 2, 5)
    assert values("logit", model, x, units=2)[0].units == (0, 3)
    assert values("logit", model, x, units=1)[0].units == (0,)
    assert values("logit", model, x, units=99)[0].units == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["modules", "functional", "in_place", "signal"])
def test_many_units_at_once_are_as_one_at_a_time(name):
    model, x, _ = network(name, torch.float64)
    space = InputSpace("image" if x.ndim == 4 else "signal", (0.0,), (1.0,))
    ascent = Ascent(6, 0.1, 0.1, 10.0, 0.1, 1.0, 1.0)
    together = search(model, x, space=space, repeats=2, ascent=ascent)
    for index in range(4):
        alone = search(model, x, space=space, repeats=2, ascent=ascent, units=[index])
        torch.testing.assert_close(together.images[:, [index]], alone.images)
        torch.testing.assert_close(together.peaks[:, [index]], alone.peaks)
    torch.testing.assert_close(together.images, search(model, x, space=space, repeats=2, ascent=ascent, chunk=3).images)


@pytest.mark.parametrize("name", ["modules", "signal", "gated", "vit"])
@pytest.mark.parametrize("declared", [True, False])
def test_images_excite_their_units_more_and_stay_valid(name, declared):
    model, x, _ = network(name)
    kind = "image" if x.ndim == 4 else "signal"
    space = InputSpace(kind, (0.2, 0.1), (0.5, 0.4)) if declared else InputSpace(kind)
    scores, pictures, _ = ask(model, x, space=space, steps=30)
    assert scores["gain"] > scores["natural_gain"]
    box = Box.of(space, x)
    shown = pictures.values if kind == "image" else pictures.values[:, 0]
    assert (shown >= box.low - 1e-5).all()
    assert (shown <= box.high + 1e-5).all()
    assert shown.shape == (4, *x.shape[1:])


@pytest.mark.parametrize("octaves", [1, 3])
def test_deep_dream_makes_the_sum_of_squares_of_a_photograph_larger_and_keeps_the_photograph(octaves):
    model, _, _ = network("functional", torch.float64)
    x = uniform(3, 2, 24, 20) * 0.8 + 0.1
    before = values("layer", model, x, units=3)[1][:, 0]
    found = search(model, x, kind="layer", units=3, start="sample", octaves=octaves, ascent=Ascent(8, 0.2))
    assert (found.peaks[0] > 1.05 * before).all()
    own = correlation(found.images[0], x)
    others = correlation(found.images[0], x.roll(1, 0))
    assert (own > others + 0.2).all()


def test_octaves_are_sizes_from_small_to_large_and_a_network_of_one_size_has_none():
    model, _, _ = network("functional", torch.float64)
    x, seen = uniform(2, 2, 24, 20), []
    handle = model.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[2:])))
    search(model, x, octaves=3, ascent=Ascent(1, 0.1))
    handle.remove()
    sizes = [(round(24 * OCTAVE**-step), round(20 * OCTAVE**-step)) for step in (2, 1, 0)]
    assert [size for size in dict.fromkeys(seen) if size in sizes[:2]] == sizes[:2]
    assert seen[-1] == sizes[2]
    fixed, x, _ = network("modules")
    with pytest.raises(NotApplicableError, match=r"octaves: .* \[9, 9\]"):
        ask(fixed, x, octaves=2)


def test_recognition_is_by_the_independent_network(linear):
    model, x = linear
    right, _, _ = ask(model, x, other=model, **PLAIN)
    assert right["recognition"] == 1
    wrong = Linear(model.weight.detach().roll(1, 0), model.bias.detach().roll(1, 0)).eval()
    assert ask(model, x, other=wrong, **PLAIN)[0]["recognition"] == 0
    nobody, _, undefined = ask(model, x, **PLAIN)
    assert math.isnan(nobody["recognition"])
    assert next(iter(undefined["recognition"])) == "no recipe trains an independent network"
    conv, x, _ = network("modules")
    _, _, undefined = ask(conv, x, other=conv, objective="channel", steps=2)
    assert next(iter(undefined["recognition"])) == "units of this objective are no classes"


def test_similarity_is_to_the_image_of_the_trained_network(linear):
    model, x = linear
    source = source_of(model, x)
    assert ask(model, x, source=source, **PLAIN)[0]["similarity"] == pytest.approx(1)
    opposite = Linear(-model.weight.detach(), model.bias.detach()).eval()
    found, _, _ = ask(opposite, x, source=source, reference=model, **PLAIN, steps=60, rate=2.0)
    assert found["similarity"] == pytest.approx(-1, abs=1e-3)
    alone, _, _ = ask(opposite, x, reference=model, **PLAIN, steps=60, rate=2.0)
    assert alone["similarity"] == found["similarity"]
    one, other = normal(2, 1, 5, 5), normal(2, 1, 5, 5, seed=1)
    literal = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(correlation(one, other).numpy(), literal)
    # The mean of equal numbers is not always that number, which would make an image of rounding.
    constant = normal(20, 1, 1, 1).expand(-1, 1, 7, 9)
    assert correlation(constant, normal(20, 1, 7, 9)).isnan().all()
    assert correlation(constant, constant).isnan().all()


@pytest.mark.parametrize("prior", ["principal_components", "variational_autoencoder"])
def test_an_optimized_code_excites_more_than_the_best_of_random_ones(linear, prior):
    model, x = linear
    scores, _, _ = ask(model, x, other=model, prior=prior, **PLAIN)
    assert scores["random_code_gain"] < scores["best_random_code_gain"] < scores["gain"]
    assert abs(scores["random_code_gain"]) < 0.5


def test_images_of_codes_are_those_of_the_decoder(linear):
    model, x = linear
    scores, _, _ = ask(model, x, other=model, prior="principal_components", **PLAIN)
    assert scores["best_random_code_recognition"] >= 0.5
    # Within the span of its components, where the box does not cut them.
    free = InputSpace("image", (0.0,), (1.0,), low=-100.0, high=100.0)
    _, pictures, _ = ask(model, x, space=free, prior="principal_components", **PLAIN)
    basis = torch.linalg.svd((x - x.mean(0)).flatten(1), full_matrices=False)[2][:32]
    off = (pictures.values.double() - x.mean(0)).flatten(1)
    torch.testing.assert_close(off @ basis.T @ basis, off, atol=1e-5, rtol=0)


def test_a_signal_of_one_channel_is_shown_as_a_curve():
    model = Linear(normal(3, 20)).eval()
    _, curves, _ = ask(model, uniform(10, 1, 20), space=InputSpace("signal", (0.0,), (1.0,)), **PLAIN, rate=1.0)
    assert (curves.kind, curves.labels) == ("curves", ("0", "1", "2"))
    torch.testing.assert_close(curves.values, (model.weight.detach() > 0).float(), atol=1e-2, rtol=0)


def test_a_unit_that_says_the_same_of_all_samples_has_no_gain():
    model = Linear(torch.zeros(3, 36, dtype=torch.float64), normal(3)).eval()
    scores, _, undefined = ask(model, uniform(10, 1, 6, 6), steps=2)
    assert math.isnan(scores["gain"])
    assert next(iter(undefined["gain"])) == "what the units return is the same for all samples"


def test_errors_say_what_was_expected():
    model, x, labels = network("modules")
    for options, message in (
        ({"units": [7]}, "no logit 7: expected indices from 0 to 3"),
        ({"objective": "channel", "layer": "convolution"}, "no layer 'convolution'"),
        ({"objective": "direction"}, "needs labels"),
        ({"objective": "direction", "layer": "2", "direction": [1.0, 2.0]}, "one number for each of 6 channels, got 2"),
        ({"prior": "principal_components", "start": "sample"}, "no sample to start from"),
    ):
        with pytest.raises(NotApplicableError, match=message):
            ask(model, x, **options)
    with pytest.raises(NotApplicableError, match="no samples of class 9"):
        ask(model, x, labels=labels, objective="direction", units=[9])
    with pytest.raises(OptionError, match="units"):
        ENTRY.resolve({"units": []})
    with pytest.raises(OptionError, match="jitter"):
        ENTRY.resolve({"jitter": -1.0})


@pytest.mark.slow
def test_digits_exceed_every_natural_one_and_another_network_reads_them_only_if_something_was_learnt(tmp_path):
    study = {
        "name": "digits",
        "data": {"source": "mnist-5k", "samples": 300},
        "models": ["mnist-cnn"],
        "introspections": ["activation_maximization"],
    }
    (subject,) = prepare(study, tmp_path, device="cpu", samples=None, chunk=None, progress=silent).subjects
    source, x = subject.source, subject.x
    how = {"space": subject.space, "source": source, "reference": source.model}
    trained, _, _ = ask(source.model, x, **how)
    assert trained["recognition"] >= 0.9
    assert trained["excess"] == 1
    assert trained["gain"] > trained["natural_gain"]
    for draw in range(2):
        random, _, _ = ask(source.twin(draw), x, **how)
        assert random["recognition"] <= 0.4
        assert random["similarity"] < 0.2
        # What only asks how strongly a unit can be excited finds nothing wrong with it.
        assert random["excess"] >= 0.9
    # With a prior that draws digits, a random network's images are as smooth as the trained one's, and say nothing.
    for prior in ("principal_components", "variational_autoencoder"):
        ours, theirs = (ask(model, x, prior=prior, **how)[0] for model in (source.model, source.twin(0)))
        assert ours["recognition"] >= 0.9
        assert theirs["recognition"] <= 0.5
        assert theirs["total_variation"] == pytest.approx(ours["total_variation"], rel=0.3)
