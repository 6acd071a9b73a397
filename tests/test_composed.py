"""Pictures for grids, and samples for masked networks: what is in them, and what is exchanged in them."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from harness.catalogue import DATA
from harness.data import of_tensors
from harness.data.bundled import mnist_5k
from harness.data.planting import cells_of, in_cells, left_half
from harness.entries import SourceEntry
from harness.model_entries import data_of
from harness.places import Place
from harness.registry import split_source
from harness.space import InputSpace
from harness.study import StudyError
from harness.subjects import load_data
from harness.types import InputError

LEFT, RIGHT = (..., slice(0, 14)), (..., slice(14, 28))


def loaded_source(registry, text):
    entry, argument = split_source(text, registry)
    return entry.load(argument, {})


@cache
def known():
    digits = mnist_5k()
    return [
        {x.numpy().tobytes(): row for row, x in enumerate(part.batch(range(len(part))))}
        for part in (digits, digits.train)
    ]


@pytest.mark.parametrize("part", [0, 1])
def test_pictures_of_a_grid_have_four_classes_and_each_sample_is_the_truth_once(part):
    data, digits = loaded_source(DATA, "grid:mnist-5k"), mnist_5k()
    data, digits = (data, digits) if part == 0 else (data.train, digits.train)
    assert len(data) == len(digits)
    assert data.batch([0]).shape == (1, 1, 56, 56)
    assert data.class_count == 40
    found = torch.tensor(
        [
            [known()[part][each.numpy().tobytes()] for each in picture]
            for picture in cells_of(data.batch(range(len(data))))
        ]
    )
    classes = digits.labels[found]
    assert (classes.sort(1).values.diff(dim=1) > 0).all()
    cell = data.labels // 10
    rows = torch.arange(len(data))
    assert torch.equal(found[rows, cell], rows)
    assert torch.equal(data.labels % 10, digits.labels)
    share = cell.bincount(minlength=4) / len(data)
    assert (share - 0.25).abs().max() < 4 * (0.1875 / len(data)) ** 0.5
    # Others are drawn from all samples of all classes.
    others = found[rows[:, None] != found]
    assert len(others.unique()) > 0.8 * len(digits)
    frequency = digits.labels[others].bincount() / len(others)
    assert (frequency - 0.1).abs().max() < 4 * (0.09 / len(others)) ** 0.5
    masks = data.masks(range(50))
    assert torch.equal(cells_of(masks).flatten(2).mean(2), torch.nn.functional.one_hot(cell[:50], 4).float())


def test_another_truth_is_another_class_in_the_cell_and_another_rest_three_other_samples():
    data, digits = loaded_source(DATA, "grid:mnist-5k"), mnist_5k()
    for row in range(100):
        cell = int(data.labels[row]) // 10
        x, truth, rest = (
            cells_of(each[None])[0]
            for each in (data.read(row), data.planted.other_truth(row), data.planted.other_rest(row))
        )
        around = [each for each in range(4) if each != cell]
        assert torch.equal(x[around], truth[around])
        assert torch.equal(x[cell], rest[cell])
        classes = [
            [int(digits.labels[known()[0][each.numpy().tobytes()]]) for each in four] for four in (x, truth, rest)
        ]
        assert all(len(set(four)) == 4 for four in classes)
        assert classes[0][cell] != classes[1][cell]
        assert not any(torch.equal(x[each], rest[each]) for each in around)


def test_classes_are_named_by_their_cells():
    assert in_cells(("a", "b"))[:3] == ("a, upper left", "b, upper left", "a, upper right")
    names = loaded_source(DATA, "grid:mnist-5k").classes
    assert (len(names), names[0], names[39]) == (40, "0, upper left", "9, lower right")


def test_samples_of_masked_data_are_as_they_were_and_halves_are_exchanged():
    data, digits = loaded_source(DATA, "masked:mnist-5k"), mnist_5k()
    assert data.name == "masked:mnist-5k"
    assert data.train is digits.train
    assert torch.equal(data.batch(range(100)), digits.batch(range(100)))
    assert torch.equal(data.labels, digits.labels)
    digit = digits.batch(range(1000))
    lefts, rights = ({x[half].contiguous().numpy().tobytes() for x in digit} for half in (LEFT, RIGHT))
    for row in range(30):
        assert torch.equal(data.read_mask(row), left_half((1, 28, 28)))
        x, truth, rest = data.read(row), data.planted.other_truth(row), data.planted.other_rest(row)
        assert torch.equal(truth[RIGHT], x[RIGHT])
        assert torch.equal(rest[LEFT], x[LEFT])
        assert not torch.equal(truth[LEFT], x[LEFT])
        assert not torch.equal(rest[RIGHT], x[RIGHT])
        assert truth[LEFT].contiguous().numpy().tobytes() in lefts
        assert rest[RIGHT].contiguous().numpy().tobytes() in rights


def test_data_that_make_no_grid_are_refused(monkeypatch):
    space = InputSpace("image", (0.0,), (1.0,))
    x = torch.rand(20, 1, 4, 4)

    def given(data):
        monkeypatch.setitem(DATA._entries, "given", SourceEntry("given", lambda: data, "source", 1, ()))
        return loaded_source(DATA, "grid:given")

    few = of_tensors("few", x, torch.arange(20) % 4, space)
    with pytest.raises(InputError, match=r"grid:few: expected images of at least 5 classes, got images of 4 classes"):
        given(few)
    with pytest.raises(InputError, match=r"got images without labels"):
        given(replace(few, labels=None))
    table = of_tensors("table", torch.rand(20, 6), torch.arange(20) % 5, InputSpace("table"))
    with pytest.raises(InputError, match=r"got tables of 5 classes"):
        given(table)
    assert given(of_tensors("enough", x, torch.arange(20) % 5, space)).train is None


@pytest.mark.parametrize("name", ["masked", "grid"])
def test_what_the_data_need_to_be_told_is_told_beside_them(tmp_path, name):
    for row in range(10):
        path = tmp_path / f"class{row % 5}" / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 20 * row, np.uint8)).save(path)
    told = {"resize": [8, 8], "mean": [0.5] * 3, "std": [0.25] * 3}
    entry = data_of({"source": f"{name}:folder:{tmp_path}", **told}, Place("test"), ())
    data, side = load_data(entry, tmp_path), 16 if name == "grid" else 8
    assert data.read(0).shape == (3, side, side)
    assert data.space.mean == (0.5,) * 3


@pytest.mark.parametrize("source", ["masked:folder:photos", "grid:masked:folder:photos"])
def test_what_the_data_cannot_be_told_is_refused_by_name(source):
    with pytest.raises(StudyError, match="unknown key 'means'; did you mean mean"):
        data_of({"source": source, "means": [0.5]}, Place("test"), ())
    with pytest.raises(StudyError, match="option 'crop' expects"):
        data_of({"source": source, "crop": "half"}, Place("test"), ())
    with pytest.raises(StudyError, match="unknown data 'fold:photos'"):
        data_of("masked:fold:photos", Place("test"), ())
