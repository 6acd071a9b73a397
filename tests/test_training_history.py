"""Training histories: scikit-learn's measures, errors by hand, and a training that can be told over again."""

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report, confusion_matrix
from torch import nn

import harness
from harness import Artifact, Samples, Score
from harness.digests import digest
from harness.methods.training_history import training_history
from harness.models.course import Course, unpacked
from harness.models.loaded import LoadedModel
from harness.space import InputSpace
from harness.study import load_study
from harness.subjects import subject_of_entry

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
NAMES = ("cat", "dog", "eel")
X = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2).clone()


class Says(nn.Module):
    """Answers by a table of classes and of their probabilities, by the number of the sample."""

    def __init__(self, classes, probability=0.9, outputs=4):
        super().__init__()
        classes, probability = torch.as_tensor(classes), torch.as_tensor(probability).expand(len(classes))
        others = ((1 - probability) / (outputs - 1)).log()[:, None].expand(-1, outputs)
        self.register_buffer("logits", others.scatter(1, classes[:, None], probability.log()[:, None]))

    def forward(self, x):
        return self.logits[x[:, 0, 0, 0].long()]


class Told:
    """A source whose history is given."""

    def __init__(self, *networks):
        self.networks = networks

    def history(self):
        return [(index / (len(self.networks) - 1), network) for index, network in enumerate(self.networks)]


START = Says([0] * 10)


def ask(model, history=(START,), reference=None, x=X, labels=LABELS, classes=NAMES, **options):
    """({(measure, class, step): score}, {name: artifact})."""
    data = Samples(x, labels, [f"s{index}" for index in range(len(x))], classes)
    source, space = LoadedModel(model, None, 0, x[:1], lambda: x), InputSpace.undeclared(x)
    source.history = Told(*history, model).history
    with torch.no_grad():
        found = list(
            training_history(model, space, data, source=source, chunk=3, reference=reference or model, **options)
        )
    scores = {(each.measure, each.stage, each.step): each for each in found if isinstance(each, Score)}
    return scores, {each.name: each for each in found if isinstance(each, Artifact)}


MIDDLE = Says([0, 0, 0, 0, 1, 1, 0, 2, 0, 0])
END = Says([0, 1, 0, 0, 1, 0, 0, 2, 2, 0], [0.9, 0.8, 0.9, 0.9, 0.9, 0.95, 0.7, 0.9, 0.9, 0.85])


def test_measures_are_those_of_scikit_learn_at_every_moment():
    scores, artifacts = ask(END, [START, MIDDLE])
    for step, network in ((None, END), (0.0, START), (0.5, MIDDLE), (1.0, END)):
        predicted = network(X).argmax(1)
        report = classification_report(LABELS, predicted, target_names=NAMES, output_dict=True, zero_division=np.nan)
        assert scores["accuracy", None, step].values.item() == pytest.approx(report["accuracy"])
        assert scores["macro_f1", None, step].values.item() == pytest.approx(report["macro avg"]["f1-score"])
        for name in NAMES:
            for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                value = scores[ours, name, step].values.item()
                assert value == pytest.approx(report[name][theirs], nan_ok=True), (name, ours, step)
    course = artifacts["F1 of each class during training"]
    assert (course.labels, course.columns) == (NAMES, (0.0, 0.5, 1.0))
    assert course.values[1].tolist() == pytest.approx(
        [scores["f1", "dog", step].values.item() for step in course.columns]
    )


def test_a_class_that_is_never_predicted_has_no_precision_and_an_f1_of_zero():
    scores, _ = ask(START)
    assert [*scores["precision", "dog", None].undefined] == ["the class is never predicted"]
    assert scores["precision", "dog", None].values.isnan()
    assert scores["f1", "dog", None].values == scores["recall", "dog", None].values == 0
    assert scores["macro_f1", None, None].values.item() == pytest.approx(2 * 4 / (8 + 6) / 3)
    perfect, _ = ask(Says(LABELS))
    assert perfect["macro_f1", None, None].values == perfect["accuracy", None, None].values == 1


def test_confusions_are_those_of_scikit_learn_and_what_is_no_class_of_the_samples_is_put_together():
    _, artifacts = ask(END, [START, MIDDLE])
    for name, network in (("confusions", END), ("confusions, start", START), ("confusions, middle", MIDDLE)):
        matrix = artifacts[name]
        assert matrix.values.tolist() == confusion_matrix(LABELS, network(X).argmax(1)).tolist()
        assert matrix.labels == matrix.columns == NAMES
    assert "50% of the training" in artifacts["confusions, middle"].caption
    _, artifacts = ask(Says([0, 3, 0, 0, 1, 1, 3, 2, 2, 2]))
    assert artifacts["confusions"].columns == (*NAMES, "others")
    assert artifacts["confusions"].values.tolist() == [[3, 0, 0, 1], [0, 2, 0, 1], [0, 0, 3, 0]]


