"""Pictures in a folder: each becomes the input that torchvision makes of it; what cannot be read is named."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import get_model_weights

from harness.catalogue import DATA, MODELS
from harness.data import BrokenSampleError
from harness.data.images import EXTENSIONS, Preprocessing
from harness.entries import OptionError
from harness.types import InputError

PIXELS = {"mean": [0.0] * 3, "std": [1.0] * 3}
GREY = {"mean": [0.0], "std": [1.0]}
TINY = {**PIXELS, "resize": [4, 4]}


def opened(base, path="photos", *, preprocessing=None, **options):
    source = DATA["folder"]
    return source.load(path, source.resolve(options), base=base, preprocessing=preprocessing)


def picture(size=(5, 6), seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(base, *paths, **options):
    for seed, path in enumerate(paths):
        file = base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(file, **options)


def pixels_of(image):
    """What a picture of 8 bits is in [0, 1], by hand."""
    array = np.asarray(image)
    array = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32) / 255)


PRESETS = [
    ("mobilenet_v2", "IMAGENET1K_V1"),
    ("mobilenet_v2", "IMAGENET1K_V2"),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
    ("efficientnet_b1", "IMAGENET1K_V1"),
    ("swin_t", "IMAGENET1K_V1"),
    ("inception_v3", "IMAGENET1K_V1"),
]


@pytest.mark.parametrize(("model", "weights"), PRESETS)
def test_weights_of_torchvision_bring_their_own_preprocessing_to_the_last_bit(model, weights):
    ours = MODELS["torchvision"].function(model).preprocessing(weights)
    theirs = get_model_weights(model)[weights].transforms()
    for size in ((37, 50), (300, 400), (500, 233), (1, 7)):
        for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
            image = picture(size, mode=mode)
            assert torch.equal(ours(image), theirs(image.convert("RGB"))), (size, mode)
    other = Preprocessing(ours.mean, ours.std, (ours.resize[0] + 8,), ours.crop, ours.interpolation)
    assert not torch.equal(other(picture((300, 400))), ours(picture((300, 400))))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("resize", "crop"), [(None, None), (8, 6), ([9, 4], None), (None, 30), (3, 7)])
def test_what_a_data_entry_declares_is_what_transforms_would_do(tmp_path, interpolation, resize, crop):
    save(tmp_path, "photos/a.png")
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    if resize is None and interpolation == "lanczos":
        resize = 12
    data = opened(tmp_path, mean=mean, std=std, resize=resize, crop=crop, interpolation=interpolation)
    steps = [transforms.Resize(resize, transforms.InterpolationMode(interpolation))] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    assert torch.equal(data.read(0), transforms.Compose(steps)(picture()))
    assert data.space.mean == tuple(mean)
    assert data.space.std == tuple(std)


def test_ids_are_sorted_paths_and_classes_those_of_torchvision(tmp_path):
    files = ["b/2.png", "b/10.png", "a/deep/x.png", "c c/ü.png", "B/z.png", "10/q.png", "2/q.png"]
    save(tmp_path / "photos", *files)
    save(tmp_path / "numbered", *(f"{number}/x.png" for number in range(8, 12)))
    assert list(opened(tmp_path, "numbered", **PIXELS).classes) == ImageFolder(tmp_path / "numbered").classes
    data, oracle = opened(tmp_path, **PIXELS), ImageFolder(tmp_path / "photos")
    theirs = {Path(path).relative_to(tmp_path / "photos").as_posix(): label for path, label in oracle.samples}
    assert list(data.ids) == sorted(files)
    assert dict(zip(data.ids, data.labels.tolist(), strict=True)) == theirs
    assert list(data.classes) == oracle.classes == ["10", "2", "B", "a", "b", "c c"]
    assert data.class_count == 6
    for row, file in enumerate(data.ids):
        with Image.open(tmp_path / "photos" / file) as image:
            assert torch.equal(data.read(row), pixels_of(image)), file


def test_what_is_hidden_or_no_picture_is_left_out_and_links_are_followed(tmp_path):
    root = tmp_path / "photos"
    save(root, "a/1.png", "a/.hidden.png", ".ipynb_checkpoints/1-checkpoint.png", "b/._2.png", "b/2.png")
    (root / "b" / "notes.txt").write_text("no picture")
    (root / "b" / "folder.png").mkdir()
    save(tmp_path, "elsewhere/3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "c")
    assert list(opened(tmp_path, **PIXELS).ids) == ["a/1.png", "b/2.png", "c/3.png"]
    (root / "b" / "9.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(BrokenSampleError, match=r"b/9\.png"):
        opened(tmp_path, **PIXELS).batch(range(4))


def test_without_subfolders_there_are_no_classes(tmp_path):
    save(tmp_path, "photos/1.png", "photos/2.png", "mixed/1.png", "mixed/a/2.png")
    assert opened(tmp_path, **PIXELS).labels is None
    assert opened(tmp_path, "mixed", **PIXELS).labels is None
    assert opened(tmp_path, **PIXELS).class_count == 0
    assert opened(tmp_path, classes=["a", "b", "c"], **PIXELS).class_count == 3


LABELS = {
    "integers": ("file,label\nb.png,7\na.png,3\nc.png,0\nelsewhere.png,9\n", {}, [3, 7, 0], ()),
    "names": ("label,file\nzebra,b.png\nNA,a.png\nant,c.png\n", {}, [0, 2, 1], ("NA", "ant", "zebra")),
    "another column": ("file,label,kind\na.png,1,u\nb.png,2,v\nc.png,3,u\n", {"label": "kind"}, [0, 1, 0], ("u", "v")),
    "floats of integers": ("file,label\na.png,1.0\nb.png,10.0\nc.png,2.0\n", {}, [1, 10, 2], ()),
    "known names": (
        "file,label\na.png,01\nb.png,NA\nc.png,01\n",
        {"classes": ["x", "NA", "01"]},
        [2, 1, 2],
        ("x", "NA", "01"),
    ),
    "a row twice": ("file,label\na.png,1\na.png,1\nb.png,2\nc.png,3\n", {}, [1, 2, 3], ()),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_come_from_a_table(tmp_path, name):
    text, options, labels, classes = LABELS[name]
    save(tmp_path, *(f"photos/{each}.png" for each in "abc"))
    (tmp_path / "labels.csv").write_text(text)
    data = opened(tmp_path, labels="labels.csv", **options, **PIXELS)
    assert (data.labels.tolist(), data.classes) == (labels, classes)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, "no file '.*labels.csv'"),
        ("", {}, "labels.csv is no CSV file"),
        ("name,label\na.png,1\n", {}, "has no column 'file'; known: label, name"),
        ("file,lable\na.png,1\n", {}, "has no column 'label'; did you mean lable"),
        ("file,label\na.png,1\nc.png,2\n", {}, r"no class for 'b.png' \(1 files lack one\)"),
        ("file,label\na.png,1\nb.png,\nc.png,2\n", {}, r"no class for 'b.png' \(1 files lack one\)"),
        ("file,label\na.png,1\nb.png,0.5\nc.png,2\n", {}, "a label is an integer or the name of a class, got 0.5"),
        ("file,label\na.png,1\nb.png,2\nc.png,2\na.png,2\n", {}, "two classes for 'a.png'"),
        ("file,label\na.png,x\nb.png,y\nc.png,x\n", {"classes": ["xx", "y"]}, "the class 'x' is not among `classes`"),
        ("file,label\na.png,x\nb.png,y\nc.png,x\n", {"classes": ["x", "x", "y"]}, "the class 'x' stands twice in"),
        ("file,label\na.png,1,5\nb.png,2,5\nc.png,3,5\n", {}, "no CSV file with as many fields in each row"),
    ],
)
def test_a_table_that_does_not_say_every_class_is_refused(tmp_path, text, options, message):
    save(tmp_path, *(f"photos/{each}.png" for each in "abc"))
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, labels="labels.csv", **options, **PIXELS)


def test_labels_come_from_a_regular_expression(tmp_path):
    save(tmp_path, "photos/x/cat_10.png", "photos/x/cat_9.png", "photos/dog_2.png")
    names = opened(tmp_path, labels=r"(cat|dog)_", **PIXELS)
    assert (list(names.ids), names.labels.tolist()) == (["dog_2.png", "x/cat_10.png", "x/cat_9.png"], [1, 0, 0])
    assert names.classes == ("cat", "dog")
    assert opened(tmp_path, labels=r"_(\d+)\.", **PIXELS).labels.tolist() == [2, 10, 9]
    known = opened(tmp_path, labels=r"_(\d+)\.", classes=["9", "2", "10"], **PIXELS)
    assert known.labels.tolist() == [1, 2, 0]
    for labels, message in (
        (r"cat_\d", "no class for 'dog_2.png'"),
        (r"(cat)_", "no class for 'dog_2.png'"),
        (r"(cat)?", "no class for 'dog_2.png'"),
        (r"(cat", "neither a CSV file nor a regular expression"),
    ):
        with pytest.raises(InputError, match=message):
            opened(tmp_path, labels=labels, **PIXELS)


def test_the_training_part_is_another_folder_or_what_is_not_held_out(tmp_path):
    save(tmp_path, *(f"photos/{c}/{n}.png" for c in "ab" for n in range(4)), "more/b/7.png", "more/a/0.png")
    data = opened(tmp_path, held_out=r"[13]\.png", **PIXELS)
    assert list(data.ids) == ["a/1.png", "a/3.png", "b/1.png", "b/3.png"]
    assert list(data.train.ids) == ["a/0.png", "a/2.png", "b/0.png", "b/2.png"]
    assert (data.labels.tolist(), data.train.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    whole = opened(tmp_path, **PIXELS)
    assert torch.equal(data.batch([1, 2]), whole.batch([3, 5]))
    assert torch.equal(data.train.batch([1, 2]), whole.batch([2, 4]))
    train = opened(tmp_path, train="more", **PIXELS).train
    assert (list(train.ids), train.labels.tolist(), train.classes) == (["a/0.png", "b/7.png"], [0, 1], ("a", "b"))
    save(tmp_path, "more/c/1.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{each},0\n" for each in (*whole.ids, "b/7.png")))
    (tmp_path / "more/c/1.png").rename(tmp_path / "more/b/8.png")
    for options, message in (
        ({"held_out": "nothing"}, "held_out: 'nothing' matches no file"),
        ({"held_out": "png"}, "held_out: 'png' matches every file"),
        ({"held_out": "(", "train": ""}, r"held_out: '\(' is no regular expression"),
        ({"held_out": "1", "train": "more"}, "held_out: '1' stands beside `train`"),
        ({"train": "photos", "labels": "labels.csv"}, "labels.csv cannot tell 'a/0.png' here from"),
        ({"train": "gone"}, "folder:gone: no folder"),
    ):
        with pytest.raises(InputError, match=message):
            opened(tmp_path, **options, **PIXELS)


@pytest.mark.parametrize("extension", [*EXTENSIONS, ".JPG", ".Png", ".TIFF"])
def test_every_format_is_read_as_pillow_decodes_it(tmp_path, extension):
    save(tmp_path, f"photos/x{extension}")
    with Image.open(tmp_path / f"photos/x{extension}") as image:
        expected = pixels_of(image.convert("RGB"))
    data = opened(tmp_path, **PIXELS)
    assert torch.equal(data.read(0), expected)
    if extension.lower() in (".png", ".bmp", ".tif", ".tiff", ".ppm"):
        assert torch.equal(expected, pixels_of(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_the_channels_that_the_model_has(tmp_path, mode):
    root = tmp_path / "photos"
    root.mkdir()
    image = picture(mode=mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6) * 8))
    image.save(root / ("x.tif" if mode == "CMYK" else "x.png"), **({"transparency": bytes(8)} if mode == "P" else {}))
    assert torch.equal(opened(tmp_path, **PIXELS).read(0), pixels_of(image.convert("RGB")))
    grey = opened(tmp_path, **GREY).read(0)
    assert grey.shape == (1, 5, 6)
    # Pillow rounds a palette's colours before they become grey, so that a step may be missing.
    assert (grey - pixels_of(image.convert("L"))).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [GREY, PIXELS])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path, format_, channels):
    levels = np.arange(65536).reshape(256, 256).astype(np.uint16)
    (tmp_path / "photos").mkdir()
    file = tmp_path / f"photos/x.{'pgm' if format_ == 'PPM' else format_.lower()}"
    if format_ == "PPM":
        file.write_bytes(b"P5 256 256 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(file, format_)
    expected = torch.tensor([[round(level * 255 / 65535) for level in row] for row in levels.tolist()]) / 255
    read = opened(tmp_path, **channels).read(0)
    torch.testing.assert_close(read, expected.expand_as(read), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.array([[0, 70000]], np.int32), "beyond 16 bits"), (np.array([[0.1, 0.9]], np.float32), "floating-point")],
)
def test_pixels_of_unknown_range_are_refused(tmp_path, image, message):
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos/x.tif")
    with pytest.raises(BrokenSampleError, match=rf"x\.tif.*{message}"):
        opened(tmp_path, **PIXELS).read(0)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    root = tmp_path / "photos"
    save(root, "0.png")
    whole = io.BytesIO()
    picture((64, 64)).save(whole, "JPEG")
    (root / "1_cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "2_empty.png").write_bytes(b"")
    (root / "3_text.jpg").write_text("this is no picture")
    tiff = io.BytesIO()
    picture((64, 64)).save(tiff, "TIFF", compression="tiff_lzw")
    (root / "4_cut.tif").write_bytes(tiff.getvalue()[:5000])
    data = opened(tmp_path, **TINY)
    for row in range(1, 5):
        with pytest.raises(BrokenSampleError, match=re.escape(str(tmp_path / "photos" / data.ids[row]))):
            data.read(row)
        with pytest.raises(BrokenSampleError, match=re.escape(data.ids[row])):
            data.batch([0, row])
        with pytest.raises(BrokenSampleError, match=rf"{re.escape(data.ids[row])}.*`broken: skip` in the data entry"):
            data.readable([0, row])
    with pytest.raises(BrokenSampleError, match=r"1_cut\.jpg"):
        _ = data.fingerprint
    skipping = opened(tmp_path, broken="skip", **TINY)
    rows, x, errors = skipping.readable([4, 3, 0, 1, 2, 0])
    assert (rows, x.shape) == ([0, 0], (2, 3, 4, 4))
    assert torch.equal(x[1], data.read(0))
    order = ["4_cut.tif", "3_text.jpg", "1_cut.jpg", "2_empty.png"]
    assert [name for name, error in zip(order, errors, strict=True) if name in error] == order
    assert skipping.readable([1, 2])[0] == []
    assert skipping.fingerprint == opened(tmp_path, broken="skip", **TINY).fingerprint
    save(tmp_path, "photos/2_empty.png")
    assert skipping.fingerprint != opened(tmp_path, broken="skip", **TINY).fingerprint


def test_no_bytes_whatever_raise_anything_else(tmp_path):
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    outcomes = set()
    for extension in ("jpg", "png", "bmp", "gif", "webp", "ppm"):
        file = tmp_path / f"photos/x.{extension}"
        picture().save(file)
        raw = file.read_bytes()
        data = opened(tmp_path, **TINY)
        for _ in range(60):
            damaged = np.frombuffer(raw, np.uint8).copy()[: generator.integers(len(raw) // 2, len(raw) + 1)]
            damaged[generator.integers(len(damaged), size=4)] = generator.integers(256, size=4)
            file.write_bytes(damaged.tobytes())
            try:
                outcomes.add(str(tuple(data.read(0).shape)))
            except BrokenSampleError as error:
                outcomes.add("broken" if str(file) in str(error) else str(error))
        file.unlink()
    assert outcomes == {"(3, 4, 4)", "broken"}


def test_an_empty_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"folder:photos: no folder '.*photos'"):
        opened(tmp_path, **PIXELS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"folder:photos: no file in '.*photos' ends in \.jpg"):
        opened(tmp_path, **PIXELS)


def test_pictures_of_different_sizes_need_one_size_declared(tmp_path):
    save(tmp_path, "photos/a.png", "photos/b.png")
    picture((7, 6)).save(tmp_path / "photos/c.png")
    data = opened(tmp_path, **PIXELS)
    message = r"'a.png' is \[3, 5, 6\], 'c.png' is \[3, 7, 6\]; declare one size"
    with pytest.raises(InputError, match=message):
        data.batch([0, 1, 2])
    with pytest.raises(InputError, match=message):
        data.batch([2])  # in a block of its own
    assert opened(tmp_path, **TINY).batch([0, 1, 2]).shape == (3, 3, 4, 4)


def test_what_says_nothing_or_half_of_the_preprocessing_is_refused(tmp_path):
    save(tmp_path, "photos/a.png")
    with pytest.raises(InputError, match=r"declare resize, crop, mean and std as in the model's training"):
        opened(tmp_path)
    theirs = Preprocessing((0.5,), (0.25,), (3,), 2)
    for half in ({"mean": [0.0]}, {"std": [1.0]}, {"resize": 4}, {"crop": 4}, {"interpolation": "bicubic"}):
        with pytest.raises(InputError, match="folder:photos: declare mean and std together"):
            opened(tmp_path, preprocessing=theirs, **half)
    assert opened(tmp_path, preprocessing=theirs).read(0).shape == (1, 2, 2)
    assert opened(tmp_path, preprocessing=theirs, **PIXELS).read(0).shape == (3, 5, 6)
    for wrong in (
        {"mean": [0.0] * 2, "std": [1.0] * 2},
        {"mean": [0.0] * 3, "std": [1.0]},
        {"mean": [0.0], "std": [0.0]},
        {**PIXELS, "resize": 0},
        {**PIXELS, "resize": [4, 4, 4]},
        {**PIXELS, "crop": 0},
        {**PIXELS, "crop": -2},
    ):
        with pytest.raises(InputError, match="expected"):
            opened(tmp_path, **wrong)
    for wrong in ({"resize": "big"}, {"mean": 0.5}, {"broken": "maybe"}, {"interpolation": "cubic"}):
        with pytest.raises(OptionError):
            opened(tmp_path, **{**PIXELS, **wrong})


MEMORY = """
import sys
from pathlib import Path
from harness.catalogue import DATA
source = DATA["folder"]
options = source.resolve({"mean": [0.0] * 3, "std": [1.0] * 3, "resize": [192, 192]})
data = source.load("photos", options, base=Path(sys.argv[1]), preprocessing=None)
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
for start in range(0, 200, 20):
    data.batch(range(start, start + 20))
before = peak()
for start in range(200, len(data), 20):
    data.batch(range(start, start + 20))
print(len(data), before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    save(tmp_path / "photos", *(f"{row // 100}/{row:04}.png" for row in range(1000)))
    result = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    count, before, after = map(int, result.stdout.split())
    assert count == 1000
    # The 800 after the warm-up would be 800 x 3 x 192 x 192 x 4 bytes = 345,600 KiB, a batch of them 8,640 KiB.
    assert after - before < 50_000
