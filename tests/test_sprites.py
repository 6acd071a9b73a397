"""Sprites: painted part by part, recognized by no part alone, and drawn anew where a part is missing."""

from functools import cache
from pathlib import Path

import pytest
import torch

from harness.data import sprites as sprites_module
from harness.data.sprites import CLASSES, COLOURS, PARTS, RADII, sprites
from harness.model_entries import models_of
from harness.places import Place
from harness.progress import silent
from harness.subjects import load_entry


@cache
def all_of():
    data = sprites()
    rows = range(len(data))
    truth, rest = (
        torch.stack([read(row) for row in rows]) for read in (data.planted.other_truth, data.planted.other_rest)
    )
    return data.batch(rows), data.masks(rows).bool(), truth, rest


def differ(a, b):
    """Where any channel does."""
    return (a != b).any(1, keepdim=True)


def painted(scene, row, present):
    """One sprite, painted pixel by pixel and part by part, from the hindmost to the foremost."""
    picture = scene.backgrounds[row].clone()
    for part in range(len(PARTS)):
        if not present[part]:
            continue
        variant = int(scene.variants[row, part])
        for h in range(32):
            for w in range(32):
                down = abs(h - float(scene.centres[row, part, 0])) / float(RADII[part, 0])
                across = abs(w - float(scene.centres[row, part, 1])) / float(RADII[part, 1])
                inside = (down**2 + across**2 <= 1, max(down, across) <= 0.85, down + across <= 1.1)[variant]
                if inside:
                    picture[:, h, w] = COLOURS[part, variant]
    return picture


@pytest.mark.parametrize("missing", [(), (2,), (0, 4), (0, 1, 2, 3, 4)])
def test_sprites_are_painted_part_by_part(missing):
    scene, _, _ = sprites_module._scene("sprites")
    present = torch.tensor([part not in missing for part in range(len(PARTS))]).expand(500, -1)
    drawn = scene.drawn(present)
    for row in range(3):
        torch.testing.assert_close(drawn[row], painted(scene, row, present[row]), rtol=0, atol=1e-6)


def test_no_part_alone_tells_the_class_and_no_two_classes_share_more_than_two_parts():
    shared = (CLASSES[:, None] == CLASSES).sum(2)
    assert shared.fill_diagonal_(0).max() <= 2
    for part in range(len(PARTS)):
        assert CLASSES[:, part].bincount().tolist() == [3, 3, 3]
    colours = COLOURS.flatten(0, 1)
    assert torch.cdist(colours, colours).fill_diagonal_(1).min() > 0.1


def test_samples_without_a_part_differ_exactly_where_the_part_is_seen():
    data = sprites()
    x, masks, _, _ = all_of()
    for row in range(0, 500, 7):
        where, without = data.read_parts(row)
        assert where.shape == (5, 32, 32)
        assert without.shape == (5, 3, 32, 32)
        assert torch.equal(differ(x[row][None], without)[:, 0], where.bool())
        assert where.sum(0).max() == 1
        assert torch.equal(where.sum(0)[None].bool(), masks[row])
        assert (where.flatten(1).sum(1) >= 10).all()


def test_another_sprite_is_in_the_same_place_on_the_same_background():
    x, masks, truth, _ = all_of()
    sprite = truth.amax(1, keepdim=True) == 1
    assert not (differ(x, truth) & ~masks & ~sprite).any()
    # The hulls of both are about the same: only the shapes of parts differ.
    assert ((masks & sprite).sum((1, 2, 3)) / (masks | sprite).sum((1, 2, 3))).min() > 0.5


def test_parts_are_missing_in_one_of_five_in_training_only():
    data = sprites()
    for part, expected in ((data.train, 0.8), (data, 1.0)):
        x = part.batch(range(len(part)))
        wanted = COLOURS[torch.arange(len(PARTS)), CLASSES[part.labels]]
        seen = (x[:, None] - wanted[..., None, None]).abs().amax(2).lt(1e-6).flatten(2).any(2)
        share = seen.double().mean(0)
        assert (share - expected).abs().max() <= 4 * (0.16 / len(part)) ** 0.5 * (expected < 1)
        # As often in every class.
        by_class = torch.stack([seen[part.labels == label].double().mean(0) for label in range(9)])
        assert (by_class - expected).abs().max() <= 4 * (0.16 * 9 / len(part)) ** 0.5 * (expected < 1)


@pytest.mark.slow
def test_a_network_needs_no_part_of_a_sprite_alone_and_each_matters():
    (entry,) = models_of([{"source": "mnist-cnn", "data": "sprites"}], None, Place("test"))
    loaded, data = load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)
    read = [data.read_parts(row)[1] for row in range(200)]
    before = loaded.model(data.batch(range(200))).gather(1, data.labels[:200, None])[:, 0]
    for part in range(len(PARTS)):
        without = torch.stack([each[part] for each in read])
        assert (loaded.model(without).argmax(1) == data.labels[:200]).double().mean() >= 0.95
        after = loaded.model(without).gather(1, data.labels[:200, None])[:, 0]
        drop = (before - after).detach()
        assert drop.mean() > 4 * drop.std() / 200**0.5
