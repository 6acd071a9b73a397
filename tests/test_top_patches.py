"""Top patches: receptive fields, loops over units, a literal DeconvNet, and the digits of a trained network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harness
from cases import network
from closed_forms import normal
from harness import Artifact, Samples, Score
from harness.methods.activations import layers_of
from harness.methods.correlations import centred
from harness.methods.exciting import most_exciting, projections
from harness.methods.patch_pictures import side_by_side
from harness.methods.receptive_fields import receptive_fields
from harness.methods.top_patches import agreement, label_entropy, likeness, top_patches
from harness.models.loaded import LoadedModel
from harness.space import InputSpace
from harness.types import NotApplicableError

LABELS = torch.arange(30) % 3


def seeded(*modules):
    """These modules in a row, in float64, with weights that do not depend on what ran before."""
    model = nn.Sequential(*modules).double().eval()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=seed)
    return model


def convolutional(sides=(9, 8), stride=1):
    """Two convolutions on [2, *sides], the first with pooling, and a linear layer: layers `2`, `4` and `6`."""
    kind = (nn.Conv1d, nn.Conv2d)[len(sides) - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d)[len(sides) - 1]
    first = nn.Sequential(kind(2, 5, 3, padding=1), pool(2), kind(5, 6, 3, stride=stride))
    with torch.no_grad():
        features = first(torch.zeros(1, 2, *sides)).numel()
    return seeded(first[0], nn.ReLU(), pool(2), first[2], nn.ReLU(), nn.Flatten(), nn.Linear(features, 4))


def source_of(model, x, independent=None):
    source = LoadedModel(model, None, 0, x[:1], lambda: x)
    source.__dict__["_retrained"] = (independent, 1.0) if independent else None
    return source


def ask(model, x, labels=None, reference=None, independent=None, source=None, chunk=16, **options):
    """(scores by (measure, layer), artifacts by (name, layer), reasons)."""
    labels = torch.arange(len(x)) % 3 if labels is None else labels
    data = Samples(x, labels if len(labels) else None, [f"s{index}" for index in range(len(x))])
    reference = reference or model
    source = source or source_of(reference, x, independent)
    space = InputSpace.undeclared(x)
    with torch.no_grad():
        found = list(top_patches(model, space, data, source=source, chunk=chunk, reference=reference, **options))
    scores = [each for each in found if isinstance(each, Score)]
    artifacts = {(each.name, each.stage): each for each in found if isinstance(each, Artifact)}
    reasons = {(each.measure, each.stage): [r for r, holds in each.undefined.items() if holds] for each in scores}
    return {(each.measure, each.stage): each.values.item() for each in scores}, artifacts, reasons


def exciting(model, x, names=(), units=8, patches=5):
    layers = layers_of(model, x, names)
    return most_exciting(model, x, receptive_fields(model, x, layers, 16), units, patches, 16)


# Receptive fields


def test_receptive_fields_of_convolutions_have_a_closed_form():
    model = seeded(
        nn.Conv1d(1, 3, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 4, 3, padding=1), nn.Flatten()
    )
    x = normal(1, 1, 20)
    fields = receptive_fields(model, x, layers_of(model, x, ["2", "3", "4"]), 7)
    pooled, after, flat = (boxes[:, 0] for boxes in fields.values())
    at = torch.arange(10)
    assert torch.equal(pooled, torch.stack([2 * at - 2, 2 * at + 3], 1).clamp(0, 19))
    assert torch.equal(after, torch.stack([2 * (at - 1) - 2, 2 * (at + 1) + 3], 1).clamp(0, 19))
    # What is flattened has no positions: its field is that of all of its channels.
    assert flat.tolist() == [[0, 19]]


def test_receptive_fields_are_where_gradients_can_be():
    model = seeded(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 4, (1, 3), dilation=(1, 2)), nn.Tanh()
    )
    x = normal(1, 2, 9, 14).requires_grad_()
    layer = layers_of(nn.Sequential(model, nn.Flatten(), nn.Linear(60, 2).double()), x.detach(), ["0.2"])
    whole = nn.Sequential(model, nn.Flatten(), nn.Linear(60, 2).double())
    (boxes,) = receptive_fields(whole, x.detach(), layer, 64).values()
    output = model[:3](x)[0, 0].flatten()
    for value, box in zip(output, boxes, strict=True):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        rows, columns = (gradient[0].abs().sum(0) > 0).nonzero().T
        assert box.tolist() == [[rows.min(), rows.max()], [columns.min(), columns.max()]]


def test_receptive_fields_do_not_depend_on_weights_and_end_at_the_input():
    model = convolutional()
    x = normal(3, 2, 9, 8)
    before = receptive_fields(model, x, layers_of(model, x), 16)
    layers = layers_of(model, x)
    for parameter in model.parameters():
        parameter.data.zero_()
    after = receptive_fields(model, x, layers, 16)
    assert all(torch.equal(before[layer], after[layer]) for layer in layers)
    hiding = nn.Sequential(Hiding(), model)
    (boxes,) = receptive_fields(hiding, x, layers_of(hiding, x, ["1.2"]), 16).values()
    assert torch.equal(boxes, torch.tensor([[0, 8], [0, 7]]).expand_as(boxes))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_receptive_fields_are_exact_in_single_precision(kernel):
    """Fast algorithms for convolutions spread a NaN over their tiles, so that fields come out much too large."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, kernel, padding=kernel // 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 400, 2)
    )
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    (boxes,) = receptive_fields(model, x, layers_of(model, x, ["1"]), 64).values()
    at = torch.cartesian_prod(torch.arange(20), torch.arange(20))
    expected = torch.stack([at - kernel // 2, at + kernel // 2], 2).clamp(0, 19)
    assert torch.equal(boxes, expected)


class Hiding(nn.Module):
    def forward(self, x):
        return x.nan_to_num()


# What excites units


@pytest.mark.parametrize("sides", [(9, 8), (20,)], ids=["image", "signal"])
def test_patches_are_those_of_a_loop_over_units_samples_and_positions(sides):
    model, x = convolutional(sides), normal(12, 2, *sides)
    for found in exciting(model, x, patches=4):
        layer = int(found.layer.name)
        output = model[: layer + 1](x).detach()
        fields = receptive_fields(model, x, [found.layer], 16)[found.layer]
        cut = found.cut(x[found.samples.flatten()])
        for row, unit in enumerate(found.units.tolist()):
            highest = [(float(output[sample, unit].max()), -sample) for sample in range(12)]
            best = [-sample for _, sample in sorted(highest, reverse=True)[:4]]
            assert found.samples[row].tolist() == best
            for column, sample in enumerate(best):
                position = int(output[sample, unit].argmax())
                box = fields[position].tolist()
                window = [slice(low, high + 1) for low, high in box]
                inside = x[(sample, slice(None), *window)]
                if inside.shape[1:] == found.size:
                    assert torch.equal(cut[row, column], inside)
                for (low, high), corner, side in zip(box, found.corners[row, column].tolist(), found.size, strict=True):
                    assert corner <= low <= high < corner + side


def test_units_that_are_dead_are_counted_and_left_out():
    model, x = convolutional(), normal(12, 2, 9, 8)
    model[3].weight.data *= 0.1
    model[3].bias.data[:] = 3
    model[3].bias.data[1] = -100
    model[3].weight.data[4] = 0
    by_layer = {found.layer.name: found for found in exciting(model, x, ["2", "4"])}
    assert by_layer["4"].dead == pytest.approx(2 / 6)
    assert by_layer["4"].units.tolist() == [0, 2, 3, 5]
    assert by_layer["2"].dead == 0
    scores, _, _ = ask(model, x, layers=("2", "4"))
    assert scores["dead_units", "4"] == pytest.approx(2 / 6)
    assert scores["dead_units", None] == pytest.approx(1 / 6)
    assert exciting(model, x, ["4"], units=2)[0].units.tolist() == [0, 5]


def test_projections_are_those_of_a_literal_deconvnet():
    model, x = convolutional(), normal(12, 2, 9, 8)
    (found,) = exciting(model, x, ["4"], units=3, patches=4)
    maps = projections(model, x, found, 5).unflatten(0, (3, 4))
    for row, unit in enumerate(found.units):
        for column in range(4):
            image = x[found.samples[row, column]][None]
            rectified = model[0](image).relu()
            pooled, switches = F.max_pool2d(rectified, 2, return_indices=True)
            output = model[3](pooled)
            signal = torch.zeros_like(output)
            signal.flatten(2)[0, unit, found.positions[row, column]] = 1
            signal = F.conv_transpose2d(signal, model[3].weight)
            signal = F.max_unpool2d(signal, switches, 2, output_size=rectified.shape).clamp(min=0)
            signal = F.conv_transpose2d(signal, model[0].weight, padding=1)
            torch.testing.assert_close(maps[row, column], signal[0].detach())


# Measures


def test_entropy_of_labels():
    model, x = convolutional(), normal(12, 2, 9, 8)
    (found,) = exciting(model, x, ["2"], patches=9)
    one = torch.full((12,), 4)
    assert label_entropy(found, one).item() == 0
    mixed = torch.zeros(12, dtype=torch.int64)
    expected = []
    mixed[:5] = 1
    for samples in found.samples:
        share = np.bincount(mixed[samples], minlength=2) / 9
        expected.append(-sum(p * np.log2(p) for p in share if p))
    assert max(expected) > 0.5
    assert label_entropy(found, mixed).item() == pytest.approx(np.mean(expected))
    # Where every label is there once, patches cannot have one in common.
    assert label_entropy(found, torch.arange(len(mixed))).isnan()


def test_likeness_is_the_mean_over_pairs_and_units_and_constants_do_not_count():
    vectors = normal(3, 4, 6)
    pairs = [np.corrcoef(each)[np.triu_indices(4, 1)].mean() for each in vectors.numpy()]
    assert likeness(centred(vectors)).item() == pytest.approx(np.mean(pairs))
    assert likeness(vectors[:, :1].expand(-1, 4, -1)).item() == pytest.approx(1)
    with_constant = torch.cat([vectors, torch.full((3, 1, 6), 0.1).double()], 1)
    assert likeness(centred(with_constant)).item() == pytest.approx(np.mean(pairs))
    assert likeness(centred(with_constant[:, 4:].expand(-1, 2, -1))).isnan()


class Detectors(nn.Module):
    """Units that each look for one of the templates, anywhere, and a linear layer: layer `look`."""

    def __init__(self, templates):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, len(templates), templates.shape[-1], bias=False), nn.ReLU()).double()
        self.look[0].weight.data = templates[:, None]
        self.head = nn.Linear(len(templates), 3).double()
        self.head.weight.data = torch.eye(3, len(templates), dtype=torch.float64)

    def forward(self, x):
        return self.head(self.look(x).amax((2, 3)))


