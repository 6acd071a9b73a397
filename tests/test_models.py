"""Sources of models: libraries, a user's own files and the built-in networks, with what their twins are."""

import socket
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn

import harness
from harness import InputError
from harness.data.images import Preprocessing
from harness.models.loading import NoWeightsError
from harness.progress import silent
from harness.study import StudyError, load_study
from harness.subjects import load_entry, load_source

CPU = torch.device("cpu")

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
"""


def study_folder(tmp_path):
    """A folder with 12 images [3, 8, 8] of 3 classes in data.npz, and net.py."""
    folder = tmp_path / "study"
    folder.mkdir()
    chance = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=chance.random((12, 3, 8, 8), dtype=np.float32), y=np.arange(12) % 3)
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a study that is not the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return study_folder(tmp_path)


def study_of(folder, *models, **changes):
    """A study with these models, written into the folder."""
    study = {"name": "s", "data": "npz:data.npz", "models": list(models), "methods": ["gradient"], "controls": False}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, "metrics": ["occlusion_faithfulness"], **changes}))
    return path


def loaded(folder, model, **changes):
    resolved = load_study(study_of(folder, model, **changes))
    return load_entry(resolved.models[0], resolved.base, seed=0, device=CPU, progress=silent)[0]


def fails(folder, model, message, error=InputError, **changes):
    with pytest.raises(error, match=message):
        loaded(folder, model, **changes)


def assert_same(model, other):
    for (name, value), (_, its) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(value, its, rtol=0, atol=0, msg=name)


def differ(model, other):
    return any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def assert_twins(model):
    """Twins differ from the model and from each other, and are the same for the same seed and draw."""
    first, again, other = model.twin(0), model.twin(0), model.twin(1)
    assert_same(first, again)
    assert differ(first, model.model)
    assert differ(first, other)
    assert not any(part.training for part in first.modules())


# --- torchvision -----------------------------------------------------------------------------------------------------


def served(monkeypatch, state):
    """What torchvision downloads from now on, and the addresses that it asked for."""
    asked = []

    def fetch(url, **options):
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return asked


PUBLISHED = {
    "squeezenet1_1": ("IMAGENET1K_V1", {}),
    "googlenet": ("IMAGENET1K_V1", {"aux_logits": True, "init_weights": False}),
    "deeplabv3_mobilenet_v3_large": (
        "COCO_WITH_VOC_LABELS_V1",
        {"aux_loss": True, "num_classes": 21, "weights_backbone": None},
    ),
    "lraspp_mobilenet_v3_large": ("COCO_WITH_VOC_LABELS_V1", {"num_classes": 21, "weights_backbone": None}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_make_the_network_that_torchvision_makes_of_them(folder, monkeypatch, name):
    weights, options = PUBLISHED[name]
    state = torchvision.models.get_model(name, weights=None, **options).state_dict()
    asked = served(monkeypatch, state)
    theirs = torchvision.models.get_model(name, weights=weights, progress=False).eval()
    x = torch.rand(2, 3, 64, 64)
    np.savez(folder / "data.npz", x=x.numpy())
    ours = loaded(folder, {"source": f"torchvision:{name}", "weights": weights})
    assert asked == asked[:1] * 2
    for key, value in theirs.state_dict().items():  # it drops auxiliary heads, which have no part in the output
        torch.testing.assert_close(ours.model.state_dict()[key], value, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(x), theirs(x), rtol=0, atol=0)
    assert (ours.origin, ours.note) == (f"published as {weights}", "twins by constructor")
    twin = ours.twin(0)
    assert len(asked) == 2
    pairs = zip(twin.parameters(), ours.model.parameters(), strict=True)
    assert not any(torch.equal(drawn, trained) for drawn, trained in pairs if drawn.ndim > 1)


def test_published_weights_bring_their_preprocessing_and_their_size(folder):
    entry = load_study(study_of(folder, "torchvision:vit_b_16")).models[0]
    source = load_source(entry, folder)
    wanted = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (384,), 384, "bicubic")
    assert source.preprocessing("IMAGENET1K_SWAG_E2E_V1") == wanted
    assert source.input_shape("IMAGENET1K_SWAG_E2E_V1") == (3, 384, 384)
    assert source.input_shape(None) == (3, 224, 224)
    with torch.device("meta"):
        large, usual = (source.constructor(w)((), 0) for w in ("IMAGENET1K_SWAG_E2E_V1", None))
    assert large.encoder.pos_embedding.shape[1] == 1 + 24**2
    assert usual.encoder.pos_embedding.shape[1] == 1 + 14**2


def test_weights_of_a_torchvision_network_from_a_file(folder):
    trained = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, folder / "w.pt")
    np.savez(folder / "data.npz", x=torch.rand(3, 3, 64, 64).numpy())
    mine = {"source": "torchvision:squeezenet1_1", "weights": "w.pt", "classes": 3}
    model = loaded(folder, mine)
    assert_same(model.model, trained)
    assert_twins(model)
    fails(folder, {**mine, "classes": 0}, "the file is of a network with 3 classes, this one has 1000")


def test_without_a_network_the_failing_download_is_an_input_error(folder, monkeypatch):
    def offline(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    fails(
        folder,
        {"source": "torchvision:squeezenet1_1", "weights": "IMAGENET1K_V1"},
        "torchvision:squeezenet1_1: weights 'IMAGENET1K_V1' cannot be fetched: .*Name or service not known",
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"source": "torchvision:resnet19"}, "no such network; did you mean resnet1"),
        (
            {"source": "torchvision:squeezenet1_1"},
            r"nothing says which weights: .* a file or one of IMAGENET1K_V1, ran",
        ),
        (
            {"source": "torchvision:squeezenet1_1", "weights": "IMAGENET1K_V3"},
            "weights 'IMAGENET1K_V3' are neither a file nor known; did you mean IMAGENET1K_V1",
        ),
        ({"source": "torchvision:squeezenet1_1", "weights": "gone.pt"}, "no file '.*study/gone.pt'"),
        ({"source": "torchvision:squeezenet1_1", "classes": -1}, "greater than or equal to 0, got|expects int, got -1"),
        ({"source": "torchvision:squeezenet1_1", "clases": 3}, "unknown key 'clases'; did you mean classes"),
        ({"source": "torchvision:"}, "expected torchvision:NAME"),
        ({"source": "timm:test_vti"}, "no such network; did you mean test_vit"),
        ({"source": "timm:xxxxxxxx"}, r"no such network; `timm.list_models\(\)` lists them"),
        ({"source": "timm:test_vit.r161_in1k"}, "has no weights called 'r161_in1k'; did you mean r160_in1k"),
    ],
)
def test_what_a_library_does_not_have_is_named(folder, model, message):
    fails(folder, model, message, (InputError, StudyError))


# --- timm ------------------------------------------------------------------------------------------------------------


def test_timm_with_random_and_with_published_weights(folder, monkeypatch):
    np.savez(folder / "data.npz", x=torch.rand(2, 3, 160, 160).numpy())
    entry = {"source": "timm:test_vit", "weights": "pretrained"}
    published = timm.create_model("test_vit", pretrained=False)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: published.state_dict())
    model = loaded(folder, entry)
    assert_same(model.model, published)
    assert model.origin == "published as pretrained"
    assert_twins(model)
    fails(folder, {**entry, "classes": 3}, "with 1000 classes, this one has 3")
    random = loaded(folder, {**entry, "weights": "random", "classes": 3})
    assert random.model.num_classes == 3
    assert_twins(random)
    source = load_source(load_study(study_of(folder, entry)).models[0], folder)
    assert source.preprocessing("pretrained") == Preprocessing((0.5,) * 3, (0.5,) * 3, (168,), 160, "bicubic")
    assert source.input_shape("pretrained") == source.shape == (3, 160, 160)


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("torchvision:resnet18", "IMAGENET1K_V1"),
        ("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
        ("timm:test_vit", "pretrained"),
        ("timm:coat_lite_medium_384", "pretrained"),  # which squashes
    ],
)
def test_pictures_are_prepared_as_the_library_prepares_them(folder, source, weights):
    library, _, name = source.partition(":")
    if library == "timm":
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        theirs = timm.data.create_transform(**config)
    else:
        theirs = torchvision.models.get_model_weights(name)[weights].transforms()
    chance = np.random.default_rng(0)
    ours = load_source(load_study(study_of(folder, source)).models[0], folder).preprocessing(weights)
    for size in ((300, 500, 3), (401, 200, 3)):
        picture = Image.fromarray(chance.integers(0, 256, size, dtype=np.uint8))
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-5)


def test_timm_that_is_not_installed_says_how_to_install_it(folder, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "timm" else find(name, *more))
    fails(folder, "timm:test_vit", r"timm is not installed: pip install 'attribution-harness\[timm\]'")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_relative_to_the_study_and_its_twins_come_by_its_constructor(folder):
    torch.manual_seed(5)
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    (folder / "weights").mkdir()
    torch.save(trained.state_dict(), folder / "weights" / "w.pt")
    mine = {"source": "file:net.py:build", "weights": "weights/w.pt"}
    model = loaded(folder, mine)
    assert_same(model.model, trained)
    assert (model.origin, model.note) == ("weights/w.pt", "twins by constructor")
    assert not model.model.training
    assert_twins(model)
    with pytest.raises(LookupError, match="no training recipe"):
        model.partner()
    (resolved,) = load_study(study_of(folder, mine)).models
    assert resolved.name == "net"


OWN = f"""
from pathlib import Path
{NET}
def loads():
    model = build()
    model.load_state_dict(torch.load(Path(__file__).parent / "w.pt"))
    return model.eval()

