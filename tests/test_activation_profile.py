"""Activation profiles: closed forms, scikit-learn's silhouette, bursts in time, and the digits of a trained network."""

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import nn

import harness
from closed_forms import normal
from harness import Artifact, Samples, Score
from harness.methods.activation_profile import (
    activation_profile,
    distances,
    halves_of,
    most_salient,
    profiles,
    reliability,
    silhouette,
    windowed,
)
from harness.random import Draws
from harness.space import InputSpace
from harness.types import NotApplicableError

LABELS = torch.arange(60) % 3


def identity(size):
    """A network whose layers `0` and `1` return its input."""
    model = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(2))).double()
    for parameter in model.parameters():
        parameter.data = torch.eye(size, dtype=torch.float64)
    return model.eval()


def ask(model, x, labels, reference=None, seed=0, chunk=16, **options):
    """(scores by (measure, layer), artifacts by (name, layer), reasons)."""
    data = Samples(x, labels, [f"s{index}" for index in range(len(x))], ("a", "b", "c"))
    space = InputSpace.undeclared(x)
    with torch.no_grad():
        found = list(
            activation_profile(model, space, data, seed=seed, chunk=chunk, reference=reference or model, **options)
        )
    scores = [each for each in found if isinstance(each, Score)]
    artifacts = {(each.name, each.stage): each for each in found if isinstance(each, Artifact)}
    reasons = {(each.measure, each.stage): [r for r, holds in each.undefined.items() if holds] for each in scores}
    return {(each.measure, each.stage): each.values.item() for each in scores}, artifacts, reasons