def planted(templates, n=30, side=12):
    """Each sample holds one of the templates somewhere, in faint noise; its label is which one."""
    x = 0.05 * normal(n, 1, side, side, seed=8)
    labels = torch.arange(n) % len(templates)
    for sample in range(n):
        row, column = (sample * 5) % 9, (sample * 7) % 9
        x[sample, 0, row : row + 4, column : column + 4] += templates[labels[sample]]
    return x, labels


@pytest.fixture(scope="module")
def templates():
    found = normal(3, 4, 4, seed=11)
    return (found - found.mean((1, 2), keepdim=True)) / found.flatten(1).norm(dim=1)[:, None, None]


def test_units_that_look_for_what_makes_the_classes_have_pure_patches_that_look_alike(templates):
    x, labels = planted(templates)
    trained = Detectors(templates)
    scores, artifacts, _ = ask(trained, x, labels, layers=("look",), units=3)
    assert scores["label_entropy", None] == 0
    assert scores["pixel_similarity", None] > 0.9
    assert scores["projection_similarity", None] == pytest.approx(1)
    strips = artifacts["patches", "look"].values
    assert tuple(strips.shape) == (3, 1, 4, 9 * 5 - 1)
    torch.testing.assert_close(strips[0, 0, :, :4], templates[0].float(), atol=0.3, rtol=0)
    # Units that look for something else find some of everything.
    other = Detectors(normal(3, 4, 4, seed=12))
    blind, _, _ = ask(other, x, labels, reference=trained, layers=("look",), units=3)
    assert blind["label_entropy", None] > 0.5
    assert blind["pixel_similarity", None] < scores["pixel_similarity", None] - 0.2