def forgets():
    return loads().train()

def seeds():
    torch.manual_seed(3)
    return build()

def tunes():
    model = loads()
    model[3] = nn.Linear(4 * 36, 3)
    return model

def numpy():
    import numpy as np
    model = build()
    model[0].weight.data = torch.from_numpy(np.random.default_rng().random((4, 3, 3, 3), dtype=np.float32))
    return model.eval()

def double():
    return build().double()
"""


@pytest.fixture
def own(folder):
    """The folder with a net.py whose factories load, seed and draw weights themselves, and their w.pt."""
    (folder / "net.py").write_text(OWN)
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    torch.save(trained.state_dict(), folder / "w.pt")
    return folder, trained


def test_a_factory_that_loads_its_own_weights_needs_no_others(own):
    folder, trained = own
    model = loaded(folder, "file:net.py:loads")
    assert_same(model.model, trained)
    assert (model.origin, model.note) == ("as the constructor makes it", "twins by reset_parameters")
    assert_twins(model)
    assert model.twin(0)[0].weight.abs().max() <= (3 * 9) ** -0.5  # the bound of the default initializer
    # It answers for the mode as well; where the weights come from a file, we do.
    study = study_of(folder, "file:net.py:forgets")
    with pytest.raises(InputError, match=r"the model is in train mode \(Sequential, 0, 1 and 2 more\): call"):
        harness.run(study, folder / "run")
    assert not loaded(folder, {"source": "file:net.py:forgets", "weights": "w.pt"}).model.training


def test_a_factory_that_seeds_itself_has_twins_all_the_same(own):
    folder, trained = own
    state = torch.random.get_rng_state()
    model = loaded(folder, {"source": "file:net.py:seeds", "weights": "w.pt"})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(model.model, trained)
    assert model.note == "twins by reset_parameters"
    assert_twins(model)


def test_random_weights_are_random_where_a_factory_loads_its_own(own):
    folder, trained = own
    for factory in ("loads", "seeds", "forgets", "tunes"):
        draws = [
            loaded(folder, {"source": f"file:net.py:{factory}", "weights": "random", "model_seed": s}) for s in (0, 1)
        ]
        assert differ(draws[0].model, draws[1].model)
        shared = zip(draws[0].model.parameters(), trained.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in shared)
        assert not draws[0].model.training


def test_a_factory_that_tunes_a_trained_network_has_twins_without_its_weights(own):
    folder, trained = own
    model = loaded(folder, {"source": "file:net.py:tunes", "weights": "w.pt"})
    assert model.note == "twins by reset_parameters"
    shared = zip(model.twin(0).parameters(), trained.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in shared)
    fails(folder, "file:net.py:tunes", "nothing says which weights", NoWeightsError)


def test_a_factory_that_draws_anew_each_time_is_not_trained(own):
    fails(own[0], "file:net.py:numpy", "nothing says which weights", NoWeightsError)
    assert loaded(own[0], {"source": "file:net.py:numpy", "weights": "w.pt"}).note == "twins by reset_parameters"


def test_a_network_in_double_precision_runs_through_a_study(own):
    model = {"source": "file:net.py:double", "weights": "w.pt"}
    metrics = ["occlusion_faithfulness", {"metric": "parameter_randomization", "full_draws": 1, "cascade_draws": 1}]
    results = harness.run(study_of(own[0], model, metrics=metrics), own[0] / "run")
    assert results.failures.empty
    assert set(results.cells["dtype"]) == {"torch.float64"}


FAULTS = {
    "file:gone.py:build": "no file '.*study/gone.py'",
    "file:net.py": "expected file:PATH.py:FACTORY, such as file:net.py:build",
    "file:net.py:bild": "net.py has no function 'bild'; did you mean build",
    "file:bad.py:syntax": "bad.py: SyntaxError: ",
    "file:raises.py:build": "raises.py: ZeroDivisionError: division by zero",
    "file:exits.py:build": "exits.py: SystemExit: 3",
    "file:more.py:fails": r"file:more.py:fails: fails\(\) raised KeyError: 'width'",
    "file:more.py:exits": r"exits\(\) raised SystemExit",
    "file:more.py:needs": r"needs\(\) raised TypeError: .*missing 1 required positional argument: 'width'",
    "file:more.py:nothing": r"nothing\(\) returned NoneType, expected an nn.Module",
    "file:more.py:state": r"state\(\) returned OrderedDict, expected an nn.Module",
    "file:more.py:lazy": r"lazy\(\) returned lazy modules: send a sample through them",
    "file:more.py:WIDTH": "more.py has no function 'WIDTH'",
    "file:net.txt:build": "net.txt is no Python file: its name must end in .py",
}


@pytest.mark.parametrize("source", FAULTS)
def test_a_fault_in_a_file_is_named(folder, source):
    (folder / "net.txt").write_text(NET)
    (folder / "bad.py").write_text("def build(:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "more.py").write_text(
        f"{NET}\nWIDTH = 3\ndef fails(): return {{}}['width']\ndef exits(): exit(0)\ndef needs(width): return build()\n"
        "def nothing(): build()\ndef state(): return build().state_dict()\n"
        "def lazy(): return nn.LazyLinear(3)\n"
    )
    path = list(sys.path)
    fails(folder, source, FAULTS[source])
    assert sys.path == path
