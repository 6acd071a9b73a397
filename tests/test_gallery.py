"""The gallery: what is drawn is what the methods say, and what is left out is listed with its reason."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch import nn

import harness
from harness import METHODS, cli
from harness.arguments import data_of_images, entry_of, method_entries, target_of
from harness.catalogue import DATA, MODELS
from harness.entries import Method
from harness.gallery import all_methods, gallery_of, names_of, subject_to_show
from harness.panels import draw, layout_of
from harness.progress import silent
from harness.study import choose
from harness.types import InputError

NET = """\
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)
    )


def signals():
    return nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 96, 3))


def tables():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
"""
CPU = torch.device("cpu")
FEW = ["gradient", "occlusion", "lrp_epsilon"]


@pytest.fixture
def folder(tmp_path):
    """A network in a file with its weights, two pictures of 12 x 12, recordings, a table, and a file that is none."""
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    scope = {}
    exec(NET, scope)
    for name in "build", "signals", "tables":
        torch.save(scope[name]().state_dict(), tmp_path / f"{name}.pt")
    generator = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name in "a.png", "b.png", "more/0.png", "more/1.png":
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "sounds").mkdir()
    for name in "x.wav", "y.wav", "z.wav":
        wave = (20000 * np.sin(np.arange(100) * generator.uniform(0.1, 1))).astype(np.int16)
        wavfile.write(tmp_path / "sounds" / name, 100, wave)
    np.savetxt(tmp_path / "t.csv", generator.normal(size=(6, 5)), delimiter=",", header="a,b,c,d,e", comments="")
    return tmp_path


SOUNDS = "{source: audio:sounds, rate: 100}"


def shown(folder, *images, model="build", methods=FEW, data=None, target="predicted", samples=None):
    given = data_of_images(images, data, folder)
    entry, _ = entry_of(f"file:net.py:{model}", given, f"{model}.pt", folder)
    subject = subject_to_show(entry, folder, target=target, samples=samples, device=CPU, progress=silent)
    gallery = gallery_of(entry, folder, subject, choose(METHODS, methods, "methods"), chunk=16, progress=silent)
    return gallery, subject


def call(monkeypatch, capsys, folder, *arguments):
    """What `harness show` does in a folder: (exit code, output, errors)."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["harness", "show", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err


def network(folder, model="build"):
    scope = {}
    exec(NET, scope)
    net = scope[model]()
    net.load_state_dict(torch.load(folder / f"{model}.pt"))
    return net.eval()


def register(monkeypatch, function):
    monkeypatch.setitem(METHODS._entries, function.__name__, Method(function.__name__, function, "gradient", 1, ()))


def test_panels_hold_the_maps_of_explain_summed_over_channels(folder):
    gallery, subject = shown(folder, "a.png", "b.png")
    pixels = [np.asarray(Image.open(folder / name)) / np.float32(255) for name in ("a.png", "b.png")]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    for sample, wanted in zip(gallery.samples, x, strict=True):
        np.testing.assert_allclose(sample.values, wanted.numpy(), atol=1e-6)
    model = network(folder)
    assert list(gallery.maps) == FEW
    for method, maps in gallery.maps.items():
        wanted = harness.explain(model, x, method=method, space=subject.space).sum(1)
        np.testing.assert_allclose(maps, wanted.numpy(), rtol=1e-5, atol=1e-6)
    probability = model(x).softmax(1).detach()
    for row, sample in enumerate(gallery.samples):
        index = int(probability[row].argmax())
        assert sample.predicted == f"class {index} {float(probability[row, index]):.1%}"
        assert sample.about == "explained: the predicted class"