def test_errors_are_sorted_by_what_became_of_them_and_the_most_certain_comes_first():
    scores, artifacts = ask(END, [START, MIDDLE])
    # Wrong at the end are 1, 5, 6 and 9; right in the middle were 1 and 5. The start was right by luck.
    assert scores["forgotten", None, None].values.item() == pytest.approx(0.2)
    assert scores["never_learnt", None, None].values.item() == pytest.approx(0.2)
    shown = {
        name: artifacts[name].values[:, 0, 0, 0].long().tolist()
        for name in artifacts
        if artifacts[name].kind == "pictures"
    }
    assert shown == {"most confident errors": [5, 9, 1, 6], "forgotten": [5, 1], "never learnt": [9, 6]}
    assert artifacts["forgotten"].labels == ("true dog, said cat (0.95)", "true cat, said dog (0.80)")
    assert artifacts["forgotten"].caption.startswith("2 of 10 samples are right at some moment")
    _, few = ask(END, [START, MIDDLE], pictures=1)
    assert few["most confident errors"].values[:, 0, 0, 0].tolist() == [5]
    assert not [each for each in ask(END, [START, MIDDLE], pictures=0)[1].values() if each.kind == "pictures"]
    # Without an error there is nothing to show.
    assert not [each for each in ask(Says(LABELS), [START])[1].values() if each.kind == "pictures"]


def test_another_network_is_asked_itself_and_has_no_history():
    scores, artifacts = ask(MIDDLE, [START], reference=END)
    assert all(step is None for *_, step in scores)
    assert [*artifacts] == ["confusions"]
    assert scores["accuracy", None, None].values.item() == pytest.approx(0.7)


def trained(steps, seen=None):
    """A training of a linear network in so many steps, watched: (the network, the states on the way)."""
    torch.manual_seed(0)
    network, course = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), Course()
    other = nn.Linear(3, 2)
    x = torch.randn(8, 3)
    with course.watching(network):
        optimizer, idle = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (network, other))
        for _ in range(steps):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
            idle.step()
            if seen is not None:
                seen.append(digest(network.state_dict()))
    optimizer.step()
    return network, unpacked(course.packed(network))


@pytest.mark.parametrize(
    ("steps", "interval"), [(1, 1), (5, 1), (8, 1), (9, 2), (17, 2), (18, 4), (100, 16), (300, 64)]
)
def test_states_on_the_way_are_evenly_spaced_and_few(steps, interval):
    seen = []
    _, states = trained(steps, seen)
    fractions = [at for at, _ in states]
    inside = list(range(0, steps, interval))
    assert fractions == pytest.approx([*(step / steps for step in inside), 1.0])
    assert len(states) <= 10
    for (_, state), step in zip(states[1:-1], inside[1:], strict=True):
        assert digest(state) == seen[step - 1]
    # Statistics of batch norms, too.
    assert "1.running_mean" in states[0][1]


def test_a_recipe_without_an_optimizer_has_a_start_and_an_end():
    network, course = nn.Linear(3, 2), Course()
    with course.watching(network):
        network.weight.data += 1
    states = unpacked(course.packed(network))
    assert [at for at, _ in states] == [0.0, 1.0]
    assert torch.equal(states[0][1]["weight"] + 1, states[1][1]["weight"])


def subject(data="digits", model="mlp", samples=60):
    study = {
        "name": "t",
        "data": {"source": data, "samples": samples},
        "models": [model],
        "introspections": ["training_history"],
    }
    resolved = load_study(study)
    return subject_of_entry(
        resolved.models[0], resolved, device=torch.device("cpu"), samples=None, progress=lambda *_: None
    )


def test_a_network_that_was_trained_by_its_recipe_ends_as_it_is_and_learns_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTRIBUTION_HARNESS_CACHE", str(tmp_path))
    asked = subject()
    source, x, labels = asked.source, asked.x, asked.labels
    before = digest(source.model.state_dict())
    history = source.history()
    assert digest(source.model.state_dict()) == before == digest(history[-1][1].state_dict())
    fractions = [at for at, _ in history]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len(set(np.diff(fractions[:-1]).round(9))) == 1
    accuracies = [(network(x).argmax(1) == labels).double().mean() for _, network in history]
    assert accuracies[0] < 0.4
    assert accuracies[-1] > 0.9
    assert not any(network.training for _, network in history)
    # A second time it comes from the disk.
    (kept,) = (tmp_path / "models").glob("*history*")
    written = kept.stat().st_mtime_ns
    again = source.history()
    assert kept.stat().st_mtime_ns == written
    assert [digest(network.state_dict()) for _, network in again] == [digest(n.state_dict()) for _, n in history]


def test_without_a_recipe_there_is_no_history():
    source = LoadedModel(END, None, 0, X[:1], lambda: X)
    with pytest.raises(LookupError, match="no training recipe"):
        source.history()


@pytest.mark.slow
def test_in_a_study_the_trained_network_passes_and_its_history_is_kept(tmp_path):
    study = {
        "name": "history",
        "data": {"source": "digits", "samples": 100},
        "models": ["mlp"],
        "introspections": ["training_history"],
        "metrics": ["introspection", {"metric": "network_randomization", "stages": 1}],
    }
    results = harness.run(study, tmp_path / "run", device="cpu", views=False)
    assert results.failures.empty
    whole = results.table("global").set_index("measure").loc["macro_f1"]
    assert whole["verdict"] == "PASS"
    assert whole["trained"] > 0.9
    assert whole["reinitialized"] < 0.3
    points = results.records[
        lambda r: (r["measure"] == "macro_f1") & r["step"].notna() & r["metric"].eq("introspection")
    ]
    assert points.sort_values("step")["value"].iloc[-1] == pytest.approx(whole["trained"])
    assert len(points) > 4
