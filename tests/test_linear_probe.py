"""Linear probes: scikit-learn by hand, features that separate and labels that say nothing, and a trained network."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from torch import nn

import harness
from harness import Artifact, Samples, Score
from harness.methods.linear_probe import linear_probe
from harness.methods.probes import control_labels, on_a_grid, probe, quarters_of
from harness.space import InputSpace
from harness.types import NotApplicableError

PATH = [1.0, 10.0, 100.0]
MEANS = np.random.default_rng(7).normal(size=(4, 6))


def clouds(n, apart, classes=4, seed=0):
    """(features [n, 6], labels): Gaussians of variance 1 around means that are so many times as far apart."""
    chance = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return chance.normal(size=(n, 6)) + apart * MEANS[y], y


def ask(model, x, labels, seed=0, chunk=64, **options):
    """({(measure, layer): value}, {name of the artifact: artifact})."""
    data = Samples(x, labels, [f"s{index}" for index in range(len(x))])
    with torch.no_grad():
        found = list(linear_probe(model, InputSpace.undeclared(x), data, seed=seed, chunk=chunk, **options))
    scores = {(each.measure, each.stage): each.values.item() for each in found if isinstance(each, Score)}
    return scores, {each.name: each for each in found if isinstance(each, Artifact)}


def test_quarters_hold_a_quarter_of_each_class_and_depend_on_the_seed():
    y = np.repeat([0, 1, 2], [80, 40, 8])
    quarters = quarters_of(y, 3)
    assert sorted(np.concatenate(quarters)) == list(range(128))
    assert [np.bincount(y[quarter]).tolist() for quarter in quarters] == [[20, 10, 2]] * 4
    assert all(map(np.array_equal, quarters, quarters_of(y, 3)))
    assert not any(map(np.array_equal, quarters, quarters_of(y, 4)))


def test_a_probe_is_the_best_of_a_grid_search_in_each_rotation():
    features, y = clouds(400, 0.7)
    # Of very different scales, which standardization undoes.
    features = features * np.array([1e-3, 1, 10, 1e3, 1, 1]) + 5
    path = [0.01, 0.1, 1.0, 10.0]
    quarters = quarters_of(y, 0)
    found = probe(features, y, quarters, path)
    means = np.zeros(4)
    for rotation, (first, second, validation, test) in enumerate(
        [(0, 1, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1), (2, 3, 1, 0)]
    ):
        train = np.concatenate([quarters[first], quarters[second]])
        z = (features - features[train].mean(0)) / features[train].std(0) / 6**0.5
        both = np.concatenate([train, quarters[validation]])
        split = PredefinedSplit([-1] * len(train) + [0] * len(quarters[validation]))
        regression = LogisticRegression(class_weight="balanced", max_iter=1000)
        search = GridSearchCV(regression, {"C": path}, cv=split, refit=False).fit(z[both], y[both])
        means += search.cv_results_["mean_test_score"] / 4
        # Another start of the solver moves one sample of a hundred at most.
        assert found.validation[rotation] == pytest.approx(search.best_score_, abs=0.011)
        predicted = regression.set_params(**search.best_params_).fit(z[train], y[train]).predict(z[quarters[test]])
        here = y[quarters[test]]
        assert found.accuracy[rotation] == pytest.approx((predicted == here).mean(), abs=0.021)
        assert found.balanced_accuracy[rotation] == pytest.approx(balanced_accuracy_score(here, predicted), abs=0.021)
    assert found.path == pytest.approx(means, abs=0.006)
    assert len({*found.path}) > 1


@pytest.mark.parametrize(("apart", "bounds"), [(6.0, (1.0, 1.0)), (0.0, (0.19, 0.31))])
def test_a_probe_is_perfect_where_classes_are_separate_and_at_chance_where_features_say_nothing(apart, bounds):
    features, y = clouds(800, apart)
    accuracy = probe(features, y, quarters_of(y, 0), PATH).accuracy.mean()
    # Chance is 1/4 of 800: 4 standard errors are 0.06.
    assert bounds[0] <= accuracy <= bounds[1]


def test_a_probe_of_gaussians_comes_close_to_the_bayes_rule_and_not_above():
    features, y = clouds(8000, 0.7)
    bayes = (((features[:, None] - 0.7 * MEANS) ** 2).sum(2).argmin(1) == y).mean()
    assert 0.5 < bayes < 0.95
    assert probe(features, y, quarters_of(y, 0), PATH).accuracy.mean() == pytest.approx(bayes, abs=0.01)


def test_the_same_penalty_means_the_same_for_a_layer_that_says_everything_twice():
    features, y = clouds(160, 0.7)
    features = np.hstack([features, np.random.default_rng(1).normal(size=(160, 60))])
    quarters = quarters_of(y, 0)
    once, twice = (probe(each, y, quarters, [0.1, 1000.0]) for each in (features, np.hstack([features, features])))
    assert once.path == pytest.approx(twice.path, abs=0.007)
    # It does mean something: 60 features of noise are overfitted without one.
    assert once.path[0] > once.path[1] + 0.02


def test_control_labels_are_a_function_of_the_type_and_of_nothing_else():
    # Ten far clouds are ten types; labels follow the clouds and are dealt out evenly.
    chance = np.random.default_rng(0)
    cloud = np.arange(200) % 10
    raw = 50 * np.random.default_rng(1).normal(size=(10, 3))[cloud] + 0.01 * chance.normal(size=(200, 3))
    y = np.arange(200) % 5
    labels = control_labels(raw, y, 10, 0)
    of_cloud = [set(labels[cloud == each]) for each in range(10)]
    assert all(len(each) == 1 for each in of_cloud)
    assert np.bincount(labels).tolist() == [40] * 5
    # True labels say nothing but which there are.
    assert np.array_equal(labels, control_labels(raw, y[::-1], 10, 0))
    others = [control_labels(raw, y, 10, seed) for seed in range(1, 6)]
    assert all(not np.array_equal(labels, each) for each in others)
    # At most one type for 20 samples.
    assert len({*zip(control_labels(raw[:60], y[:60], 10, 0), cloud[:60], strict=True)}) == 10
    assert len(np.unique(control_labels(raw[:60], y[:60], 10, 0))) <= 3


def test_what_can_only_be_memorized_is_memorized_by_inputs_and_forgotten_by_a_layer_that_keeps_classes_alone():
    """Types within classes: a layer that holds the class and no type reads all of the task, little of the control."""
    chance = np.random.default_rng(0)
    cloud = np.arange(600) % 12
    y = torch.from_numpy(cloud % 3)
    centres = 30 * np.eye(12)
    x = torch.from_numpy(centres[cloud] + chance.normal(size=(600, 12)))
    keeps, drops = (nn.Linear(12, size, bias=False).double() for size in (12, 3))
    keeps.weight.data = torch.eye(12, dtype=torch.float64)
    drops.weight.data = torch.stack([(torch.arange(12) % 3 == each).double() for each in range(3)])
    scores, artifacts = ask(nn.Sequential(keeps, drops).eval(), x, y, types=12)
    assert scores["raw_input_accuracy", None] == scores["accuracy", "0"] == scores["accuracy", "1"] == 1
    assert scores["control_accuracy", "0"] == 1
    # A class holds four types: where they are dealt out to three labels, the commonest is that of at most three.
    assert scores["control_accuracy", "1"] <= 0.75 + 0.01
    assert scores["selectivity", "0"] == 0
    assert scores["selectivity", "1"] == scores["selectivity", None] >= 0.24
    assert scores["gain", None] == 0
    assert scores["chance", None] == pytest.approx(1 / 3, abs=0.01)
    accuracy, path = artifacts["accuracy by depth"], artifacts["regularization path"]
    assert accuracy.labels == ("this network", "control task", "raw input", "chance")
    assert accuracy.columns == ("0", "1")
    assert accuracy.values[1].tolist() == pytest.approx([1, scores["control_accuracy", "1"]])
    assert (path.labels, path.columns) == (("raw input", "0", "1"), (1.0, 10.0, 100.0))
    assert path.values[0].tolist() == [1, 1, 1]


class Square(nn.Module):
    def forward(self, x):
        return x.square()


def test_a_layer_that_computes_what_no_linear_classifier_reads_from_the_input_gains():
    """Inside or outside of a sphere: at chance from the input, and linear in squares."""
    x = torch.randn(600, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = x.square().sum(1)
    y = (radius > radius.median()).long()
    keep, head = nn.Linear(5, 5, bias=False).double(), nn.Linear(5, 2).double()
    keep.weight.data = torch.eye(5, dtype=torch.float64)
    scores, _ = ask(nn.Sequential(keep, Square(), head).eval(), x, y, layers=["0", "1"])
    assert scores["gain", "0"] == pytest.approx(0, abs=1e-12)
    assert scores["raw_input_accuracy", None] < 0.65
    assert scores["accuracy", "1"] > 0.95
    assert scores["gain", None] == scores["gain", "1"] > 0.3


def test_grids_are_the_finest_that_fit():
    image = torch.randn(3, 2, 8, 6, dtype=torch.float64)
    assert torch.equal(on_a_grid(image, 96), image.flatten(1))
    # The longest axis first: 8 x 6 becomes 6 x 6, then 5 x 5 and 4 x 4, which are 32 numbers.
    assert on_a_grid(image, 72).shape == (3, 72)
    small = on_a_grid(image, 49)
    assert small.shape == (3, 32)
    torch.testing.assert_close(small.view(3, 2, 4, 4)[:, :, 0, 0], image[:, :, :2, :2].mean((2, 3)))
    torch.testing.assert_close(on_a_grid(image, 1), image.mean((2, 3)))
    assert on_a_grid(image[:, :, 0], 6).shape == (3, 6)
    assert torch.equal(on_a_grid(image[:, :, 0, 0], 1), image[:, :, 0, 0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(60, dtype=torch.long), "60 samples of 1 classes"),
        (torch.arange(60) // 2, "0 samples of 0 classes with at least 4 of each"),
        (torch.cat([torch.arange(30) % 2, torch.arange(30) + 2]), "30 samples of 2 classes"),
    ],
)
def test_too_few_samples_or_classes_are_a_reason(labels, words):
    model = nn.Sequential(nn.Linear(6, 3)).double().eval()
    with pytest.raises(NotApplicableError, match=words):
        ask(model, torch.randn(60, 6, dtype=torch.float64), labels)


def test_inputs_of_one_type_have_no_control_task():
    x = torch.zeros(40, 6, dtype=torch.float64)
    x[0] = 1
    with pytest.raises(NotApplicableError, match="of one type"):
        ask(nn.Sequential(nn.Linear(6, 3)).double().eval(), x, torch.arange(40) % 2)


def test_a_class_with_too_few_samples_does_not_count():
    x, y = map(torch.from_numpy, clouds(200, 6.0))
    model = nn.Sequential(nn.Linear(6, 4)).double().eval()
    rare = torch.cat([y, torch.tensor([9, 9, 9])])
    scores, _ = ask(model, torch.cat([x, x[:3]]), rare)
    assert scores == ask(model, x, y)[0]


@pytest.mark.slow
def test_a_trained_network_beats_its_input_and_random_features_which_are_far_above_chance(tmp_path):
    study = {
        "name": "probes",
        "data": {"source": "mnist-5k", "samples": 1000},
        "models": ["mnist-cnn"],
        "introspections": [{"introspection": "linear_probe", "features": 128, "strengths": [1.0, 10.0]}],
        "metrics": [{"metric": "network_randomization", "stages": 1}],
    }
    results = harness.run(study, tmp_path / "run", device="cpu", views=False)
    assert results.failures.empty
    table = results.table("global")
    whole = table[table["stage"].isna()].set_index("measure")
    assert whole["verdict"].to_dict() == dict.fromkeys(["gain", "accuracy", "selectivity"], "PASS")
    assert whole.loc["gain", "trained"] > 0.05
    for kind in ("reinitialized", "shuffled"):
        assert whole.loc["accuracy", kind] > 0.8
        assert whole.loc["gain", kind] < whole.loc["gain", "trained"] - 0.02