def test_another_class_than_the_predicted_one_is_explained_and_named(folder):
    gallery, subject = shown(folder, "a.png", target="runner_up", data="{classes: [ant, bee, cat, dog]}")
    model = network(folder)
    second = int(model(subject.x).topk(2).indices[0, 1])
    probability = float(model(subject.x).softmax(1).detach()[0, second])
    assert gallery.samples[0].about == f"explained: {['ant', 'bee', 'cat', 'dog'][second]} {probability:.1%}"
    wanted = harness.explain(model, subject.x, torch.tensor([second]), method="gradient").sum(1)
    np.testing.assert_allclose(gallery.maps["gradient"], wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_labels_are_told_where_they_are_known(folder):
    gallery, _ = shown(folder, "a.png", "b.png", methods=["gradient"], data="{labels: [2, 0]}", target="label")
    assert [sample.about.partition("label: ")[2] for sample in gallery.samples] == ["class 2", "class 0"]
    with pytest.raises(InputError, match="expected a label for each of the 1 files, got 2"):
        shown(folder, "a.png", data="{labels: [2, 0]}")
    with pytest.raises(InputError, match="target='label' needs labels"):
        shown(folder, "a.png", target="label")


def test_the_first_two_samples_of_other_data_are_shown(folder):
    gallery, subject = shown(folder, SOUNDS, model="signals", methods=["gradient"])
    assert [sample.name for sample in gallery.samples] == ["x.wav", "y.wav"]
    np.testing.assert_array_equal(gallery.samples[1].values, subject.x[1].numpy())  # as the model gets it
    assert gallery.kind == "signal"
    gallery, _ = shown(folder, SOUNDS, model="signals", methods=["gradient"], samples=5)
    assert len(gallery.samples) == 3


def test_methods_come_family_by_family_and_controls_last():
    names = all_methods()
    assert sorted(names) == sorted(METHODS)
    families = [METHODS[name].family for name in names]
    changes = [family for row, family in enumerate(families) if row == 0 or families[row - 1] != family]
    assert len(changes) == len(set(changes))
    assert changes[-1] == "control"


def test_what_does_not_apply_is_listed_and_absent(folder, monkeypatch, capsys):
    methods = "--methods", "gradient,grad_cam,sobel", "--methods", "{name: mine, method: smoothgrad, samples: 2}"
    arguments = ("file:net.py:tables", "t.csv", "--weights", "tables.pt", *methods, "--out", "t.png")
    code, out, _ = call(monkeypatch, capsys, folder, *arguments)
    assert code == 0
    assert "\ngrad_cam does not apply: needs positions, got a table\n" in out
    assert "\nsobel does not apply: needs images, got a table\n" in out
    assert out.endswith("written to t.png\n")
    gallery, _ = shown(folder, "t.csv", model="tables", methods=["gradient", "grad_cam", "sobel"])
    assert list(gallery.maps) == ["gradient"]
    assert set(gallery.refused) == {"grad_cam", "sobel"}
    assert draw(gallery).texts[0].get_text() == "net: 1 method (2 more do not apply)"


def test_pictures_are_no_background_for_each_other_but_a_training_folder_is(folder):
    gallery, _ = shown(folder, "a.png", "b.png", methods=["expected_gradients"])
    assert gallery.refused["expected_gradients"].startswith("needs background samples")
    gallery, subject = shown(folder, "a.png", methods=["expected_gradients"], data="{train: more}")
    assert not gallery.refused
    wanted = {Image.open(folder / "more" / name).getpixel((0, 0)) for name in ("0.png", "1.png")}
    found = {tuple((255 * x[:, 0, 0]).round().int().tolist()) for x in subject.source.background}
    assert found == wanted


def test_a_failing_method_loses_none_of_the_others(folder, monkeypatch, capsys):
    def raises(model, x, target):
        """Raises on purpose."""
        raise RuntimeError("a mistake in a method\nwith a second line")

    def infinite(model, x, target):
        """Divides by zero on purpose."""
        return x / 0

    register(monkeypatch, raises)
    register(monkeypatch, infinite)
    gallery, _ = shown(folder, "a.png", methods=["raises", "gradient", "infinite"])
    assert gallery.failed == {
        "raises": "RuntimeError: a mistake in a method",
        "infinite": "the maps hold values that are not finite",
    }
    titles = {axis.get_title(): [text.get_text() for text in axis.texts] for axis in draw(gallery).axes[1:]}
    assert titles == {"raises": ["failed"], "gradient": [], "infinite": ["failed"]}
    arguments = ("file:net.py:build", "a.png", "--weights", "build.pt", "--methods", "raises,gradient")
    code, out, _ = call(monkeypatch, capsys, folder, *arguments)
    assert code == 1
    assert "raises failed: RuntimeError: a mistake in a method\n" in out
    assert Image.open(folder / "show.png").width > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.png",), "error: no file '"),
        (("broken.png",), "cannot read 'broken.png': cannot identify image file"),
        (("a.png", "broken.png"), "cannot read 'broken.png'"),
        (("a.png", "more"), "expected pictures, or one data source alone: 'more' is no picture"),
        (("sounds/x.wav",), "sounds/x.wav: expected a folder, or a file that ends in .npz or .csv"),
        (("mnsit-5k",), "mnsit-5k: no such folder or file, and no data are called so; did you mean mnist-5k"),
        ((), "net brings no data: name pictures, or one data source, after the model"),
        (("a.png", "--methods", "gradeint"), "unknown method 'gradeint'; did you mean gradient"),
        (("a.png", "--methods", "{method: smoothgrad, nois: 1}"), "smoothgrad has no option 'nois'"),
        (("a.png", "--target", "cat"), "--target is predicted, label, runner_up or a class index, got 'cat'"),
        (("a.png", "--target", "4"), "target 4 is outside 0 to 3"),
        (("a.png", "--data", "{crop: 12, std: 1}"), "data.std: pictures: option 'std' expects"),
        (("--data", "{crop: 12}"), "options of which data?"),
        (("a.png", "--out", "a.jpg"), "a.jpg: the picture is a PNG file: its name must end in .png"),
        (("a.png", "--out", "net.py/a.png"), "net.py is a file, no folder"),
        (
            ("a.png", "--data", "{resize: 20, crop: 20}"),
            "net raises on samples of shape [3, 20, 20]: RuntimeError: ",
        ),
    ],
)
def test_wrong_input_exits_with_two_before_anything_is_computed(folder, monkeypatch, capsys, arguments, message):
    def computes(model, x, target):
        """Must not be called."""
        raise SystemExit(70)

    register(monkeypatch, computes)
    chosen = () if "--methods" in arguments else ("--methods", "computes")
    code, _, err = call(monkeypatch, capsys, folder, "file:net.py:build", *arguments, *chosen, "--weights", "build.pt")
    assert code == 2, err
    assert message in err
    assert not (folder / "show.png").exists()