def test_projections_of_one_convolution_are_its_filter(templates):
    x, labels = planted(templates)
    trained, other = Detectors(templates), Detectors(normal(3, 4, 4, seed=12))
    scores, _, _ = ask(other, x, labels, reference=trained, layers=("look",), units=3)
    filters = [each.look[0].weight.data.flatten(1).numpy() for each in (trained, other)]
    expected = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*filters, strict=True)])
    assert abs(expected) < 0.5
    assert scores["projection_similarity", None] == pytest.approx(expected)
    shifted = zip(filters[1], np.roll(filters[1], 1, 0), strict=True)
    assert scores["unit_similarity", None] == pytest.approx(np.mean([np.corrcoef(*pair)[0, 1] for pair in shifted]))
    itself, _, _ = ask(trained, x, labels, layers=("look",), units=3)
    assert itself["input_similarity", None] > 0.9


def test_features_of_an_independent_network(templates):
    x, labels = planted(templates)
    trained = Detectors(templates)
    scores, _, _ = ask(trained, x, labels, independent=Detectors(templates[[2, 0, 1]]), layers=("look",), units=3)
    (found,) = exciting(trained, x, ["look"], units=3, patches=9)
    vectors = []
    for row in range(3):
        for column in range(9):
            sample, (top, left) = found.samples[row, column], found.corners[row, column].tolist()
            alone = torch.zeros_like(x[:1])
            alone[0, :, top : top + 4, left : left + 4] = x[sample, :, top : top + 4, left : left + 4]
            independent = Detectors(templates[[2, 0, 1]])
            vectors.append((independent.look(alone) - independent.look(torch.zeros_like(alone))).flatten().detach())
    expected = likeness(torch.stack(vectors).unflatten(0, (3, 9)))
    assert scores["feature_similarity", None] == pytest.approx(expected.item())


