"""Networks of which is known what cannot matter: faithful methods put exactly nothing there, others are found out."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

from cases import case_of, network, rows, values
from harness.blocks import blocks_of
from harness.catalogue import METHODS, MODELS
from harness.data.planting import cells_of, left_half, picture_of
from harness.model_entries import models_of
from harness.models.weights import load_weights, read_weights
from harness.models.wrapped import CellRecipe, Grid, Masked
from harness.networks import CNN
from harness.places import Place
from harness.planted import doubt
from harness.progress import silent
from harness.registry import split_source
from harness.space import InputSpace
from harness.subjects import load_entry
from harness.training import Lesson
from harness.twins import twin_of
from harness.types import InputError, NotApplicableError

FAITHFUL = {
    "gradient": {},
    "input_x_gradient": {},
    "guided_backprop": {},
    "deconvnet": {},
    "excitation_backprop": {},
    "lrp_0": {},
    "lrp_epsilon": {},
    "lrp_gamma": {},
    "lrp_z_plus": {},
    "lrp_alpha_beta": {},
    "lrp_epsilon_plus": {},
    "deep_taylor": {},
    "deeplift": {"baseline": "grey"},
    "integrated_gradients": {"baseline": "grey", "steps": 4},
    "smoothgrad": {"samples": 3},
}
INSIDE = ["modules", "functional", "in_place", "gelu", "vit"]
SIDE, CLASSES = 12, 4
LEFT, RIGHT = (..., slice(0, 14)), (..., slice(14, 28))

REFUSED = [("in_place", "deep_taylor")]
"""Its first layer is one that writes into its input, and would need a rule of its own."""

each_pair = pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in INSIDE for method in FAITHFUL if (name, method) not in REFUSED]
)
each_method = pytest.mark.parametrize("method", FAITHFUL)


def loaded_source(registry, text, **options):
    entry, argument = split_source(text, registry)
    return entry.load(argument, options)


def inner(name):
    return network(name, torch.float64)[0]


def pictures(n=6, channels=2, seed=0, sides=(2 * SIDE, 2 * SIDE)):
    return torch.rand(n, channels, *sides, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_of(model, x, target, method, options=None):
    channels = x.shape[1]
    space = InputSpace("image", (0.0,) * channels, (1.0,) * channels)
    resolved = METHODS[method].resolve(FAITHFUL.get(method, {}) if options is None else options)
    return case_of(model, x, target, (method, resolved), space=space).maps


def cells(maps):
    """The sum of absolute relevance in each cell."""
    return cells_of(maps).abs().flatten(2).sum(2)


# --- grids -----------------------------------------------------------------------------------------------------------


def test_cells_are_cut_and_put_together_again():
    x = pictures(3, sides=(6, 10))
    cut = cells_of(x)
    assert cut.shape == (3, 4, 2, 3, 5)
    for cell, (top, left) in enumerate([(0, 0), (0, 5), (3, 0), (3, 5)]):
        assert torch.equal(cut[:, cell], x[:, :, top : top + 3, left : left + 5])
    assert torch.equal(picture_of(cut.unbind(1)), x)
    with pytest.raises(InputError, match=r"even sides, to cut two by two, got \[5, 6\]"):
        cells_of(pictures(1, sides=(5, 6)))


@pytest.mark.parametrize(("name", "joint"), [*((name, "") for name in INSIDE), ("modules", "4"), ("gelu", "2")])
def test_logits_are_those_of_the_classifier_on_each_cell(name, joint):
    classifier, x = inner(name), pictures()
    logits = Grid(classifier, joint).eval()(x)
    assert logits.shape == (6, 4 * CLASSES)
    for cell, (top, left) in enumerate([(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)]):
        alone = classifier(x[:, :, top : top + SIDE, left : left + SIDE].clone())
        torch.testing.assert_close(logits[:, cell * CLASSES : (cell + 1) * CLASSES], alone, rtol=0, atol=1e-12)


@pytest.mark.slow
@each_pair
def test_no_faithful_method_puts_anything_off_the_cell_of_an_arbitrary_classifier(name, method):
    model, x = Grid(inner(name)).eval(), pictures(16)
    target = torch.arange(16)
    relevance = cells(maps_of(model, x, target, method))
    own = torch.nn.functional.one_hot(target // CLASSES, 4).bool()
    assert (relevance[~own] == 0).all()
    assert (relevance[own] > 0).double().mean() > 0.5


@each_method
def test_joining_the_feature_maps_changes_no_map(method):
    classifier, x, target = inner("modules"), pictures(16), torch.arange(16)
    apart, joined = (maps_of(Grid(classifier, joint).eval(), x, target, method) for joint in ("", "4"))
    torch.testing.assert_close(joined, apart, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "joint"), [("modules", "4"), ("gelu", "2"), ("tanh", "2")])
def test_grad_cam_looks_at_the_joined_map_and_puts_three_quarters_off_the_cell(name, joint):
    model, x, target = Grid(inner(name), joint).eval(), pictures(16), torch.arange(16)
    own = torch.nn.functional.one_hot(target // CLASSES, 4).bool()

    def off(method, **options):
        relevance = cells(maps_of(model, x, target, method, options))
        return relevance[~own].sum() / relevance.sum()

    assert 0.6 < off("grad_cam") < 0.9
    assert 0.6 < off("grad_cam_plus_plus") < 0.9
    # By the weight of each position, and not of each channel, only upsampling crosses the edge.
    assert off("hires_cam") < 0.1
    torch.testing.assert_close(off("grad_cam", layer="joined"), off("grad_cam"), rtol=0, atol=0)


def test_without_a_joint_class_activation_maps_find_no_layer():
    model, x = Grid(inner("modules")).eval(), pictures()
    with pytest.raises(NotApplicableError, match="no layer"):
        maps_of(model, x, torch.arange(6), "grad_cam")


def test_a_joint_that_is_no_joint_is_refused():
    with pytest.raises(InputError, match=r"joint 'fc9': the classifier has no such module; did you mean fc1"):
        Grid(CNN((1, SIDE, SIDE), 3), "fc9")
    model = Grid(CNN((1, SIDE, SIDE), 3), "softmax_linear").eval()
    with pytest.raises(InputError, match=r"joint 'softmax_linear': expected a module that reads feature maps"):
        model(torch.rand(2, 1, 24, 24))
    assert not model.classifier.softmax_linear._forward_pre_hooks


# --- masks -----------------------------------------------------------------------------------------------------------


def test_the_left_half_is_the_first_half_of_the_last_axis():
    assert left_half((3, 2, 5)).tolist() == [[[1, 1, 0, 0, 0]] * 2]
    assert left_half((3, 4)).tolist() == [[1, 1, 0, 0]]
    assert left_half((4,)).tolist() == [1, 1, 0, 0]


@each_pair
def test_no_faithful_method_puts_anything_off_the_mask_of_an_arbitrary_classifier(name, method):
    x, target = pictures(8, sides=(SIDE, SIDE)), torch.arange(8) % CLASSES
    own = (pictures(1, channels=1, seed=3, sides=(SIDE, SIDE))[0] > 0.4).double()
    for mask in (None, own):
        model = Masked(inner(name), mask).eval()
        seen = (left_half((2, SIDE, SIDE)) if mask is None else own).bool().expand(8, 2, -1, -1)
        maps = maps_of(model, x, target, method).expand(8, 2, -1, -1)
        assert (maps[~seen] == 0).all()
        assert (maps[seen] != 0).double().mean() > 0.3


@pytest.mark.parametrize(("name", "shape"), [("signal", (2, 24)), ("table", (9,))])
def test_masks_serve_signals_and_tables(name, shape):
    model = Masked(inner(name)).eval()
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = maps_of_any(model, x, torch.arange(5) % 4)
    half = shape[-1] // 2
    assert (maps[..., half:] == 0).all()
    assert (maps[..., :half] != 0).any()
    torch.testing.assert_close(model(x), model.classifier(x * left_half(shape)))


def maps_of_any(model, x, target):
    return case_of(model, x, target, "gradient").maps


# --- as part of the harness ------------------------------------------------------------------------------------------


def build_grid():
    return Grid(CNN((1, SIDE, SIDE), CLASSES, batch_norm=True), "fc1")


def build_masked():
    return Masked(CNN((1, 2 * SIDE, 2 * SIDE), CLASSES, batch_norm=True))


@pytest.mark.parametrize("build", [build_grid, build_masked])
def test_twins_and_blocks_hold_the_whole_network(build):
    model, x = build().eval(), torch.rand(4, 1, 2 * SIDE, 2 * SIDE)
    blocks = blocks_of(model, x)
    layers = ("hidden1", "hidden2", "fc1", "softmax_linear")
    assert [block.name for block in blocks] == [f"classifier.{layer}" for layer in layers]
    assert {name for block in blocks for name in block.parameters} == {name for name, _ in model.named_parameters()}
    twin = twin_of(model, build, 0)
    assert not torch.equal(twin(x), model(x))
    case = case_of(model, x, torch.arange(4), "gradient", build=build)
    frame = rows(case, "parameter_randomization", full_draws=1, cascade_draws=1)
    stages = frame[frame["role"] == "test"]["stage"].unique()
    assert len(stages) > 4
    assert values(frame, "spearman", mode="full", sign="signed").abs().max() < 0.9


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("file", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("wrap", [Grid, Masked, lambda classifier: Grid(Masked(classifier))])
def test_weights_of_the_classifier_alone_are_loaded_and_those_of_the_whole_too(wrap, file, tmp_path):
    from safetensors.torch import save_file

    theirs = CNN((1, SIDE, SIDE), CLASSES, batch_norm=True)
    for state in (state_of(theirs), state_of(wrap(theirs))):
        path = tmp_path / file
        save_file(state, path) if file.endswith("safetensors") else torch.save(state, path)
        ours = wrap(CNN((1, SIDE, SIDE), CLASSES, batch_norm=True))
        load_weights(ours, read_weights(path), file)
        found, expected = state_of(ours), state_of(wrap(theirs))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_weights_that_do_not_fit_are_named_as_the_network_has_them():
    theirs = state_of(CNN((1, SIDE, SIDE), CLASSES))
    del theirs["softmax_linear.bias"]
    with pytest.raises(InputError, match=r"lacks classifier\.softmax_linear\.bias"):
        load_weights(Grid(CNN((1, SIDE, SIDE), CLASSES)), theirs, "file")
    with pytest.raises(InputError, match=r"has unknown elsewhere\.weight"):
        load_weights(Grid(CNN((1, SIDE, SIDE), CLASSES)), {"elsewhere.weight": torch.zeros(1)}, "file")


@pytest.mark.parametrize("wrap", ["grid", "masked"])
def test_any_source_can_be_inside(wrap):
    resnet = loaded_source(MODELS, f"{wrap}:torchvision:resnet18")
    theirs = loaded_source(MODELS, "torchvision:resnet18")
    factor = 2 if wrap == "grid" else 1
    assert resnet.name == f"{wrap}:torchvision:resnet18"
    assert resnet.shape == resnet.input_shape("IMAGENET1K_V1") == (3, 224 * factor, 224 * factor)
    assert resnet.pretrained.keys() == theirs.pretrained.keys()
    assert resnet.preprocessing("IMAGENET1K_V1") == theirs.preprocessing("IMAGENET1K_V1")
    assert len(resnet.pretrained["IMAGENET1K_V1"].classes) == 1000 * factor**2
    assert resnet.recipe is None
    with torch.random.fork_rng():
        model = resnet.constructor("IMAGENET1K_V1")((), 0).eval()
        load_weights(model, theirs.build((), 0).state_dict(), "theirs")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert model(x).shape == (1, 1000 * factor**2)


def test_networks_are_told_apart_by_what_is_in_them(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten())\n")
    source = loaded_file(tmp_path)
    before = source.code(source.build((1, 4, 4), 0))
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(1))\n")
    source = loaded_file(tmp_path)
    after = source.code(source.build((1, 4, 4), 0))
    cnn, resnet = (loaded_source(MODELS, f"grid:{name}") for name in ("mnist-cnn", "resnet20"))
    ours = cnn.code(cnn.build((1, 56, 56), 40)), resnet.code(resnet.build((3, 64, 64), 40))
    assert len({before, after, *ours}) == 4


def loaded_file(base):
    entry, argument = split_source("grid:file:net.py:build", MODELS)
    return entry.load(argument, {}, base=base)


def test_a_mask_around_a_grid_is_refused():
    with pytest.raises(InputError, match="expected the mask in the cells, grid:masked:mnist-cnn"):
        loaded_source(MODELS, "masked:grid:mnist-cnn")
    model = loaded_source(MODELS, "grid:masked:mnist-cnn").build((1, 56, 56), 40)
    assert model(torch.rand(2, 1, 56, 56)).shape == (2, 40)


def test_in_a_study_the_joint_is_an_option():
    (entry,) = models_of([{"source": "grid:mnist-cnn", "joint": "fc1", "data": "grid:mnist-5k"}], None, Place("test"))
    assert entry.options == {"joint": "fc1"}
    model = loaded_source(MODELS, "grid:mnist-cnn", joint="fc1").build((1, 56, 56), 40)
    assert (model.joint, model.classifier.softmax_linear.out_features) == ("fc1", 10)


@dataclass
class Remembering:
    """A recipe that only remembers what it is given."""

    given: list = field(default_factory=list)
    title = "remembering"

    def identity(self, initial):
        return type(initial).__name__

    def fit(self, model, x, y, lesson, progress):
        self.given.append((model, x, y, lesson))
        return model


def test_the_classifier_is_trained_on_the_labelled_cells():
    remembering = Remembering()
    recipe, model = CellRecipe(remembering), build_grid()
    x, y = torch.rand(16, 1, 2 * SIDE, 2 * SIDE), torch.randperm(16)
    lesson = Lesson("grid:cnn", 3)
    assert recipe.fit(model, x, y, lesson, silent) is model
    ((trained, samples, labels, told),) = remembering.given
    assert trained is model.classifier
    assert told is lesson
    assert torch.equal(samples, torch.stack([cells_of(x)[row, int(label) // CLASSES] for row, label in enumerate(y)]))
    assert labels.tolist() == [int(label) % CLASSES for label in y]
    assert recipe.title == "remembering"
    assert "CNN" in recipe.identity(model)


# --- trained ---------------------------------------------------------------------------------------------------------


@cache
def trained(model, data, **options):
    (entry,) = models_of([{"source": model, "data": data, **options}], None, Place("test"))
    return load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)


@pytest.mark.slow
def test_a_trained_grid_knows_the_class_of_every_cell_and_has_nothing_off_the_cell():
    loaded, data = trained("grid:mnist-cnn", "grid:mnist-5k", joint="fc1")
    model, x = loaded.model, data.batch(range(200))
    labels = data.labels[:200]
    cell = labels // 10
    with torch.no_grad():
        own = model(x).view(200, 4, 10)[torch.arange(200), cell]
    assert (own.argmax(1) == labels % 10).double().mean() >= 0.95
    assert doubt(model, data, lambda _, rows: data.labels[rows], lambda x: x) == ""
    masks = data.masks(range(200))[:64]
    for method, options in FAITHFUL.items():
        maps = case_of(model, x[:64], labels[:64], (method, METHODS[method].resolve(options)), space=data.space).maps
        assert (maps * (1 - masks) == 0).all()
        assert maps.flatten(1).any(1).all()
    maps = case_of(model, x[:64], labels[:64], "grad_cam", space=data.space).maps
    assert (maps * (1 - masks)).abs().sum() > 0.5 * maps.abs().sum()


@pytest.mark.slow
def test_a_trained_network_behind_a_mask_has_nothing_off_the_mask():
    loaded, data = trained("masked:mnist-cnn", "masked:mnist-5k")
    x, labels = data.batch(range(200)), data.labels[:200]
    with torch.no_grad():
        predicted = loaded.model(x).argmax(1)
    assert (predicted == labels).double().mean() >= 0.9
    assert doubt(loaded.model, data, lambda logits, _: logits.argmax(1), lambda x: x) == ""
    for method, options in FAITHFUL.items():
        maps = case_of(
            loaded.model, x[:64], labels[:64], (method, METHODS[method].resolve(options)), space=data.space
        ).maps
        assert (maps[RIGHT] == 0).all()
        assert maps[LEFT].flatten(1).any(1).all()
    assert loaded.partner().invalid == ""
