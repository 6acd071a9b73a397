"""Where the truth lies in pictures of a folder: masks and boxes take the way of their pictures, to the pixel."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.catalogue import DATA
from harness.data import BrokenSampleError
from harness.data.images import Preprocessing
from harness.data.masks import with_boxes
from harness.study import load_study
from harness.subjects import load_data
from harness.types import InputError

PIXELS = {"mean": [0.0], "std": [1.0]}
HEAD = "file,x_min,y_min,x_max,y_max\n"

NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
"""


def opened(base, **options):
    source = DATA["folder"]
    return source.load("photos", source.resolve({**PIXELS, **options}), base=base, preprocessing=None)


def white(shape, rows, columns):
    truth = np.zeros(shape, dtype=bool)
    truth[rows, columns] = True
    return truth


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape) > 0.5


def save(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values.astype(np.uint8) * 255)
    image.save(file)


def shown(mask):
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    return mask[0].bool().numpy()


GEOMETRIES = [
    {},
    {"resize": 7},
    {"resize": 40, "crop": 31},
    {"resize": [9, 30], "crop": 8},
    {"crop": 13},
    {"crop": 40},  # around a picture that is smaller
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [(17, 24), (24, 17)])
def test_a_mask_that_is_its_picture_stays_equal_to_it(tmp_path, geometry, shape):
    """Of noise, every single pixel would tell a shift; without averaging, both take the same pixels."""
    save(tmp_path / "photos/a.png", noise(shape))
    data = opened(tmp_path, mask_folder="photos", interpolation="nearest", **geometry)
    x, mask = data.batch([0]), data.masks([0])
    assert torch.equal(mask, x)
    assert mask.sum() > 0


@pytest.mark.parametrize("geometry", GEOMETRIES[1:4])
def test_a_mask_is_its_picture_up_to_the_border(tmp_path, geometry):
    """The bilinear picture is grey where white and black were mixed, and only there may the mask be either."""
    truth = white((60, 90), slice(13, 41), slice(22, 63)) | white((60, 90), slice(36, 52), slice(55, 78))
    save(tmp_path / "photos/a.png", truth)
    save(tmp_path / "masks/a.png", truth)
    data = opened(tmp_path, mask_folder="masks", **geometry)
    x, mask = data.read(0), data.read_mask(0)
    assert mask[x == 1].all()
    assert not mask[x == 0].any()
    assert 0 < mask.mean() < 1
    # Half of the grey pixels on a straight border are whiter than 1/2, as those are whose centre lies inside.
    grey = (x > 0) & (x < 1)
    assert ((x > 0.5) != (mask > 0))[~grey].sum() == 0
    assert abs((x > 0.5).sum() - mask.sum()) <= 0.5 * grey.sum()