# What is missing


def test_what_cannot_be_said_has_a_reason():
    model, x = convolutional(), normal(12, 2, 9, 8)
    scores, artifacts, reasons = ask(model, x, labels=torch.zeros(0), units=1)
    assert np.isnan(scores["label_entropy", None])
    assert reasons["label_entropy", "2"] == ["the samples have no labels"]
    assert reasons["feature_similarity", None] == ["there is no network that was trained independently"]
    assert reasons["unit_similarity", None] == ["there is no other unit"]
    assert ("projections", "4") in artifacts
    model[3].bias.data[:] = -100
    scores, artifacts, reasons = ask(model, x, layers=("2", "4"))
    assert scores["dead_units", "4"] == 1
    assert reasons["pixel_similarity", "4"] == reasons["projection_similarity", "4"] == ["no unit fires"]
    assert not np.isnan(scores["pixel_similarity", None])
    assert ("patches", "4") not in artifacts


def test_without_a_rule_for_deconvnet_everything_else_is_said():
    model, x, _ = network("tanh", torch.float64, n=12)
    scores, artifacts, reasons = ask(model, x)
    assert np.isnan(scores["projection_similarity", None])
    assert "deconvnet has no rule for: tanh" in reasons["projection_similarity", None][0]
    assert not np.isnan(scores["label_entropy", None])
    assert {name for name, _ in artifacts} == {"patches", "activations", "filters"}