def test_too_many_samples_for_one_picture_are_refused(folder, monkeypatch, capsys):
    np.savez(folder / "many.npz", x=np.zeros((200, 3, 12, 12), np.float32))
    arguments = ("file:net.py:build", "many.npz", "--weights", "build.pt", "--samples", "200", "--methods", "gradient")
    code, _, err = call(monkeypatch, capsys, folder, *arguments)
    assert (code, "200 samples with 1 maps each make too tall a picture" in err) == (2, True)
    assert not (folder / "show.png").exists()


def test_all_methods_on_a_small_network_draw_or_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr(METHODS, "_entries", {n: e for n, e in METHODS.items() if "harness." in e.function.__module__})
    code, out, err = call(monkeypatch, capsys, folder, "file:net.py:build", "a.png", "b.png", "--weights", "build.pt")
    assert code == 0, out + err
    assert "assumed: nothing says how the model was trained: values in [0, 1] are assumed" in out
    assert "a folder with training samples is the background: --data '{train: FOLDER}'" in out
    refused = [line.partition(" ")[0] for line in out.splitlines() if "does not apply" in line]
    layout = layout_of("image", (3, 12, 12), 2, ["", *(name for name in METHODS if name not in refused)])
    assert Image.open(folder / "show.png").size == (layout.width, layout.height)