def test_the_pixel_below_the_centre_decides():
    truth = noise((27, 45))
    picture = Image.fromarray(truth)
    thirds = Preprocessing((0.0,), (1.0,), (9, 15), None, "bicubic").mask(picture)
    assert (shown(thirds) == truth[1::3, 1::3]).all()
    twice = Preprocessing((0.0,), (1.0,), (54, 90), 20).mask(picture)
    assert (shown(twice) == truth.repeat(2, 0).repeat(2, 1)[17:37, 35:55]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I", "F", "RGB", "LA", "PA", "RGBA"])
def test_what_is_above_zero_is_truth_in_every_mode(tmp_path, mode):
    truth = noise((5, 6))
    if mode == "P":  # index 1 is black, and index 0 is white
        image = Image.fromarray(truth.astype(np.uint8), "L").convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif mode in ("LA", "PA", "RGBA"):
        # White that is transparent is no truth, black that is opaque neither.
        bright, opaque = truth | noise((5, 6), 1), truth | noise((5, 6), 2)
        bright[~truth & bright & opaque] = False
        image = Image.fromarray(bright.astype(np.uint8) * (1 if mode == "PA" else 255)).convert(mode[:-1])
        if mode == "PA":
            image = Image.fromarray(bright.astype(np.uint8), "L").convert("PA")
        image.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    elif mode == "RGB":
        image = Image.fromarray(np.stack([truth * 0, truth * 0, truth * 1], 2).astype(np.uint8))
    else:
        kinds = {"1": bool, "L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}
        image = Image.fromarray(truth.astype(kinds[mode]))
    assert image.mode == mode
    assert (shown(Preprocessing((0.0,), (1.0,)).mask(image)) == truth).all()
    if mode not in ("F", "PA"):
        save(tmp_path / "photos/a.png", noise((5, 6)))
        save(tmp_path / ("masks/a.tif" if mode == "I" else "masks/a.png"), image)
        assert (shown(opened(tmp_path, mask_folder="masks").read_mask(0)) == truth).all()


def test_a_mask_has_the_path_of_its_picture(tmp_path):
    files = ["a/1.png", "a/1.b.jpg", "c/1.png", "c/2.webp"]
    masks = ["a/1.png", "a/1.b.PGM", "c/1.png", "c/2.bmp"]
    for seed, (file, mask) in enumerate(zip(files, masks, strict=True)):
        save(tmp_path / "photos" / file, noise((5, 6), 9))
        save(tmp_path / "masks" / mask, noise((5, 6), seed))
    for other in ("c/1.gif", "c/1.bmp", "c/none.png"):
        save(tmp_path / "masks" / other, noise((5, 6), 99))
    data = opened(tmp_path, mask_folder="masks")
    assert sorted(files) == data.ids
    for row, file in enumerate(data.ids):
        assert (shown(data.read_mask(row)) == noise((5, 6), files.index(file))).all(), file
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert opened(tmp_path).masks([0]) is None


def test_only_what_is_explained_needs_masks(tmp_path):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        save(tmp_path / f"photos/{name}.png", noise((5, 6)))
    for name in ("a/2", "b/2"):
        save(tmp_path / f"masks/{name}.png", noise((5, 6), 1))
    (tmp_path / "boxes.csv").write_text(HEAD + "a/2.png,0,0,1,1\nb/2.png,0,0,1,1\na/1.png,0,0,1,1\n")
    for options in ({"mask_folder": "masks"}, {"boxes": "boxes.csv"}):
        data = opened(tmp_path, held_out="2.png", **options)
        assert data.masks([0, 1]).shape == (2, 1, 5, 6)
        assert data.train.read_mask is None


def test_masks_that_are_not_there_are_missed_before_anything_is_read(tmp_path):
    for name in "abc":
        save(tmp_path / f"photos/{name}.png", noise((5, 6)))
    with pytest.raises(InputError, match=r"folder:photos: no folder '.*masks'"):
        opened(tmp_path, mask_folder="masks")
    save(tmp_path / "masks/a.png", noise((5, 6)))
    save(tmp_path / "masks/b.jpg", noise((5, 6)))  # whose edges would be grey
    with pytest.raises(InputError, match=r"no mask for 'b.png' \(2 pictures lack one\): expected '.*masks/b\.png', or"):
        opened(tmp_path, mask_folder="masks")
    with pytest.raises(InputError, match=r"mask_folder: 'masks' stands beside boxes: 'boxes\.csv'; choose one"):
        opened(tmp_path, mask_folder="masks", boxes="boxes.csv")


def test_a_mask_that_cannot_be_read_breaks_its_sample_before_anything_is_computed(tmp_path):
    for name in "abcde":
        save(tmp_path / f"photos/{name}.png", noise((64, 65)))
        save(tmp_path / f"masks/{name}.png", noise((64, 65)))
    save(tmp_path / "masks/a.png", noise((65, 64)))
    (tmp_path / "masks/b.png").write_text("no picture")
    raw = (tmp_path / "masks/c.png").read_bytes()
    (tmp_path / "masks/c.png").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "masks/d.png").unlink()
    Image.new("CMYK", (65, 64)).save(tmp_path / "masks/d.tif")
    data = opened(tmp_path, mask_folder="masks")
    messages = (
        r"'a.png': '.*masks/a.png' has 64 x 65 pixels, its picture 65 x 64: masks belong to the pictures as they are",
        r"'b.png': cannot read '.*masks/b.png'",
        r"'c.png': cannot read '.*masks/c.png'",
        r"'d.png': '.*masks/d.tif' is CMYK, where zero is not black: save it as grey or RGB",
    )
    for row, message in enumerate(messages):
        for read in (data.read, data.read_mask):
            with pytest.raises(BrokenSampleError, match=f"cannot tell where the truth lies in {message}"):
                read(row)
        with pytest.raises(BrokenSampleError, match="`broken: skip` in the data entry"):
            data.readable([4, row])
    rows, x, errors = opened(tmp_path, mask_folder="masks", broken="skip").readable(range(5))
    assert (rows, x.shape, len(errors)) == ([4], (1, 1, 64, 65), 4)


def test_boxes_begin_with_their_first_pixel_and_end_before_their_last(tmp_path):
    for name in ("x/a", "x/b"):
        save(tmp_path / f"photos/{name}.png", noise((6, 8)))
    rows = ["x/a.png,2,1,5,3", "x/b.png,0,0,1,1", "x/b.png,7,5,8,6", "x/b.png,0,0,1,1", "x/b.png,2,0,4,6"]
    (tmp_path / "boxes.csv").write_text(
        "\n".join(["y_min,file,x_max,x_min,y_max,kind"] + [_turned(row) for row in rows])
    )
    data = opened(tmp_path, boxes="boxes.csv")
    assert (shown(data.read_mask(0)) == white((6, 8), slice(1, 3), slice(2, 5))).all()
    corners = white((6, 8), 0, 0) | white((6, 8), 5, 7)
    assert (shown(data.read_mask(1)) == (corners | white((6, 8), slice(None), slice(2, 4)))).all()
    # Twice as large: each pixel becomes four.
    large = opened(tmp_path, boxes="boxes.csv", resize=[12, 16]).read_mask(0)
    assert (shown(large) == white((12, 16), slice(2, 6), slice(4, 10))).all()


def _turned(row):
    file, x_min, y_min, x_max, y_max = row.split(",")
    return ",".join([y_min, file, x_max, x_min, y_max, "thing"])


def test_boxes_hold_the_pixels_whose_centres_they_hold():
    generator = np.random.default_rng(0)
    for _ in range(50):
        low = generator.uniform(-0.9, 6, (2, 2))
        boxes = np.concatenate([low, low + generator.uniform(0, 2, (2, 2))], 1)
        found = np.asarray(with_boxes(boxes, (9, 8))) > 0
        for row in range(8):
            for column in range(9):
                inside = [a <= column + 0.5 < c and b <= row + 0.5 < d for a, b, c, d in boxes.tolist()]
                assert found[row, column] == any(inside)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no file '.*boxes\.csv'"),
        ("", r"boxes\.csv is no CSV file"),
        ("name,x_min,y_min,x_max,y_max\n", r"boxes\.csv has no column 'file'"),
        ("file,xmin,y_min,x_max,y_max\n", r"has no column 'x_min'; did you mean .*xmin"),
        (HEAD + "a.png,0,0,2\n", "is no CSV file|got .*y_max="),
        (HEAD + "a.png,0,0,2,2\nb.png,0,,2,2\n", r"expected pixels 0 <= x_min < x_max .* y_min=, .* for 'b.png'"),
        (HEAD + "a.png,0,0,two,2\nb.png,0,0,2,2\n", "got x_min=0, y_min=0, x_max=two, y_max=2 for 'a.png'"),
        (HEAD + "a.png,0,0,2,2\nb.png,2,0,2,2\n", "got x_min=2, y_min=0, x_max=2, y_max=2 for 'b.png'"),
        (HEAD + "a.png,0,3,2,2\nb.png,1,0,2,2\n", "got x_min=0, y_min=3, x_max=2, y_max=2 for 'a.png'"),
        (HEAD + "a.png,-1,0,2,2\nb.png,1,0,2,2\n", "got x_min=-1.* for 'a.png'"),
        (HEAD + "a.png,0,0,inf,2\nb.png,1,0,2,2\n", "got .*x_max=inf.* for 'a.png'"),
        (
            HEAD + "a.png,0,0,2,2\nc.png,0,0,2,2\nb.png,0,0,1,1\n",
            r"a box for 'c.png', and there is no such picture \(1",
        ),
        (HEAD + "a.png,0,0,2,2\n", r"boxes.csv has no box for 'b.png' \(1 pictures lack one\)"),
    ],
)
def test_a_table_that_does_not_say_where_the_truth_lies_is_refused(tmp_path, text, message):
    for name in "ab":
        save(tmp_path / f"photos/{name}.png", noise((6, 8)))
    if text is not None:
        (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, boxes="boxes.csv")