def test_silhouettes_are_those_of_scikit_learn_for_every_labeling():
    units = normal(40, 5, seed=3)
    labelings = torch.stack([torch.arange(40) % 4, torch.arange(40) // 11, normal(40, seed=4).argsort() % 7])
    labelings[1, -1] = 5  # alone in its group, and there is no group 4
    expected = [silhouette_score(units, labels) for labels in labelings]
    assert silhouette(distances(units), labelings).tolist() == pytest.approx(expected, abs=1e-12)


def test_distances_of_samples_that_are_the_same_are_zero():
    assert torch.equal(distances(torch.full((5, 3), 0.1, dtype=torch.float64)), torch.zeros(5, 5, dtype=torch.float64))
    units = 1e3 + normal(9, 4)
    expected = torch.stack([(units - each).square().sum(1).sqrt() for each in units])
    torch.testing.assert_close(distances(units), expected, rtol=1e-7, atol=1e-6)


def test_profiles_are_means_of_groups_minus_the_mean():
    x = normal(60, 4)
    _, artifacts, _ = ask(identity(4), x, LABELS)
    expected = torch.stack([x[LABELS.eq(group)].mean(0) - x.mean(0) for group in range(3)])
    shown = artifacts["profiles", "1"]
    torch.testing.assert_close(shown.values, expected.float())
    assert (shown.labels, shown.columns) == (("a", "b", "c"), ("0", "1", "2", "3"))


def test_groups_that_are_points_cluster_perfectly():
    x = torch.eye(3, dtype=torch.float64)[LABELS]
    scores, _, _ = ask(identity(3), x, LABELS, permutations=19)
    for stage in (None, "0", "1"):
        assert scores["silhouette", stage] == pytest.approx(1)
        assert scores["group_p", stage] == pytest.approx(1 / 20)
        assert scores["reliability", stage] == pytest.approx(1)


def test_labels_that_say_nothing_do_not_cluster_and_their_p_is_uniform():
    model, tries = identity(4), 60
    found = [
        ask(model, normal(60, 4, seed=seed), LABELS, seed=seed, permutations=19, splits=2)[0] for seed in range(tries)
    ]
    p = np.array([scores["group_p", None] for scores in found])
    # Of uniform ones a fifth are at most 0.2: 12 of 60, with a standard deviation of 3.1.
    assert 4 <= (p <= 0.2).sum() <= 21
    assert 0.4 < p.mean() < 0.6
    assert max(scores["silhouette", None] for scores in found) < 0.1
    assert abs(np.mean([scores["reliability", None] for scores in found])) < 0.15


def test_a_network_that_says_the_same_of_everything():
    model = identity(4)
    model[0].weight.data.zero_()
    scores, _, reasons = ask(model, normal(60, 4), LABELS)
    assert (scores["silhouette", None], scores["group_p", None]) == (0, 1)
    assert np.isnan(scores["reliability", None])
    assert reasons["reliability", None] == ["profiles do not differ"]


def test_the_network_is_the_mean_of_its_layers():
    model = identity(4)
    model[1].weight.data = normal(4, 4, seed=5)
    x = normal(60, 4) + 2 * torch.eye(4, dtype=torch.float64)[LABELS]
    scores, _, _ = ask(model, x, LABELS)
    for measure in ("silhouette", "reliability"):
        both = [scores[measure, stage] for stage in "01"]
        assert both[0] != pytest.approx(both[1])
        assert scores[measure, None] == pytest.approx(np.mean(both))
    assert scores["silhouette", "1"] == pytest.approx(silhouette_score(x @ model[1].weight.data.T, LABELS))


def test_reliability_is_the_correlation_of_halves():
    units, halves = normal(60, 4), halves_of(LABELS, normal(60, 2, seed=1))
    expected = []
    for half in halves:
        parts = []
        for side in (0, 1):
            chosen, labels = units[half == side], LABELS[half == side]
            rows = [chosen[labels == group].mean(0) - chosen.mean(0) for group in range(3)]
            parts.append(torch.cat(rows).numpy())
        expected.append(np.corrcoef(*parts)[0, 1])
    assert reliability(units, LABELS, halves).item() == pytest.approx(np.mean(expected))
    # One that is alone in its group has no other half.
    alone = torch.cat([LABELS, torch.tensor([3])])
    with_one_more = torch.cat([units, normal(1, 4, seed=9)])
    halves = torch.cat([halves, torch.zeros(2, 1, dtype=torch.int64)], 1)
    assert reliability(with_one_more, alone, halves).item() == pytest.approx(np.mean(expected))


def test_halves_cut_every_group_and_every_split_is_another():
    groups = torch.tensor([0] * 7 + [1] * 2 + [2] * 12)[normal(21).argsort()]
    halves = halves_of(groups, Draws.of([str(index) for index in range(21)], 0).uniform(5))
    for half in halves:
        for group in range(3):
            inside = half[groups == group]
            assert abs(2 * int(inside.sum()) - len(inside)) <= 1
    assert len(halves.unique(dim=0)) == 5


def test_classes_that_are_alike_are_neighbours_in_the_order_of_the_clustering():
    means = torch.tensor([[0.0, 0.0], [5.0, 1.0], [0.1, 0.0]], dtype=torch.float64)
    units = means[LABELS] + 0.01 * normal(60, 2)
    _, artifacts, _ = ask(identity(2), units, LABELS)
    alike = artifacts["similarity", "0"]
    order = ["abc".index(name) for name in alike.labels]
    assert order in ([1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1])
    expected = np.corrcoef(profiles(units, LABELS).numpy())[np.ix_(order, order)]
    np.testing.assert_allclose(alike.values.numpy(), expected, atol=1e-6)
    assert alike.columns == alike.labels


class Channels(nn.Module):
    """On signals: a convolution of one frame that returns the input's channels as they are."""

    def __init__(self, read):
        super().__init__()
        self.same = nn.Conv1d(3, 3, 1, bias=False).double()
        self.same.weight.data = torch.eye(3, dtype=torch.float64)[:, :, None]
        self.head = nn.Linear(3, 2, bias=False).double()
        self.head.weight.data = torch.tensor(read, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.same(x).sum(2))


OF_BURSTS, OF_NOISE = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]


def bursts(n, frames=33):
    """Class 0 has a burst in channel 0, class 1 in channel 1, anywhere; channel 2 is noise near the middle."""
    draws = Draws.of([f"s{index}" for index in range(n)], 7)
    at, labels = draws.integers(frames, 1)[:, 0], torch.arange(n) % 2
    x = torch.zeros(n, 3, frames, dtype=torch.float64)
    x[torch.arange(n), labels, at] = 1
    x[:, 2, 8:25] = 0.1 * draws.uniform(17)
    return x, labels, at


def test_saliency_finds_the_bursts():
    x, _, at = bursts(50)
    assert torch.equal(most_salient(Channels(OF_BURSTS), x, 16), at)
    assert torch.equal(most_salient(Channels(OF_NOISE), x, 16), x[:, 2].argmax(1))


def test_aligned_profiles_need_the_right_saliency_and_a_random_one_changes_nothing():
    x, labels, _ = bursts(800)
    channels, middle = x[:, :2], torch.full((800,), 16)
    unaligned = profiles(windowed(channels, middle, 5, 33).flatten(1), labels).view(2, 2, 5)

    def difference(read):
        centres = most_salient(Channels(read), x, 100)
        return profiles(windowed(channels, centres, 5, 33).flatten(1), labels).view(2, 2, 5) - unaligned

    expected = torch.zeros(2, 2, 5, dtype=torch.float64)
    expected[..., 2] = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    # Of 400 bursts 12 are in each frame, give or take 3.4: 0.0086 of the mean of a class.
    noise = 4 * 0.0086
    assert (difference(OF_BURSTS) + unaligned - expected).abs().max() < noise
    assert difference(OF_NOISE).abs().max() < noise


def test_classes_cluster_once_their_bursts_are_aligned_by_the_trained_network():
    x, labels, _ = bursts(200)
    trained, other = Channels(OF_BURSTS), Channels(OF_NOISE)
    options = {"layers": ("same",), "window": 5, "permutations": 19}
    nap = ask(trained, x, labels, **options)[0]["silhouette", "same"]
    snap = ask(trained, x, labels, align="saliency", **options)[0]["silhouette", "same"]
    random = ask(trained, x, labels, reference=other, align="saliency", **options)[0]["silhouette", "same"]
    assert snap > 0.5
    assert abs(nap) < 0.2
    assert abs(random - nap) < 0.1
    # The window is that of the trained network, also where another network is asked.
    asked = ask(other, x, labels, reference=trained, align="saliency", **options)
    assert asked[0]["silhouette", "same"] == pytest.approx(snap)
    curves = asked[1]["profiles", "same"]
    assert (curves.kind, tuple(curves.values.shape)) == ("curves", (2, 5))
    assert curves.values.argmax(1).tolist() == [2, 2]


@pytest.mark.parametrize("length", [33, 16, 4])
def test_windows_are_cut_from_layers_of_any_length(length):
    output, centres = normal(6, 2, length), torch.tensor([0, 3, 9, 16, 30, 32])
    found = windowed(output, centres, 9, 33)
    width = max(1, round(9 * length / 33))
    assert found.shape == (6, 2, width)
    for sample in range(6):
        middle = int((centres[sample] + 0.5) * length / 33)
        for step in range(width):
            frame = middle - width // 2 + step
            expected = output[sample, :, frame] if 0 <= frame < length else torch.zeros(2).double()
            assert torch.equal(found[sample, :, step], expected)


def test_frames_of_images_are_their_last_axis_and_all_other_positions_are_averaged():
    x, labels = normal(12, 1, 5, 8), LABELS[:12] % 2
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(120, 2)).double()
    _, artifacts, _ = ask(model, x, labels, layers=("1",), window=3, permutations=1)
    output = model[:2](x).detach().mean(2)[..., 3:6]
    expected = torch.stack([output[labels == group].mean(0) - output.mean(0) for group in range(2)])
    torch.testing.assert_close(artifacts["profiles", "1"].values, expected.square().mean(1).sqrt().float())