def test_without_images_a_model_of_ours_shows_its_own_data(tmp_path):
    entry, assumed = entry_of("mnist-cnn", data_of_images([], None, tmp_path), None, tmp_path)
    assert (entry.data.source, assumed) == ("mnist-5k", [])
    entry, _ = entry_of("mnist-cnn", data_of_images([], "{source: digits, samples: 3}", tmp_path), None, tmp_path)
    assert (entry.data.source, entry.data.samples) == ("digits", 3)


def test_arguments_become_methods_and_targets():
    assert method_entries(["gradient, sobel", "{method: smoothgrad, samples: 50}", "grad_cam"]) == [
        "gradient",
        "sobel",
        {"method": "smoothgrad", "samples": 50},
        "grad_cam",
    ]
    assert [target_of(text) for text in ("label", "predicted", "runner_up", "17")] == [
        "label",
        "predicted",
        "runner_up",
        17,
    ]


def test_a_file_of_weights_of_a_published_network_is_prepared_and_named_as_the_published_ones(folder):
    given = data_of_images(["a.png"], "{crop: 192}", folder)
    entry, (said,) = entry_of("torchvision:mobilenet_v2", given, "mine.safetensors", folder)
    wanted = {"resize": [256], "crop": 192, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert {key: entry.data.options[key] for key in wanted} == wanted  # what the user says stays
    assert "nothing says how the model was trained: as the published weights IMAGENET1K_V1 is assumed" in said
    source = MODELS["torchvision"].load("mobilenet_v2", {})
    data = DATA["pictures"].load("", {"files": ["a.png"], "mean": [0.0], "std": [1.0]}, base=folder, preprocessing=None)
    names, note = names_of(source, "mine.safetensors", data, 1000)
    assert (names[0], names[15]) == ("tench", "robin")
    assert "those of the published weights IMAGENET1K_V1 are assumed" in note
    assert names_of(source, "IMAGENET1K_V2", data, 1000) == (names, "")
    assert names_of(source, "mine.safetensors", data, 10) == ((), "")
    assert names_of(source, "random", data, 1000) == ((), "")
    assert (
        entry_of("torchvision:mobilenet_v2", data_of_images(["a.png"], None, folder), "IMAGENET1K_V2", folder)[1] == []
    )


def test_pictures_are_a_data_source_of_studies_too(folder):
    options = DATA["pictures"].resolve({"files": ["b.png", "a.png"], "mean": [0.5] * 3, "std": [0.25] * 3})
    data = DATA["pictures"].load("", options, base=folder, preprocessing=None)
    assert (data.ids, data.labels, data.train) == (["b.png", "a.png"], None, None)
    pixels = np.asarray(Image.open(folder / "a.png")).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(data.batch([1])[0].numpy(), (pixels - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(InputError, match="pictures: no files: `files` lists their paths"):
        DATA["pictures"].load("", DATA["pictures"].resolve({}), base=folder, preprocessing=None)


def test_a_regression_tells_its_output_and_no_probability(folder):
    (folder / "number.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(5, 1)\n")
    torch.save(nn.Linear(5, 1).state_dict(), folder / "number.pt")
    given = "{source: file:number.py:build, head: regression, weights: number.pt}"
    entry, _ = entry_of(given, data_of_images(["t.csv"], None, folder), None, folder)
    subject = subject_to_show(entry, folder, target="predicted", samples=1, device=CPU, progress=silent)
    gallery = gallery_of(entry, folder, subject, choose(METHODS, ["gradient"], "methods"), chunk=4, progress=silent)
    output = float(subject.source.model(subject.x)[0, 0].detach())
    assert gallery.samples[0].predicted == f"output {output:.3g}"