@pytest.mark.parametrize("name", ["modules", "functional", "in_place", "gelu", "gated", "vit", "signal"])
def test_every_kind_of_network(name):
    model, x, _ = network(name, n=12)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores, artifacts, _ = ask(model, x, units=2, patches=3)
    assert not np.isnan(scores["label_entropy", None])
    assert not np.isnan(scores["projection_similarity", None])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    for artifact in artifacts.values():
        assert artifact.values.isfinite().all()
        assert len(artifact.labels) in (0, len(artifact.values))


def test_chunks_change_nothing_and_what_is_shared_is_what_is_computed():
    model, x = convolutional(), normal(12, 2, 9, 8)
    other = convolutional()
    for seed, parameter in enumerate(other.parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=50 + seed)
    options = {"reference": model, "source": source_of(model, x), "units": 2, "patches": 3, "layers": ("2", "4")}
    first = ask(other, x, **{**options, "source": None})[0]
    ask(model, x, **options)
    again = ask(other, x, **options)[0]
    np.testing.assert_equal(first, again)
    chunked = ask(other, x, **options, chunk=5)[0]
    np.testing.assert_allclose(list(chunked.values()), list(first.values()), rtol=1e-10)


def test_fewer_samples_than_patches():
    with pytest.raises(NotApplicableError, match="9 patches are of as many samples, and there are 5: lower `patches`"):
        ask(convolutional(), normal(5, 2, 9, 8))


def test_large_patches_are_shown_small():
    assert tuple(side_by_side(normal(2, 9, 3, 100, 20), 1.0).shape) == (2, 3, 32, 9 * 21 - 1)
    assert tuple(side_by_side(normal(2, 9, 3, 4000), 1.0).shape) == (2, 1, 3, 9 * 1025 - 1)


def test_agreement_of_what_is_refused():
    assert agreement("no rule", normal(1, 2, 1, 3)).isnan()


@pytest.mark.slow
def test_digits_excite_units_of_the_trained_network_by_class_and_random_projections_resemble_its_own(tmp_path):
    study = {
        "name": "digits",
        "data": {"source": "mnist-5k", "samples": 400},
        "models": ["mnist-cnn"],
        "introspections": [{"introspection": "top_patches", "units": 4, "layers": ["fc1"]}],
        "metrics": [{"metric": "network_randomization", "stages": 1}],
    }
    results = harness.run(study, tmp_path / "run", device="cpu", views=False)
    assert results.failures.empty
    verdicts = results.table("global").fillna({"stage": ""}).set_index(["measure", "stage"])["verdict"]
    assert verdicts["label_entropy", ""] == verdicts["feature_similarity", ""] == "PASS"
    # Random networks show more than a fifth of the same: the projection is not the unit's own.
    assert verdicts["projection_similarity", ""] in ("FAIL", "INCONCLUSIVE")
    rows = results.records[results.records["metric"].eq("network_randomization")]
    whole = rows[rows["stage"].isna()]
    random = whole[whole["role"] == "floor_random"].groupby(["mode", "measure"])["value"].mean()
    trained = whole[whole["role"] == "test"].set_index("measure")["value"]
    assert trained["projection_similarity"] == pytest.approx(1)
    assert trained["label_entropy"] < 1.2 < random["full", "label_entropy"]
    assert 0.3 < random["full", "projection_similarity"] < 0.6
    # In the trained network itself another unit projects much the same from the same place.
    assert trained["unit_similarity"] > 0.6