def test_chunks_change_nothing_and_seeds_only_what_is_random():
    x = normal(60, 4) + torch.eye(4, dtype=torch.float64)[LABELS]
    first, again = ask(identity(4), x, LABELS)[0], ask(identity(4), x, LABELS, chunk=7)[0]
    assert first == again
    other = ask(identity(4), x, LABELS, seed=1)[0]
    assert other["silhouette", None] == first["silhouette", None]
    assert other["reliability", None] != first["reliability", None]


def test_silhouettes_of_at_most_so_many_samples():
    x = normal(60, 4) + torch.eye(4, dtype=torch.float64)[LABELS]
    kept = [round(float(index)) for index in np.linspace(0, 59, 20)]
    scores, _, _ = ask(identity(4), x, LABELS, compared=20)
    assert scores["silhouette", "0"] == pytest.approx(silhouette_score(x[kept], LABELS[kept]))


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({}, torch.arange(60), "at least two classes of at least two samples"),
        ({"window": 3}, LABELS, "a table has none"),
        ({"align": "saliency"}, LABELS, "give a `window`"),
        ({"layers": ("2",)}, LABELS, "the model uses no layer '2'"),
    ],
)
def test_refusals(options, labels, message):
    with pytest.raises(NotApplicableError, match=message):
        ask(identity(4), normal(60, 4), labels, **options)


@pytest.mark.slow
def test_digits_cluster_in_the_trained_network_more_than_in_random_ones(tmp_path):
    study = {
        "name": "digits",
        "data": {"source": "mnist-5k", "samples": 400},
        "models": ["mnist-cnn"],
        "introspections": ["activation_profile"],
        "metrics": [{"metric": "network_randomization", "stages": 1}],
    }
    results = harness.run(study, tmp_path / "run", device="cpu", views=False)
    assert results.failures.empty
    verdicts = results.table("global").fillna({"stage": ""}).set_index(["measure", "stage"])["verdict"]
    assert verdicts["silhouette", ""] == verdicts["silhouette", "fc1"] == "PASS"
    rows = results.records[results.records["metric"].eq("network_randomization") & results.records["stage"].isna()]
    trained = rows[rows["role"] == "test"].set_index("measure")["value"]
    random = rows[rows["role"] == "floor_random"].pivot(index=["mode", "draw"], columns="measure", values="value")
    assert len(random) == 20
    assert trained["silhouette"] > 0.2
    assert random["silhouette"].max() < 0.05
    # Against permuted labels p is small in every network, also in one that has learnt nothing: digits look different.
    assert trained["group_p"] == pytest.approx(0.01)
    assert random["group_p"].median() == pytest.approx(0.01)
