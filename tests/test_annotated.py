"""Pascal VOC and COCO, written as they write themselves: a sample for each class, with a mask of its objects."""

import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pycocotools import mask as outlines
from torchvision.datasets import CocoDetection, VOCDetection

from harness.catalogue import DATA
from harness.data import BrokenSampleError
from harness.data.annotated import VOC
from harness.entries import OptionError
from harness.types import InputError

PIXELS = {"mean": [0.0] * 3, "std": [1.0] * 3}
SHAPE = (12, 16)


def opened(kind, base, path, **options):
    source = DATA[kind]
    return source.load(path, source.resolve({**PIXELS, **options}), base=base, preprocessing=None)


def voc(base, **options):
    return opened("voc", base, "data", **options)


def coco(base, **options):
    return opened("coco", base, "instances.json", **{"pictures": "photos", **options})


def white(*boxes, shape=SHAPE):
    """By hand: the rows and columns (top, bottom, left, right) of boxes, ends not included."""
    truth = np.zeros(shape, dtype=bool)
    for top, bottom, left, right in boxes:
        truth[top:bottom, left:right] = True
    return truth


def shown(mask):
    return mask[0].bool().numpy()


def picture(seed=0, shape=SHAPE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


# ---- VOC

OBJECT = """
  <object>
    <name>{name}</name><pose>Left</pose><truncated>0</truncated>{difficult}
    <bndbox><xmax>{right}</xmax><xmin>{left}</xmin><ymax>{bottom}</ymax><ymin>{top}</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""

SIZE = "<size><width>{}</width><height>{}</height><depth>3</depth></size>"

# Their pixels, in rows and columns by hand; in the XML the first one is 1 and the last one belongs to the box.
DOG, PUP, CAT, FAR = (2, 5, 3, 9), (4, 8, 7, 12), (0, 12, 0, 4), (6, 7, 15, 16)
OBJECTS = {
    "2012_000001": [("dog", DOG, 0), ("cat", CAT, None), ("dog", PUP, 1)],
    "2012_000002": [("cat", FAR, 0), ("person", CAT, 1)],
    "2012_000003": [],
}


def write_voc(base, objects=None, size=(16, 12)):
    root = base / "data" / "VOCdevkit" / "VOC2012"
    objects = OBJECTS if objects is None else objects
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, (name, found) in enumerate(objects.items()):
        picture(seed).save(root / "JPEGImages" / f"{name}.jpg")
        text = ""
        for each, (top, bottom, left, right), difficult in found:
            ends = {"top": top + 1, "bottom": bottom, "left": left + 1, "right": right}
            marked = "" if difficult is None else f"<difficult>{difficult}</difficult>"
            text += OBJECT.format(name=each, difficult=marked, **ends)
        head = f"<folder>VOC2012</folder><filename>{name}.jpg</filename>{SIZE.format(*size) if size else ''}"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{head}{text}</annotation>")
        indices = np.zeros(SHAPE, dtype=np.uint8)
        for each, box, difficult in found:
            indices[white(box)] = 255 if difficult else 1 + VOC.index(each) if each in VOC else 99
        segmentation = Image.fromarray(indices, "L").convert("P")
        segmentation.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        segmentation.putdata(indices.flatten().tolist())
        segmentation.save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Main/val.txt").write_text("".join(f"{name}\n" for name in objects))
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in list(objects)[:1]))
    return root


def test_voc_gives_a_sample_for_each_class_with_the_union_of_its_boxes(tmp_path):
    root = write_voc(tmp_path)
    data = voc(tmp_path)
    assert list(data.ids) == ["2012_000001.jpg#cat", "2012_000001.jpg#dog", "2012_000002.jpg#cat"]
    assert [VOC[label] for label in data.labels.tolist()] == ["cat", "dog", "cat"]
    assert (data.classes, len(VOC), data.train) == (VOC, 20, None)
    expected = [white(CAT), white(DOG, PUP), white(FAR)]
    assert (data.masks(range(3))[:, 0].bool().numpy() == np.stack(expected)).all()
    for row, name in enumerate(("2012_000001", "2012_000001", "2012_000002")):
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
            pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)
        assert torch.equal(data.read(row), pixels)
    with_difficult = voc(tmp_path, difficult=True)
    assert list(with_difficult.ids) == [*data.ids, "2012_000002.jpg#person"]
    assert (shown(with_difficult.read_mask(3)) == white(CAT)).all()


def test_the_boxes_are_those_that_torchvision_reads(tmp_path):
    write_voc(tmp_path)
    theirs = VOCDetection(str(tmp_path / "data"), "2012", "val")[0][1]["annotation"]["object"]
    data = voc(tmp_path)
    truth = np.zeros(SHAPE, dtype=bool)
    for row, column in np.ndindex(*SHAPE):
        for each in theirs:
            left, top, right, bottom = (int(each["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax"))
            truth[row, column] |= each["name"] == "dog" and left <= column + 1 <= right and top <= row + 1 <= bottom
    assert (shown(data.read_mask(1)) == truth).all()


def test_a_segmentation_is_truth_where_it_has_the_index_of_the_class(tmp_path):
    write_voc(tmp_path)
    data = voc(tmp_path, truth="segmentation")
    assert list(data.ids) == ["2012_000001.jpg#cat", "2012_000001.jpg#dog"]  # the others have none
    # What was drawn later covers what is below, and what is difficult is void.
    drawn = [white(CAT), white(DOG) & ~white(CAT) & ~white(PUP)]
    assert (data.masks(range(2))[:, 0].bool().numpy() == np.stack(drawn)).all()
    write_voc(tmp_path, {"2012_000001": [("dog", DOG, 1)]})
    with pytest.raises(BrokenSampleError, match=r"no pixel of '.*2012_000001.jpg' is dog by its annotation"):
        voc(tmp_path, truth="segmentation", difficult=True).read(0)
    write_voc(tmp_path, {"2012_000001": [("dingo", DOG, 0)]})
    with pytest.raises(InputError, match=r"2012_000001\.xml': nothing says which pixels of a segmentation are 'dingo'"):
        voc(tmp_path, truth="segmentation", classes=["dingo"])


def test_masks_are_resized_and_cropped_with_their_picture(tmp_path):
    root = write_voc(tmp_path)
    black = Image.fromarray(white(DOG, PUP).astype(np.uint8) * 255)
    black.save(root / "JPEGImages" / "2012_000001.jpg", quality=100, subsampling=0)
    for options in ({"resize": [24, 32]}, {"resize": 18, "crop": 17}, {"crop": 10}):
        data = voc(tmp_path, interpolation="nearest", **options)
        x, mask = data.read(1).mean(0), data.read_mask(1)[0]
        assert mask.shape == x.shape
        assert torch.equal((x > 0.5).float(), mask), options


def test_classes_of_the_model_are_found_by_name_or_by_map(tmp_path):
    write_voc(tmp_path)
    names = voc(tmp_path, classes=["tench", "cat", "dog"])
    assert (names.labels.tolist(), names.classes) == ([1, 2, 1], ("tench", "cat", "dog"))
    mapped = voc(tmp_path, as_class={"dog": 207, "cat": 281, "sofa": 5})
    assert (mapped.labels.tolist(), mapped.classes) == ([281, 207, 281], ())
    # Two names for one output are one sample, so that no mask lacks what speaks for its class.
    pets = voc(tmp_path, as_class={"dog": 1, "cat": 1})
    assert list(pets.ids) == ["2012_000001.jpg#cat+dog", "2012_000002.jpg#cat"]
    assert (shown(pets.read_mask(0)) == white(CAT, DOG, PUP)).all()
    message = r"voc:data: 2 of 3 pairs of a picture and a class are left out, because no output means them: cat \(2\);"
    for options in ({"classes": ["tench", "dog"]}, {"as_class": {"dog": 1}}):
        with pytest.warns(UserWarning, match=message):
            data = voc(tmp_path, **options)
        assert (list(data.ids), data.labels.tolist()) == (["2012_000001.jpg#dog"], [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_class": {"dgo": 1}}, "as_class: no object is called 'dgo'; did you mean dog"),
        ({"as_class": {"dog": -1}}, "as_class: 'dog' means the output -1, which does not exist"),
        ({"as_class": {"dog": 2}, "classes": ["a", "b"]}, "as_class: 'dog' means the output 2, which does not exist"),
        ({"as_class": {"sofa": 2}}, r"no object of a class of the model: of cat \(2\), dog \(1\), none is called like"),
        (
            {"classes": ["tench"]},
            r"no object of a class of the model: of cat \(2\), dog \(1\), none is called like one",
        ),
        ({"classes": ["dog", "cat", "dog"]}, "the class 'dog' stands twice in `classes`: `as_class` says which one"),
        ({"year": 2007}, "no VOCdevkit that can be read in '.*data': .*; `download: true` lets it be fetched"),
        ({"split": "train"}, r"no VOCdevkit that can be read in '.*data': .*train\.txt"),
        ({"split": "test"}, "no VOCdevkit that can be read in '.*data': .*test"),
        ({"year": 1999}, "no VOCdevkit that can be read in '.*data': .*1999"),
    ],
)
def test_what_means_no_output_or_is_not_there_is_refused(tmp_path, options, message):
    write_voc(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        voc(tmp_path, **options)
    assert ("download" in str(raised.value)) == ("2007" in str(options) or "train" in str(options))


@pytest.mark.parametrize("options", [{"as_class": {"dog": "pug"}}, {"truth": "masks"}, {"year": "2012"}])
def test_options_are_of_their_types(tmp_path, options):
    with pytest.raises(OptionError):
        voc(tmp_path, **options)


def test_voc_is_fetched_only_where_it_is_asked_for_and_not_there(tmp_path, monkeypatch):
    asked = []

    def fetched(url, root, **_):
        asked.append(url)
        write_voc(tmp_path)

    monkeypatch.setattr(torchvision.datasets.voc, "download_and_extract_archive", fetched)
    with pytest.raises(InputError, match="`download: true` lets it be fetched"):
        voc(tmp_path)
    assert asked == []
    assert len(voc(tmp_path, download=True)) == 3
    assert len(asked) == 1
    assert len(voc(tmp_path, download=True)) == 3
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no file '.*2012_000002\.xml'"),
        ("no XML", "is no annotation of Pascal VOC: ParseError"),
        ("<data/>", "is no annotation of Pascal VOC: KeyError"),
        ("<annotation>text</annotation>", "is no annotation of Pascal VOC: AttributeError"),
        ("<annotation><object><name>dog</name></object></annotation>", "is no annotation .* KeyError: 'bndbox'"),
        (
            f"<annotation>{OBJECT.format(name='a', top='up', left=1, right=2, bottom=2, difficult='')}</annotation>",
            "is no annotation .* ValueError: .*'up'",
        ),
    ],
)
def test_what_is_no_annotation_is_named(tmp_path, text, message):
    file = write_voc(tmp_path) / "Annotations" / "2012_000002.xml"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(InputError, match=message):
        voc(tmp_path)


def test_an_annotation_of_another_picture_breaks_its_samples(tmp_path):
    root = write_voc(tmp_path)
    picture(0, (24, 32)).save(root / "JPEGImages" / "2012_000001.jpg")
    data = voc(tmp_path, broken="skip", resize=[12, 16])
    rows, _, errors = data.readable(range(3))
    assert rows == [2]
    assert "2012_000001.jpg' has (32, 24) pixels, and its annotation is of (16, 12)" in errors[0]
    for box, size in (((2, 13, 3, 9), (16, 12)), ((-1, 3, 3, 9), None), ((5, 3, 3, 9), None), ((0, 3, 3, 17), None)):
        write_voc(tmp_path, {"2012_000001": [("dog", box, 0), ("dog", DOG, 0)]}, size)
        with pytest.raises(BrokenSampleError, match=r"the box \[.*\] .* is not inside 16 x 12 pixels"):
            voc(tmp_path).read(0)
    write_voc(tmp_path, size=None)
    assert (shown(voc(tmp_path).read_mask(1)) == white(DOG, PUP)).all()


# ---- COCO

SQUARE, TRIANGLE = [2, 2, 8, 2, 8, 6, 2, 6], [10, 1, 15, 1, 15, 9]


def run_lengths(truth):
    """Column by column, in turn how many are outside and inside, as COCO writes it."""
    counts, inside = [0], False
    for each in truth.flatten(order="F").tolist():
        if each != inside:
            counts.append(0)
            inside = each
        counts[-1] += 1
    return {"counts": counts, "size": list(truth.shape)}


def records():
    """Two dogs (a polygon of two parts; run lengths) and a kite; a crowd beside a person, and a dog; nothing."""
    outline = white((3, 9, 1, 4), (10, 12, 12, 16))
    packed = outlines.encode(np.asfortranarray(white((5, 7, 5, 15)).astype(np.uint8)))
    return {
        "images": [{"id": each, "file_name": f"{each:03}.png", "width": 16, "height": 12} for each in (7, 3, 9)],
        "categories": [{"id": 90, "name": "kite"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            _object(1, 3, 18, [2, 2, 13, 7], [SQUARE, TRIANGLE]),
            _object(2, 3, 18, [1, 3, 15, 9], run_lengths(outline)),
            _object(3, 3, 90, [4.6, 5.4, 10.2, 1.2], {"counts": packed["counts"].decode(), "size": [12, 16]}),
            _object(4, 7, 1, [0, 0, 5, 5], run_lengths(white((0, 5, 0, 5))), iscrowd=1),
            _object(5, 7, 1, [8, 8, 2, 2], [[8, 8, 10, 8, 10, 10, 8, 10]]),
            _object(6, 7, 18, [8, 8, 8, 4], [[8, 8, 16, 8, 16, 12, 8, 12]]),
        ],
    }


def _object(number, image, category, bbox, segmentation, iscrowd=0):
    known = {"id": number, "image_id": image, "category_id": category, "area": 1, "iscrowd": iscrowd}
    return {**known, "bbox": bbox, "segmentation": segmentation}


def write_coco(base, content=None):
    (base / "photos").mkdir(exist_ok=True)
    for number in (3, 7, 9):
        picture(number).save(base / "photos" / f"{number:03}.png")
    (base / "instances.json").write_text(json.dumps(content or records()))


def test_coco_gives_a_sample_for_each_class_with_the_union_of_its_boxes(tmp_path, capsys):
    write_coco(tmp_path)
    data = coco(tmp_path)
    assert capsys.readouterr().out == ""
    assert list(data.ids) == ["003.png#dog", "003.png#kite", "007.png#dog"]  # a crowd has no place of its own
    assert data.classes == ("person", "dog", "kite")
    assert data.labels.tolist() == [1, 2, 1]
    boxes = [white((2, 9, 2, 15), (3, 12, 1, 16)), white((5, 7, 5, 15)), white((8, 12, 8, 16))]
    assert (data.masks(range(3))[:, 0].bool().numpy() == np.stack(boxes)).all()
    theirs = np.asarray(picture(7)).transpose(2, 0, 1).astype(np.float32) / 255
    assert torch.equal(data.read(2), torch.from_numpy(theirs))


def test_outlines_of_coco_are_polygons_and_run_lengths(tmp_path):
    write_coco(tmp_path)
    data = coco(tmp_path, truth="segmentation")
    assert list(data.ids) == list(coco(tmp_path).ids)
    dogs = shown(data.read_mask(0))
    certain = white((3, 9, 1, 4), (10, 12, 12, 16), (2, 6, 2, 8))
    assert dogs[certain].all()
    # The rest is the triangle: each pixel whose square lies wholly inside, and none whose square is wholly outside.
    for row, column in np.ndindex(*SHAPE):
        corners = [_in_triangle(column + a, row + b) for a in (0, 1) for b in (0, 1)]
        if not certain[row, column] and (all(corners) or not any(corners)):
            assert dogs[row, column] == all(corners), (row, column)
    assert (shown(data.read_mask(1)) == white((5, 7, 5, 15))).all()
    index = CocoDetection(str(tmp_path / "photos"), str(tmp_path / "instances.json")).coco
    union = np.logical_or(*(index.annToMask(index.anns[number]) for number in (1, 2)))
    assert (dogs == union).all()
    small = coco(tmp_path, truth="segmentation", resize=[4, 16], crop=4)
    assert (shown(small.read_mask(0)) == union[1::3, 6:10]).all()


def _in_triangle(x, y):
    """Whether a point lies in the triangle (10, 1), (15, 1), (15, 9)."""
    return x <= 15 and y >= 1 and (y - 1) * 5 <= (x - 10) * 8


def test_categories_become_outputs_of_the_model(tmp_path):
    write_coco(tmp_path)
    with pytest.warns(UserWarning, match=r"coco:instances.json: 1 of 3 pairs .* left out, .*: kite \(1\)"):
        data = coco(tmp_path, as_class={"dog": 207, "person": 3})
    assert data.labels.tolist() == [207, 207]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coco(tmp_path, classes=["kite", "dog"]).labels.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"no object of a class of the model: of dog \(2\), kite \(1\), none"):
        coco(tmp_path, as_class={"person": 3})


def without(key, where):
    content = records()
    for each in content[where]:
        each.pop(key)
    return content


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([1], {}, "no annotations of objects as COCO writes them: AssertionError"),
        ({"images": []}, {}, "no object of a class of the model: there are no objects"),
        (without("category_id", "annotations"), {}, "as COCO writes them: KeyError: 'category_id'"),
        (without("bbox", "annotations"), {}, "as COCO writes them: KeyError: 'bbox'"),
        (without("width", "images"), {}, "as COCO writes them: KeyError: 'width'"),
        (
            without("segmentation", "annotations"),
            {"truth": "segmentation"},
            "the object [1-6] has no segmentation; `truth: boxes` does without",
        ),
        (None, {"pictures": "gone"}, "no folder 'gone': `pictures` says where the pictures are"),
        (None, {"pictures": ""}, "no folder '': `pictures` says where the pictures are"),
    ],
)
def test_what_is_not_of_coco_is_refused(tmp_path, content, options, message):
    write_coco(tmp_path, content)
    with pytest.raises(InputError, match=message):
        coco(tmp_path, **options)
    (tmp_path / "instances.json").write_text("{")
    with pytest.raises(InputError, match=r"as COCO writes them: JSONDecodeError|no folder"):
        coco(tmp_path, **options)
    (tmp_path / "instances.json").unlink()
    with pytest.raises(InputError, match=r"no file '.*instances\.json'|no folder"):
        coco(tmp_path, **options)


def test_a_picture_of_coco_that_is_not_there_is_named_or_skipped(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "photos" / "003.png").unlink()
    with pytest.raises(BrokenSampleError, match=r"003\.png.*`broken: skip`"):
        coco(tmp_path).readable(range(3))
    assert coco(tmp_path, broken="skip").readable(range(3))[0] == [2]


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocotools" else found(name))
    with pytest.raises(InputError, match=r"pycocotools are not installed: pip install 'attribution-harness\[coco\]'"):
        coco(tmp_path)
