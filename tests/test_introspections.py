"""What every introspection promises, and how a study asks it of trained networks and of ones that learnt nothing."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

import harness
from harness import INTROSPECTIONS, Artifact, InputError, Results, Samples, Score
from harness.artifacts import artifacts_of
from harness.case import Case, Explainer
from harness.digests import digest
from harness.forecast import forecast
from harness.introspecting import introspect
from harness.models.loaded import LoadedModel
from harness.preparation import prepare
from harness.progress import silent
from harness.registry import introspection
from harness.space import InputSpace
from harness.store import Folder
from harness.study import StudyError, load_study

NAMES = sorted(name for name, entry in INTROSPECTIONS.items() if entry.function.__module__.startswith("harness."))
STUDY = {
    "name": "small",
    "data": {"source": "digits", "samples": 60},
    "models": ["mlp"],
    "introspections": ["weight_sum"],
    "metrics": [{"metric": "network_randomization", "reinitialized": 3, "shuffled": 2, "stages": 2}],
}


@pytest.fixture
def weight_sum():
    """An introspection in closed form: the sum of all weights, and how many samples the network gets right."""

    @introspection(compares={"weight_sum": "higher", "accuracy": "higher"}, needs=("labels",))
    def weight_sum(model, space, data: Samples, *, factor: float = 1.0):
        """The sum of all weights."""
        named = [(name, p) for name, p in model.named_parameters() if p.ndim > 1]
        yield Score("weight_sum", factor * torch.stack([p.double().sum() for _, p in named]).sum())
        for index, (name, parameter) in enumerate(named):
            yield Score("weight_sum", factor * parameter.double().sum(), stage=name, stage_index=index)
        yield Score("accuracy", (model(data.x).argmax(1) == data.labels).double().mean())
        yield Artifact("weights", "matrix", named[0][1][:4, :5], labels=tuple("abcd"), axes=("weight", "input"))

    return weight_sum


def sums(model):
    """The same, written out."""
    return sum(p.detach().double().sum().item() for p in model.parameters() if p.ndim > 1)


def groups_of(study, path, samples=None):
    return prepare(study, path, device="cpu", samples=samples, chunk=None, progress=silent)


def run(study, path, **options):
    return harness.run(study, path, device="cpu", views=False, **options)


def test_rows_are_those_of_the_trained_network_and_of_networks_that_have_learnt_nothing(weight_sum, tmp_path):
    results = run(STUDY, tmp_path / "run")
    assert results.failures.empty
    source = groups_of(STUDY, tmp_path / "other").groups[0].subject.source
    rows = results.records[lambda r: (r["measure"] == "weight_sum") & r["metric"].eq("network_randomization")]
    whole = rows[(rows["mode"] == "top_down") | rows["stage"].isna()]
    assert whole[whole["mode"].isna()]["value"].tolist() == pytest.approx([sums(source.model)])
    twins = whole[whole["mode"] == "full"].sort_values("draw")
    assert twins["value"].tolist() == pytest.approx([sums(source.twin(draw)) for draw in range(3)], abs=1e-4)
    assert set(twins["role"]) == {"floor_random"}
    # The same values in another order have the same sum.
    shuffled = whole[whole["mode"] == "shuffled"]
    assert shuffled["value"].tolist() == pytest.approx([sums(source.model)] * 2, abs=1e-3)
    stages = whole[whole["mode"] == "top_down"].sort_values("stage_index")
    last = source.blocks[-1]
    head = next(name for name in last.parameters if name.endswith("weight"))
    moved = source.twin(0).get_parameter(head).sum() - source.model.get_parameter(head).sum()
    assert stages["value"].iloc[0] == pytest.approx(sums(source.model) + moved.item(), abs=1e-4)
    assert stages["value"].iloc[-1] == pytest.approx(sums(source.twin(0)), abs=1e-4)
    # About the network and not about samples.
    assert rows["sample"].isna().all()
    by_layer = rows[rows["mode"].isna() & rows["stage"].notna()]
    assert list(by_layer["stage"]) == [name for name, p in source.model.named_parameters() if p.ndim > 1]


def test_what_is_learnt_passes_and_what_shuffled_weights_show_too_fails(weight_sum, tmp_path):
    study = {**STUDY, "metrics": [{"metric": "network_randomization", "stages": 1}]}
    table = run(study, tmp_path / "run").table("global")
    whole = table[table["stage"].isna()].set_index("measure")
    assert whole.loc["accuracy", "verdict"] == "PASS"
    assert whole.loc["accuracy", "reinitialized_effect"] > 5
    assert whole.loc["accuracy", "reinitialized_p"] == pytest.approx(1 / 11)
    assert whole.loc["weight_sum", "verdict"] == "FAIL"
    assert "shuffled" in whole.loc["weight_sum", "reason"]


def test_artifacts_stand_beside_their_cells_for_each_kind_of_network(weight_sum, tmp_path):
    results = run(STUDY, tmp_path / "run")
    check, one = results.planned
    assert (check.metric, one.metric) == ("network_randomization", "introspection")
    (kept,) = artifacts_of(one, results.store)
    model = groups_of(STUDY, tmp_path / "other").groups[0].subject.source.model
    first = next(p for p in model.parameters() if p.ndim > 1)
    assert torch.equal(kept.values, first[:4, :5])
    assert (kept.labels, kept.axes, kept.network) == (tuple("abcd"), ("weight", "input"), "trained")
    three = artifacts_of(check, results.store)
    assert [each.network for each in three] == ["trained", "random", "shuffled"]
    assert len({digest(each.values) for each in three}) == 3


def test_nothing_finished_is_asked_again_and_options_labels_and_data_make_other_cells(weight_sum, tmp_path):
    first = run(STUDY, tmp_path / "run")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    run(STUDY, tmp_path / "run")
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    keys = {cell.key for cell in first.planned}
    for other in (
        {**STUDY, "introspections": [{"introspection": "weight_sum", "factor": 2.0}]},
        {**STUDY, "data": {"source": "digits", "samples": 61}},
        {**STUDY, "seed": 1},
    ):
        groups = groups_of(other, tmp_path / "other").groups
        assert keys.isdisjoint(task.cell.key for group in groups for task in group.tasks)


def test_an_introspection_sees_all_samples_at_once_and_methods_see_blocks(weight_sum, tmp_path):
    study = {
        **STUDY,
        "data": {"source": "digits", "samples": 300},
        "methods": ["gradient"],
        "metrics": ["completeness"],
        "controls": False,
    }
    cells = [task.cell for group in groups_of(study, tmp_path).groups for task in group.tasks]
    named = [(cell.method, cell.metric, cell.block) for cell in cells]
    assert named == [
        ("gradient", "completeness", 0),
        ("gradient", "completeness", 1),
        ("weight_sum", "introspection", 0),
    ]
    results = run(study, tmp_path / "run", save_maps=True)
    assert results.failures.empty
    assert not results.has_maps("weight_sum", "mlp")
    glance = results.table("glance").set_index("method")
    assert glance.loc["weight_sum", "introspection"] == "not ranked"
    assert pd.isna(glance.loc["weight_sum", "completeness"])


def test_a_study_says_what_networks_and_maps_cost(weight_sum, tmp_path):
    study = {**STUDY, "methods": ["gradient"], "metrics": ["sparseness"], "controls": False}
    found = forecast(groups_of(study, tmp_path), silent)
    cost = found.by("method").set_index("method")
    assert cost["unknown"].tolist() == [0, 0]
    assert cost.loc["weight_sum", "seconds"] > 0
    assert cost.loc["gradient", "forward"] > 0
    assert not any("not in these numbers" in line for line in found.lines)


def test_the_built_in_study_asks_all_that_there_are(tmp_path):
    resolved = load_study("introspection")
    assert sorted(chosen.entry.name for chosen in resolved.introspections) == NAMES
    assert [metric.label for metric in resolved.metrics] == ["network_randomization", "introspection"]
    options = resolved.metrics[0].options
    assert min(options["reinitialized"], options["shuffled"]) >= 10


def test_a_trace_is_found_and_a_failure_stays_alone(tmp_path):
    @introspection(compares={"zero": "higher"})
    def leaves_a_trace(model, space, data):
        """Writes into the network."""
        next(model.parameters()).zero_()
        yield Score("zero", torch.zeros(()))

    @introspection(compares={"zero": "higher"})
    def per_sample(model, space, data):
        """Says something else than it may."""
        yield torch.zeros(())

    study = {**STUDY, "introspections": ["leaves_a_trace", "per_sample"], "controls": False, "metrics": []}
    results = run(study, tmp_path / "run")
    errors = results.failures.set_index("method")["error"]
    assert "left a trace in the model" in errors["leaves_a_trace"]
    assert "expected scores and artifacts" in errors["per_sample"]


def test_what_lacks_labels_is_not_applicable(weight_sum):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    results = harness.evaluate(model, torch.rand(8, 1, 4, 4), introspections=["weight_sum"])
    assert set(results.cells["status"]) == {"not_applicable"}
    assert set(results.cells["reason"]) == {"weight_sum: the samples have no labels"}


def test_evaluate_takes_introspections(weight_sum):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x, y = torch.rand(8, 1, 4, 4), [0, 1, 2, 0, 1, 2, 0, 1]
    results = harness.evaluate(model, x, y, introspections=[{"introspection": "weight_sum", "factor": 3.0}])
    found = results.records[lambda r: r["metric"].eq("introspection") & r["measure"].eq("weight_sum")]
    assert found["value"].iloc[0] == pytest.approx(3 * sums(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"introspections": ["weight_som"]},
            "unknown introspection 'weight_som'; did you mean weight_sum",
        ),
        ({"introspections": [{"introspection": "weight_sum", "factr": 1.0}]}, "no option 'factr'; did you mean factor"),
        ({"introspections": []}, "asks introspections: 'introspections' is missing"),
        ({"introspections": [], "metrics": []}, "the key 'methods' is missing"),
        ({"methods": ["gradient"]}, "the key 'metrics' is missing"),
        ({"metrics": ["completeness"]}, "the key 'methods' is missing"),
        ({"introspections": ["weight_sum", "weight_sum"]}, "two entries are called 'weight_sum'"),
        (
            {
                "introspections": [{"introspection": "weight_sum", "name": "gradient"}],
                "methods": ["gradient"],
                "metrics": ["completeness"],
            },
            "two entries are called 'gradient'",
        ),
        ({"metrics": [{"metric": "network_randomization", "shuffled": 1}]}, "greater than or equal to 2"),
    ],
)
def test_what_a_study_says_wrong_is_an_error_with_its_place(weight_sum, change, message):
    with pytest.raises(StudyError, match=message):
        load_study({**STUDY, **change})


def test_an_introspection_that_compares_nothing_is_no_introspection():
    with pytest.raises(TypeError, match="compares at least one measure"):
        introspection(compares={})(lambda model, space, data: iter(()))


def test_two_artifacts_of_one_name_are_a_failure(tmp_path):
    @introspection(compares={"zero": "higher"})
    def twice(model, space, data):
        """Yields one artifact twice."""
        yield Score("zero", torch.zeros(()))
        for _ in range(2):
            yield Artifact("same", "matrix", torch.zeros(2, 2))

    study = {**STUDY, "introspections": ["twice"], "controls": False, "metrics": []}
    assert "'same' of layer None was yielded twice" in run(study, tmp_path).failures["error"].iloc[0]


def test_a_run_can_be_planned_compared_and_read_again(weight_sum, tmp_path):
    study = tmp_path / "study.json"
    study.write_text(json.dumps({**STUDY, "plugins": []}))
    results = run(STUDY, tmp_path / "run")
    again = Results.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.table("global"), results.table("global"))
    comparison = harness.compare(tmp_path / "run", tmp_path / "run")
    assert set(comparison.rows["outcome"]) == {"same"}
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["study"]["introspections"]


def case_for(name, dtype=torch.float64, chunk=64, **options):
    """A small trained-like network and digits with labels, as the engine hands them to an introspection."""
    entry = INTROSPECTIONS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10)
        )
    model = model.to(dtype).eval()
    subject = groups_of({**STUDY, "introspections": [name]}, "nowhere").groups[0].subject
    x, labels = subject.x.to(dtype), subject.labels
    source = LoadedModel(model, None, 0, x[:1], lambda: x)
    target = model(x).argmax(1)
    space = InputSpace("image", (0.0,), (1.0,))
    return Case(
        model,
        source,
        Explainer(entry, entry.resolve(options)),
        x,
        target,
        subject.samples,
        space,
        0,
        chunk,
        labels=labels,
    )


WITHOUT_A_RECIPE = [name for name in NAMES if "recipe" not in INTROSPECTIONS[name].needs]


@pytest.mark.parametrize("name", WITHOUT_A_RECIPE)
def test_each_yields_what_it_compares_and_leaves_the_network_as_it_was(name):
    case = case_for(name)
    state, x = digest(dict(case.model.state_dict())), case.x.clone()
    found = introspect(case)
    whole = [each.measure for each in found if isinstance(each, Score) and each.stage is None and each.step is None]
    for measure in INTROSPECTIONS[name].compares:
        assert whole.count(measure) == 1, measure
    assert digest(dict(case.model.state_dict())) == state
    assert torch.equal(case.x, x)
    for module in case.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module.training
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("name", WITHOUT_A_RECIPE)
def test_each_says_the_same_twice_and_whatever_the_chunk(name):
    once, again, chunked = (introspect(case) for case in (case_for(name), case_for(name), case_for(name, chunk=7)))
    assert len(once) == len(again) == len(chunked)
    for one, same, other in zip(once, again, chunked, strict=True):
        torch.testing.assert_close(one.values, same.values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(one.values, other.values, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_asks_and_when_it_misleads(name):
    entry = INTROSPECTIONS[name]
    assert entry.question.endswith("?")
    assert entry.misleads.endswith(".")
    assert entry.summary.endswith(".")


@pytest.mark.slow
def test_ray_computes_the_same_and_keeps_the_artifacts(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import torch\n"
        "from harness import Artifact, Score, introspection\n\n\n"
        "@introspection(compares={'norm': 'higher'})\n"
        "def norms(model, space, data, *, seed: int):\n"
        "    '''Norms.'''\n"
        "    weights = [p for p in model.parameters() if p.ndim > 1]\n"
        "    yield Score('norm', sum(w.norm() for w in weights))\n"
        "    yield Artifact('first', 'matrix', weights[0])\n"
    )
    study = {**STUDY, "introspections": ["norms"], "plugins": [str(plugin)]}
    here = run(study, tmp_path / "here")
    there = run(study, tmp_path / "there", engine="ray")
    columns = [name for name in here.records if name not in ("run",)]
    pd.testing.assert_frame_equal(here.records[columns], there.records[columns])
    for cell in here.planned:
        ours, theirs = (artifacts_of(cell, Folder(tmp_path / place)) for place in ("here", "there"))
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(one.values, other.values) for one, other in zip(ours, theirs, strict=True))


def test_bad_input_is_told_before_anything_is_computed(weight_sum):
    with pytest.raises(InputError, match="list of names"):
        harness.evaluate(nn.Linear(2, 2).eval(), torch.rand(3, 2), introspections="weight_sum")