@pytest.mark.parametrize(
    ("box", "fits"), [("0,0,8,6", True), ("0,0,9,6", False), ("0,0,8,7", False), ("8,0,9,1", False)]
)
def test_a_box_outside_its_picture_breaks_the_sample(tmp_path, box, fits):
    save(tmp_path / "photos/a.png", noise((6, 8)))
    (tmp_path / "boxes.csv").write_text(f"{HEAD}a.png,{box}\n")
    data = opened(tmp_path, boxes="boxes.csv", resize=[3, 4])
    if fits:
        assert data.readable([0])[0] == [0]
        assert data.masks([0]).all()
    else:
        with pytest.raises(BrokenSampleError, match=rf"'a.png': the box \[{box.replace(',', ', ')}\] .* 8 x 6 pixels"):
            data.readable([0])


def test_the_oracle_of_a_study_shows_the_masks(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    for row in range(6):
        save(tmp_path / f"photos/{'ab'[row % 2]}/{row}.png", noise((16, 24), row))
    rows = [f"{'ab'[row % 2]}/{row}.png,{row},{row},{row + 8},{row + 6}" for row in range(6)]
    (tmp_path / "boxes.csv").write_text(HEAD + "\n".join(rows))
    study = {
        "name": "boxes",
        "data": {"source": "folder:photos", "boxes": "boxes.csv", "resize": 8, "crop": 8, **PIXELS},
        "models": [{"source": "file:net.py:build", "weights": "random"}],
        "methods": ["gradient", "oracle"],
        "metrics": ["occlusion_faithfulness"],
        "controls": False,
        "target": "label",
    }
    (tmp_path / "s.yaml").write_text(json.dumps(study))
    results = harness.run(tmp_path / "s.yaml", tmp_path / "run", device="cpu")
    assert results.failures.empty
    assert dict(zip(results.cells["method"], results.cells["status"], strict=True))["oracle"] == "done"
    (entry,) = load_study(tmp_path / "s.yaml").models
    data = load_data(entry.data, tmp_path)
    boxed = [white((16, 24), slice(row, row + 6), slice(row, row + 8)) for row in (0, 2, 4, 1, 3, 5)]
    # Half as large, of each two pixels the second one, and and of 12 columns the 8 in the middle.
    expected = np.stack([truth[1::2, 1::2][:, 2:10] for truth in boxed])
    assert (data.masks(range(6))[:, 0].numpy() == expected).all()
