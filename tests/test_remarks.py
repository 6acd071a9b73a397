"""What methods say beside their maps reaches the cells and the table of costs."""

import torch

import harness
from cases import network
from harness.remarks import in_words, listening, remark


def test_the_layer_of_a_class_activation_map_and_the_fit_of_lime_stand_in_the_table_of_costs():
    model, x, _ = network("modules")
    methods = ["grad_cam", {"method": "grad_cam", "name": "first", "layer": "0"}, {"method": "lime", "samples": 30}]
    results = harness.evaluate(
        model, x, methods=[*methods, "gradient"], metrics=["completeness", "occlusion_faithfulness"]
    )
    cost = results.table("cost")
    said = {row["method"]: row["remarks"] for _, row in cost.iterrows()}
    assert said["grad_cam"] == "layer: 5"
    assert said["first"] == "layer: 0"
    assert said["gradient"] == ""
    assert said["lime"].startswith("r_squared: mean ")
    assert results.cells.set_index("method").loc["grad_cam", "remarks"].iloc[-1] == {"layer": "5"}


def test_words_are_named_once_and_numbers_summarised_over_batches():
    with listening() as heard:
        remark("layer", "block")
        remark("layer", "block")
        remark("fit", torch.tensor([0.0, 1.0]))
        with listening() as inner:
            remark("layer", "another")
        remark("fit", torch.tensor([0.5]))
    assert in_words(heard) == {"layer": "block", "fit": "mean 0.5, 0 to 1"}
    assert in_words(inner) == {"layer": "another"}


def test_what_is_undefined_is_counted_and_does_not_hide_the_rest():
    assert in_words({"fit": [torch.tensor([0.5, torch.nan]), torch.tensor([torch.nan])]}) == {
        "fit": "mean 0.5, 0.5 to 0.5, undefined for 2 of 3"
    }
    assert in_words({"fit": [torch.tensor([torch.nan])]}) == {"fit": "undefined for 1 of 1"}


def test_nobody_has_to_listen():
    remark("layer", "block")
    with listening() as heard:
        pass
    assert heard == {}
