"""Where the truth lies, from the data to the leaderboard: doubted, of another class, drawn, part of the key."""

import numpy as np
import pytest
import torch

import harness
from cases import Linear
from harness.glance import EXAM
from harness.study import load_study

LOCALIZATION = ["pointing_game", "relevance_mass", "relevance_rank", "roc_auc"]


def study(truth, metrics=LOCALIZATION, **more):
    data = {"source": "evidence", "truth": truth, "samples": 12}
    models = [{"name": "net", "source": "evidence-additive", "data": data}]
    return {"name": "truth", "models": models, "methods": ["gradient"], "metrics": metrics, "target": 0, **more}


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trusted")
    return folder, harness.run(study("spots", [*LOCALIZATION, "zero_fraction"]), folder)


def test_a_network_that_does_not_use_what_was_planted_gets_no_score(tmp_path):
    with pytest.warns(UserWarning, match="net: the model does not use what was planted: .* needs 90%"):
        results = harness.run(study("region"), tmp_path)
    assert results.failures.empty
    assert results.records["value"].isna().all()
    assert results.records["reason"].str.startswith("invalid: the model does not use what was planted").all()
    board = results.table().set_index("method")
    assert (board.loc[["gradient", "oracle"], LOCALIZATION] == "invalid").all(axis=None)


def test_a_network_that_does_is_graded_and_drawn(trusted):
    folder, results = trusted
    long = results.table("headlines").set_index(["method", "metric"])["value"]
    assert (long["oracle"][LOCALIZATION] == 1).all()
    assert (long["gradient"][LOCALIZATION] > 0.5).all()
    assert abs(long["random", "relevance_mass"]) < 0.1
    assert (folder / "figures" / "lifts.png").stat().st_size > 10_000


def test_the_outcome_says_who_finds_the_truth(trusted):
    from harness.words import conclusion

    assert "finds the truth better than chance: gradient" in conclusion(trusted[1])["held"]


def test_masks_are_part_of_what_a_metric_of_localization_depends_on_and_of_no_other(trusted, tmp_path):
    with pytest.warns(UserWarning, match="does not use"):
        other = harness.run(study("region", [*LOCALIZATION, "zero_fraction"]), tmp_path)
    keys = [
        set(each.cells.query("method == 'gradient'")[["metric", "key"]].itertuples(index=False, name=None))
        for each in (trusted[1], other)
    ]
    assert {name for name, _ in keys[0] & keys[1]} == {"zero_fraction"}


def test_a_mask_is_of_the_label_and_tells_nothing_of_another_class():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 1, 4, 4, generator=generator)
    model = Linear(torch.randn(3, 16, generator=generator)).eval()
    predicted = model(x).argmax(1)
    labels = predicted.clone()
    labels[:3] = (labels[:3] + 1) % 3
    masks = (torch.rand(8, 1, 4, 4, generator=generator) > 0.5).float()
    common = {"methods": ["gradient"], "metrics": ["roc_auc"], "masks": masks}
    rows = harness.evaluate(model, x, labels.tolist(), **common).records.query("measure == 'roc_auc'")
    assert list(rows["reason"].astype(object).fillna("")) == ["the mask is of another class"] * 3 + [""] * 5
    # Where there are no labels nobody can tell, and where the label is explained it is right.
    for result in (
        harness.evaluate(model, x, **common),
        harness.evaluate(model, x, labels.tolist(), target="label", **common),
    ):
        assert result.records["value"].notna().all()


@pytest.mark.slow
def test_descriptors_stand_behind_what_grades_and_alone_are_no_answer(trusted, tmp_path):
    from harness.words import conclusion

    mixed = harness.run(study("spots", ["sparseness", "relevance_mass"]), tmp_path / "mixed")
    assert list(mixed.table().columns[-2:]) == ["relevance_mass", "sparseness"]
    assert list(mixed.table().iloc[0][["method", "relevance_mass", "sparseness"]]) == [EXAM, "passed", "describes"]
    assert "descriptors" not in conclusion(mixed)["look at"]
    alone = harness.run(study("spots", ["sparseness", "max_sensitivity"]), tmp_path / "alone")
    assert "descriptors say nothing of quality" in conclusion(alone)["look at"]


def test_the_masks_of_an_archive_may_have_another_name(tmp_path):
    x = np.random.default_rng(0).random((4, 1, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, where=x[:, 0] > 0.5)
    resolved = load_study(
        {
            "name": "named",
            "models": [
                {
                    "name": "net",
                    "source": "mlp",
                    "weights": "random",
                    "data": {"source": f"npz:{tmp_path / 'data.npz'}", "masks": "where"},
                }
            ],
            "methods": ["oracle"],
            "metrics": ["roc_auc"],
        }
    )
    assert resolved.models[0].data.options["masks"] == "where"


def test_a_study_of_all_planted_tasks_is_there():
    resolved = load_study("planted")
    assert len(resolved.models) == 9
    assert {chosen.entry.family for chosen in resolved.metrics} == {"localization", "complexity"}


def pointed(hits, misses, more=0):
    """What is said of a method whose largest value is in a mask of 25 of 784 positions in `hits` samples.

    `more`: how many positions more than the one before the mask of each sample has.
    """
    from harness.words import conclusion

    n = hits + misses
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(n, 1, 784)
    for row in range(n):
        masks[row, 0, : 25 + more * row] = 1

    def pointing(model, x, target, *, ids):
        rows = torch.tensor([int(each.rpartition("/")[2]) for each in ids])
        maps = torch.rand(len(x), 1, 784, generator=torch.Generator().manual_seed(0))
        maps[:, :, 0], maps[:, :, -1] = 2.0 * (rows < hits)[:, None], 1.0
        return maps.view(x.shape)

    model, common = Linear(torch.randn(3, 784)).eval(), {"masks": masks.view(n, 1, 28, 28)}
    return conclusion(harness.evaluate(model, x, methods=[pointing], metrics=["pointing_game"], **common))


@pytest.mark.parametrize("more", [0, 1])
def test_truth_that_is_small_is_missed_in_all_samples_by_chance(more):
    """As by noise, in more than half of the runs of 20 samples."""
    said = pointed(0, 20, more)
    assert "the truth" not in said["held"] + said["did not hold"] + said["look at"]


def test_hits_and_misses_that_are_no_chance_are_told():
    assert "finds the truth worse than chance: pointing" in pointed(0, 300)["did not hold"]
    assert "finds the truth better than chance: pointing" in pointed(20, 0)["held"]
    assert "finds the truth better than chance: pointing" in pointed(6, 14)["held"]
