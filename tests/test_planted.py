"""Planted tasks: samples are what they are called, only the truth tells the class, and networks learn to use it."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from harness.catalogue import DATA
from harness.data.bundled import mnist_5k
from harness.data.planted_band import BINS, CENTRES, FRAMES, NEUTRAL, planted_band
from harness.data.planted_patch import PATTERNS, planted_patch
from harness.data.planting import next_of_another_class
from harness.data.sprites import sprites
from harness.data.textured_object import _textures, textured_object
from harness.model_entries import models_of
from harness.networks import CNN
from harness.places import Place
from harness.planted import doubt
from harness.progress import silent
from harness.registry import split_source
from harness.subjects import load_entry

TASKS = {
    "planted-patch": ("mnist-cnn", {}, (1, 28, 28), 5, (4000, 1000)),
    "distractor": ("mnist-cnn", {}, (1, 28, 56), 5, (4000, 1000)),
    "textured-object": ("mnist-cnn", {}, (1, 28, 28), 5, (4000, 1000)),
    "textured-background": ("mnist-cnn", {"decides": "background"}, (1, 28, 28), 5, (4000, 1000)),
    "sprites": ("mnist-cnn", {}, (3, 32, 32), 9, (3000, 500)),
    "planted-band": ("spectrogram-cnn", {}, (1, 129, 61), 4, (800, 200)),
}
"""Name -> (what learns it, options, shape of one sample, classes, how many to train on and held out)."""

every = pytest.mark.parametrize("name", TASKS)


def task(name):
    source = "textured-object" if name.startswith("textured") else name
    entry, argument = split_source(source, DATA)
    return entry.load(argument, TASKS[name][1])


@cache
def all_of(name):
    data = task(name)
    rows = range(len(data))
    x, masks = data.batch(rows), data.masks(rows).bool()
    truth, rest = (
        torch.stack([read(row) for row in rows]) for read in (data.planted.other_truth, data.planted.other_rest)
    )
    return x, masks, truth, rest


def independent(one, other):
    """Whether the chi-squared of their table is what chance gives."""
    table = (F.one_hot(one)[:, :, None] * F.one_hot(other)[:, None]).sum(0).double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(((table - expected) ** 2 / expected).sum()) < freedom + 4 * (2 * freedom) ** 0.5


def differ(a, b):
    """Where any channel does."""
    return (a != b).any(1, keepdim=True)


# --- all of them -----------------------------------------------------------------------------------------------------


@every
def test_classes_are_equally_frequent_and_no_sample_is_in_both_parts(name):
    _, _, shape, classes, counts = TASKS[name]
    data = task(name)
    assert (data.name, data.train.name) == (name, name)
    assert (len(data.train), len(data)) == counts
    for part in (data, data.train):
        assert part.batch([0]).shape == (1, *shape)
        frequency = part.labels.bincount()
        assert len(frequency) == classes == data.class_count
        assert frequency.max() - frequency.min() <= 1
        x = part.batch(range(len(part)))
        assert x.min() >= 0
        assert x.max() <= 1
    assert len({*data.ids, *data.train.ids}) == sum(counts)
    contents = [{x.numpy().tobytes() for x in part.batch(range(len(part)))} for part in (data, data.train)]
    assert not contents[0] & contents[1]
    # The first are a random sample of the classes.
    assert data.labels[:100].bincount(minlength=classes).min() > 0


@every
def test_it_is_the_same_each_time(name):
    made = {"planted-patch": planted_patch, "sprites": sprites, "planted-band": planted_band}.get(name)
    if made is None:
        made = DATA["distractor"].function if name == "distractor" else textured_object
    again = made.__wrapped__(**TASKS[name][1])
    data = task(name)
    for one, other in ((again, data), (again.train, data.train)):
        assert one.ids == other.ids
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.batch(range(100)), other.batch(range(100)))
    for row in (0, 17):
        assert torch.equal(again.read_mask(row), data.read_mask(row))
        assert torch.equal(again.planted.other_truth(row), data.planted.other_truth(row))
        assert torch.equal(again.planted.other_rest(row), data.planted.other_rest(row))


@every
def test_another_rest_leaves_the_truth_as_it_is_and_another_truth_exchanges_it(name):
    x, masks, truth, rest = all_of(name)
    assert masks.shape == (len(x), 1, *x.shape[2:])
    assert masks.flatten(1).any(1).all()
    assert not masks.flatten(1).all(1).any()
    # Another object covers another part of the background, which is the truth where it is seen.
    covered = rest > 0.5 if name == "textured-background" else torch.zeros_like(masks)
    assert not (differ(x, rest) & masks & ~covered).any()
    assert differ(x, rest).flatten(1).any(1).all()
    assert (differ(x, truth) & masks).flatten(1).any(1).all()


def test_the_next_of_another_class_is_found_past_the_end():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    assert next_of_another_class(labels).tolist() == [2, 2, 5, 5, 5, 6, 2]


# --- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["held out", "train"])
def test_a_patch_on_a_digit_is_all_that_tells_the_class(part):
    data, digits = planted_patch(), mnist_5k()
    data, digits = (data, digits) if part == "held out" else (data.train, digits.train)
    digit = digits.batch(range(len(digits)))
    x, masks = data.batch(range(len(data))), data.masks(range(len(data))).bool()
    assert (masks.flatten(1).sum(1) == 25).all()
    # A row that has any of the mask is where a patch begins.
    corner = torch.stack([masks[:, 0].any(axis).int().argmax(1) for axis in (2, 1)], 1)
    for row, (top, left) in enumerate(corner.tolist()):
        patch = (0, slice(top, top + 5), slice(left, left + 5))
        assert masks[row][patch].all()
        assert torch.equal(x[row][patch], PATTERNS[data.labels[row]])
    assert torch.equal(x.masked_fill(masks, 0), digit.masked_fill(masks, 0))
    assert independent(data.labels, digits.labels)
    assert independent(data.labels, corner[:, 0])
    assert independent(data.labels, corner[:, 1])
    assert independent(corner[:, 0], corner[:, 1])
    assert corner.amin(0).tolist() == [0, 0]
    assert corner.amax(0).tolist() == [23, 23]


def test_patterns_differ_and_are_equally_bright():
    assert PATTERNS.sum((1, 2)).tolist() == [9] * 5
    assert len(PATTERNS.unique(dim=0)) == 5


def test_another_patch_is_another_pattern_in_the_same_place():
    data = planted_patch()
    x, masks, truth, _ = all_of("planted-patch")
    assert not (differ(x, truth) & ~masks).any()
    patterns = truth[masks].view(len(x), 5, 5)
    found = (patterns[:, None] == PATTERNS).all((2, 3)).int()
    assert (found.sum(1) == 1).all()
    assert (found.argmax(1) != data.labels).all()
    assert independent(found.argmax(1), torch.arange(len(x)) % 2)


def test_another_deciding_digit_is_of_another_class_and_on_the_same_side():
    data, digits = task("distractor"), mnist_5k()
    known = {x.numpy().tobytes(): int(y) for x, y in zip(digits.batch(range(len(digits))), digits.labels, strict=True)}
    x, masks, truth, rest = all_of("distractor")
    for row, label in enumerate(data.labels.tolist()):
        left, right = slice(0, 28), slice(28, 56)
        own, other = (left, right) if masks[row][..., left].any() else (right, left)
        assert torch.equal(truth[row][..., other], x[row][..., other])
        assert torch.equal(rest[row][..., own], x[row][..., own])
        exchanged = known[truth[row][..., own].contiguous().numpy().tobytes()]
        assert exchanged < 5
        assert exchanged != label
        assert known[rest[row][..., other].contiguous().numpy().tobytes()] >= 5


@pytest.mark.parametrize("part", ["held out", "train"])
def test_objects_and_textures_are_independent_and_the_same_for_both_tasks(part):
    pair, digits = (task("textured-object"), task("textured-background")), mnist_5k()
    if part == "train":
        pair, digits = [data.train for data in pair], digits.train
    x, other = (data.batch(range(len(data))) for data in pair)
    assert torch.equal(x, other)
    assert pair[0].ids == pair[1].ids
    ink, around = (data.masks(range(len(data))).bool() for data in pair)
    assert torch.equal(ink, ~around)
    assert (x[ink] > 0.5).all()
    assert (x[around] <= 0.5).all()
    # Each digit is found again below the texture, by its ink, and twice.
    pixels = torch.where(ink, ((2 * x - 1) * 255).round(), 0).to(torch.uint8)
    known = {
        (255 * d).round().to(torch.uint8).numpy().tobytes(): row
        for row, d in enumerate(digits.batch(range(len(digits))))
    }
    rows = [known[each.numpy().tobytes()] for each in pixels]
    assert digits.labels[rows].tolist() == pair[0].labels.tolist()
    assert sorted(rows) == sorted(2 * sorted({*rows}))
    assert independent(pair[0].labels, pair[1].labels)


def test_textures_are_what_they_are_called():
    ids = [f"a/{row}" for row in range(100)]
    found = {kind: _textures(torch.full((100,), kind), ids).double() for kind in range(5)}
    horizontal, vertical, diagonal, checks, dots = (found[kind][:, 0] for kind in range(5))
    assert (horizontal.std(2) < 1e-6).all()
    assert (vertical.std(1) < 1e-6).all()
    for offset in range(1, 5):
        torch.testing.assert_close(diagonal[:, offset:, :-offset], diagonal[:, :-offset, offset:], rtol=0, atol=1e-6)
    for rank_one in (4 * checks - 1, dots):
        singular = torch.linalg.svdvals(rank_one)
        assert (singular[:, 1] < 1e-5 * singular[:, 0]).all()
    # Checks are as often above as below the middle, dots nearly everywhere at the bottom.
    assert ((checks > 0.25).double().mean((1, 2)) - 0.5).abs().max() < 0.15
    assert (dots == 0).double().mean() > 0.6
    # No period is shorter than five pixels, so that some pixel is within half a pixel of the middle of a dot.
    assert (dots.amax((1, 2)) > math.cos(math.pi / 5) ** 2 / 2 - 1e-6).all()
    # Phases are random: nothing is constant over samples.
    assert all(each.std(0).min() > 0.05 for each in (horizontal, vertical, diagonal, checks, dots))


def test_another_object_leaves_the_texture_and_another_texture_the_object():
    x, ink, truth, _ = all_of("textured-object")
    assert not (differ(x, truth) & ~ink & (truth <= 0.5)).any()
    x, behind, truth, rest = all_of("textured-background")
    assert not (differ(x, truth) & ~behind).any()
    # Where another object uncovers what was behind this one, there is the texture: nothing is left of the object.
    other = next_of_another_class(task("textured-object").labels)
    assert torch.equal(rest > 0.5, (x > 0.5)[other])


# --- bands -----------------------------------------------------------------------------------------------------------


def bins_of(hertz):
    return round(hertz * 256 / 8000)


def test_a_burst_in_a_band_is_the_class_and_the_box_is_where_it_is():
    data = planted_band()
    x, masks, truth, _ = all_of("planted-band")
    onsets = masks[:, 0].any(1).int().argmax(1)
    for row, label in enumerate(data.labels.tolist()):
        centre, onset = bins_of(CENTRES[label]), int(onsets[row])
        box = torch.zeros(129, 61, dtype=torch.bool)
        box[centre - BINS : centre + BINS + 1, onset : onset + FRAMES] = True
        assert torch.equal(masks[row, 0], box)
        # Louder in the box than in any other box of a class, by far more than noise is.
        levels = [x[row, 0, bins_of(c) - 2 : bins_of(c) + 3, onset : onset + FRAMES].mean() for c in CENTRES]
        others = [level for index, level in enumerate(levels) if index != label]
        assert levels[label] > max(others) + 0.08
        neutral = x[row, 0, bins_of(NEUTRAL) - 2 : bins_of(NEUTRAL) + 3]
        assert neutral.mean(0).amax() > neutral.mean(0).median() + 0.1
        moved = differ(x[row][None], truth[row][None])[0, 0]
        assert not moved[:, :onset].any()
        assert not moved[:, onset + FRAMES :].any()
        elsewhere = (moved & ~box).any(1).nonzero()[:, 0]
        centres = [bins_of(c) for index, c in enumerate(CENTRES) if index != label]
        assert int(elsewhere.double().mean().round()) in centres
        assert len(elsewhere) <= 2 * BINS + 1


def test_nothing_but_the_box_tells_the_band_and_times_are_independent():
    for data in (planted_band(), planted_band().train):
        x, masks = data.batch(range(len(data))), data.masks(range(len(data))).bool()
        onset = masks[:, 0].any(1).int().argmax(1)
        distractor = x[:, 0, bins_of(NEUTRAL) - 2 : bins_of(NEUTRAL) + 3].mean(1).argmax(1)
        assert independent(data.labels, onset // 8)
        assert independent(data.labels, distractor // 11)
        assert independent(onset // 8, distractor // 11)
        rest = torch.where(masks, torch.nan, x)[:, 0]
        loudest = torch.stack([rest[:, bins_of(c) - 8 : bins_of(c) + 9].nanmean((1, 2)) for c in CENTRES], 1).argmax(1)
        assert independent(data.labels, loudest)


# --- what networks learn ---------------------------------------------------------------------------------------------


def trained(name):
    model, options, *_ = TASKS[name]
    source = "textured-object" if name.startswith("textured") else name
    data = {"source": source, **options}
    (entry,) = models_of([{"source": model, "data": data}], None, Place("test"))
    return load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)


def answers(model, x):
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(100)])


def doubted(model, data, target):
    return doubt(model, data, lambda _, rows: target[rows], lambda x: x)


@pytest.mark.slow
@every
def test_a_network_learns_it_uses_the_truth_and_hardly_the_rest(name):
    loaded, data = trained(name)
    x, _, truth, rest = all_of(name)
    before, by_truth, by_rest = (answers(loaded.model, each) for each in (x, truth, rest))
    assert (before == data.labels).double().mean() >= 0.97
    assert (by_truth == data.labels).double().mean() <= 0.02
    assert (by_rest == data.labels).double().mean() >= 0.97
    assert doubted(loaded.model, data, data.labels) == ""
    assert doubted(loaded.model, data, before) == ""


@pytest.mark.slow
def test_a_network_that_looks_at_the_other_of_object_and_background_is_found_out():
    (on_object, objects), (on_background, backgrounds) = trained("textured-object"), trained("textured-background")
    for model, data in ((on_object.model, backgrounds), (on_background.model, objects)):
        said = doubted(model, data, answers(model, data.batch(range(len(data)))))
        assert "does not use what was planted" in said


@pytest.mark.parametrize("name", ["planted-patch", "distractor", "sprites"])
def test_a_network_that_has_learnt_nothing_is_found_out(name):
    data = task(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CNN(tuple(data.read(0).shape), data.class_count).eval()
    said = doubted(model, data, answers(model, data.batch(range(len(data)))))
    assert "does not use what was planted" in said
