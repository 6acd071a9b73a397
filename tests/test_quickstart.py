"""What the quickstart must show, on the real network and digits. Slow: it runs the whole study."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import harness
from harness.data.bundled import mnist_5k
from harness.progress import silent
from harness.study import load_study
from harness.subjects import load_entry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return harness.run("quickstart", tmp_path_factory.mktemp("quickstart") / "run")


@pytest.fixture(scope="module")
def summary(results):
    frame = results.table("summary")

    def row(**where):
        found = frame
        for column, value in where.items():
            found = found[found[column] == value]
        assert len(found) == 1, where
        return found.iloc[0]

    return row


def test_nothing_failed_and_no_control_is_broken(results):
    assert results.failures.empty
    judged = results.table("verdicts")
    controls = judged[judged["expected"] != ""]
    # Six controls, two tests with a verdict, five views.
    assert len(controls) == 6 * 2 * 5
    signed = controls[(controls["measure"] == "spearman") & (controls["sign"] == "signed")]
    assert (signed["verdict"] == signed["expected"]).all()


def test_networks_are_good_and_the_partner_is_valid(results):
    entry = load_study("quickstart").models[0]
    loaded, data = load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)
    with torch.no_grad():
        assert (loaded.model(data.batch(range(1000))).argmax(1) == data.labels).double().mean() >= 0.96
    partner = loaded.partner()
    assert partner.invalid == ""
    assert partner.train_accuracy >= 0.95
    assert 0.05 <= partner.test_accuracy <= 0.13
    assert results.records.loc[results.records["metric"] == "label_randomization", "value"].notna().any()


def test_verdicts_are_those_that_are_known(results):
    judged = results.table("verdicts")
    signed = judged[(judged["measure"] == "spearman") & (judged["sign"] == "signed")].set_index(["test", "method"])
    verdict = signed.loc["parameter_randomization", "verdict"]
    assert verdict[["sobel", "gradient", "random", "parameter_noise"]].tolist() == ["FAIL", "PASS", "INVALID", "PASS"]
    reason = signed.loc["parameter_randomization", "reason"]
    assert reason["parameter_noise"].endswith("necessary for trusting the map, not sufficient")
    assert reason["random"].startswith("uninformative")
    verdict = signed.loc["random_logit", "verdict"]
    assert verdict[["gradient", "guided_backprop", "deconvnet"]].tolist() == ["PASS", "FAIL", "FAIL"]
    sensitive = results.table("sensitivity").query("sign == 'signed'").set_index("method")["sensitive"]
    assert sensitive["gradient"] == "from softmax_linear on, stage 1 of 4"
    assert sensitive["sobel"] == "to none of 4 stages"


def test_a_method_that_ignores_the_last_layer_is_sensitive_below_it_only():
    """The gradient of the trained network's output layer on top of whatever features the given network has."""
    entry = load_study("quickstart").models[0]
    loaded, data = load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)
    trained_head = copy.deepcopy(loaded.model.softmax_linear)

    def ignores_the_last_layer(model, x, target):
        network = copy.deepcopy(model)
        network.softmax_linear = trained_head
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(network(leaf).gather(1, target[:, None]).sum(), leaf)[0]

    results = harness.evaluate(
        loaded.model,
        data.batch(range(100)),
        methods=[ignores_the_last_layer],
        metrics=[{"metric": "parameter_randomization", "modes": ["top_down", "independent"]}],
        space=data.space,
        build=loaded.build,
    )
    sensitive = results.table("sensitivity").query("sign == 'signed'").set_index("mode")["sensitive"]
    assert sensitive["top_down"] == "from fc1 on, stage 2 of 4"
    assert sensitive["independent"] == "to 3 of 4 blocks alone: fc1, hidden2, hidden1"
    stages = results.table("cascade").query("sign == 'signed'").set_index(["mode", "stage"])["value"]
    assert stages["top_down", "softmax_linear"] == 1
    (verdict,) = results.table("verdicts").query("measure == 'spearman' and sign == 'signed'")["verdict"]
    assert verdict == "PASS"


def test_label_randomization_lies_between_its_levels(results):
    judged = results.table("verdicts")
    rows = judged[(judged["test"] == "label_randomization") & (judged["sign"] == "signed")]
    rows = rows[rows["measure"] == "spearman"].set_index("method")
    for method in ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "occlusion"):
        # Two networks that learnt the truth agree, and one that learnt noise agrees with them no more than by chance.
        assert rows.loc[method, "ceiling_retrain"] > 0.15
        assert rows.loc[method, "high"] < 0.2
    assert (rows["verdict"] == "").all()


def test_sobel_is_exactly_one_at_every_stage(results):
    records = results.records
    similar = records[(records["method"] == "sobel") & (records["metric"] == "parameter_randomization")]
    similar = similar[(similar["role"] == "test") & similar["measure"].isin(["spearman", "ssim", "hog"])]
    assert set(similar["stage"]) == {"softmax_linear", "fc1", "hidden2", "hidden1", "all"}
    assert (similar["value"] == 1).all()


def test_a_fresh_random_map_is_within_four_standard_errors_of_zero(results):
    records = results.records
    similar = records[(records["method"] == "random") & (records["metric"] == "parameter_randomization")]
    # HOG descriptors of unrelated maps are alike by 0.15, and absolute correlations are above zero.
    similar = similar[(similar["measure"] == "spearman") & (similar["sign"] == "signed")]
    values = similar.loc[similar["role"] == "test", "value"]
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    gains = records[(records["method"] == "random") & (records["measure"] == "symmetric_relevance_gain")]
    for _, gain in gains.groupby("metric", observed=True)["value"]:
        assert abs(gain.mean()) < 4 * gain.std() / np.sqrt(len(gain))


def test_guided_backprop_hardly_sees_that_the_output_layer_was_randomized(results):
    stages = results.table("cascade")
    first = stages[(stages["stage"] == "softmax_linear") & (stages["sign"] == "signed")].set_index("method")
    assert first.loc["guided_backprop", "low"] > first.loc["gradient", "high"]


def test_the_input_shows_through_input_x_gradient_as_the_closed_form_says(results, summary):
    """Protocols: with a fraction q of shared zeros the absolute correlation is 3q / (3q + (1 - q)^2)."""
    where = {
        "method": "input_x_gradient",
        "metric": "parameter_randomization",
        "measure": "spearman",
        "role": "test",
        "mode": "full",
    }
    absolute, signed = summary(**where, sign="absolute")["value"], summary(**where, sign="signed")["value"]
    zeros = (mnist_5k().batch(range(200)) == 0).flatten(1).double().mean(1)
    expected = float((3 * zeros / (3 * zeros + (1 - zeros) ** 2)).mean())
    assert absolute == pytest.approx(expected, abs=0.01)
    assert absolute > signed + 0.5


def test_integrated_gradients_are_complete_within_one_percent(results):
    rows = results.table("headlines").set_index(["method", "metric"])
    assert rows.loc[("integrated_gradients", "completeness"), "value"] < 0.01
    statuses = results.cells[results.cells["metric"] == "completeness"].set_index("method")["status"]
    assert set(statuses[statuses == "done"].index) == {"input_x_gradient", "integrated_gradients"}
    assert set(statuses[statuses != "done"]) == {"not_applicable"}


@pytest.mark.parametrize("fill", ["black", "blur"])
@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "occlusion"])
def test_good_methods_gain_from_flipping(results, method, fill):
    rows = results.table("headlines").set_index(["method", "metric"])
    assert rows.loc[(method, f"pixel_flipping[fill={fill}]"), "low"] > 0
