"""Implementation invariance: methods that follow the function do not see a rewriting, and who looks is caught."""

import pytest
import torch

import harness
from cases import Linear, case_of, network, rows, values
from harness.catalogue import METHODS
from harness.entries import Method
from harness.metrics.implementation_invariance import REWRITINGS
from harness.types import NotApplicableError

UNITS, FOLDED = {"units permuted", "unit duplicated"}, {"batch norm folded"}
APPLIES = {
    "modules": UNITS | FOLDED,
    "functional": FOLDED,
    "in_place": UNITS,
    "gated": UNITS,
    "vit": UNITS,
    "signal": UNITS,
    "table": UNITS,
}


@pytest.mark.parametrize("name", APPLIES)
@pytest.mark.parametrize(
    "method", ["gradient", "integrated_gradients", "input_x_gradient", "lrp_epsilon", "smoothgrad"]
)
def test_methods_that_follow_the_function_are_invariant_where_a_rewriting_applies(name, method):
    model, x, target = network(name, torch.float64)
    options = {"baseline": "black"} if method == "integrated_gradients" else {}
    frame = rows(case_of(model, x, target, (method, options)), "implementation_invariance")
    known = frame[frame["value"].notna()]
    assert set(known["stage"].dropna()) == APPLIES[name]
    assert known["value"].max() < 1e-9
    assert known["stage"].isna().sum() == len(x)


@pytest.mark.parametrize("name", ["modules", "gated", "vit", "signal", "table"])
def test_they_are_in_single_precision_up_to_rounding(name):
    frame = rows(case_of(*network(name), "gradient"), "implementation_invariance")
    known = frame[frame["value"].notna()]
    assert set(known["stage"].dropna()) == APPLIES[name]
    assert known["value"].max() < 1e-5


def test_noise_made_of_the_weights_is_caught_by_every_rewriting():
    model, x, target = network("modules", torch.float64)
    frame = rows(case_of(model, x, target, "parameter_noise"), "implementation_invariance")
    assert set(frame["stage"].dropna()) == set(REWRITINGS)
    assert frame["value"].min() > 0.5


def first_layer(model, x, target):
    """Blind to the order of the units, and to nothing else."""
    return x * next(model.parameters()).abs().sum()


def test_each_rewriting_is_told_apart_and_the_largest_is_the_headline(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "first_layer", Method("first_layer", first_layer, "test", 1, ()))
    model, x, target = network("modules", torch.float64)
    frame = rows(case_of(model, x, target, "first_layer"), "implementation_invariance")
    each = {stage: values(frame, "relative_difference", stage=stage) for stage in REWRITINGS}
    total = float(model[0].weight.detach().abs().sum())
    assert each["units permuted"].max() < 1e-12
    units = model[0].weight.detach().abs().flatten(1).sum(1) / total
    assert float((units - each["unit duplicated"][0]).abs().min()) < 1e-12
    scale = model[1].weight.abs() / (model[1].running_var + model[1].eps).sqrt()
    folded = float((model[0].weight.abs() * scale[:, None, None, None]).sum().detach())
    torch.testing.assert_close(each["batch norm folded"], torch.full((5,), abs(folded / total - 1)).double())
    assert frame["stage"].isna().iloc[-5:].all()
    largest = torch.stack(list(each.values())).amax(0)
    assert torch.equal(torch.tensor(frame["value"].to_numpy(copy=True))[-5:], largest)


def test_a_rewriting_that_does_not_apply_is_undefined_and_no_part_of_the_headline():
    frame = rows(case_of(*network("functional", torch.float64), "gradient"), "implementation_invariance")
    skipped = frame[frame["stage"].isin(["units permuted", "unit duplicated"])]
    assert skipped["value"].isna().all()
    assert skipped["reason"].astype(str).str.contains("none of the 2 pairs of consecutive layers is connected").all()
    assert torch.equal(
        torch.tensor(frame[frame["stage"].isna()]["value"].to_numpy(copy=True)),
        values(frame, "relative_difference", stage="batch norm folded"),
    )


def test_a_network_without_any_rewriting_is_not_applicable_with_all_reasons():
    model, x, target = Linear(torch.randn(4, 9)).eval(), torch.rand(3, 9), torch.arange(3)
    message = "units permuted: .* 0 pairs .*; unit duplicated: .*; batch norm folded: no batch norm follows"
    with pytest.raises(NotApplicableError, match=message):
        rows(case_of(model, x, target, "gradient"), "implementation_invariance")


def test_undefined_maps_are_undefined_in_the_headline_too():
    model, x, target = network("modules", torch.float64)
    maps = torch.ones_like(x)
    maps[0], maps[1, 0, 0, 0] = 0, torch.nan
    frame = rows(case_of(model, x, target, maps), "implementation_invariance")
    headline = frame[frame["stage"].isna()]
    assert list(headline["reason"].astype(object)[:2]) == ["the map is zero everywhere", "not finite (trained network)"]
    assert headline["value"].tolist()[2:] == [0.0, 0.0, 0.0]


def test_the_table_of_headlines_shows_the_largest():
    model, x, _ = network("modules")
    results = harness.evaluate(model, x, methods=["parameter_noise"], metrics=["implementation_invariance"])
    records = results.records
    largest = records[records["stage"].isna()]["value"].median()
    assert float(results.table("headlines")["value"].iloc[0]) == pytest.approx(largest)


def test_networks_are_rewritten_once_for_all_methods_on_a_block_of_samples(monkeypatch):
    made = []

    def counting(stage, rewriting):
        def counted(original):
            made.append(stage)
            return rewriting(original)

        return counted

    for stage, rewriting in REWRITINGS.items():
        monkeypatch.setitem(REWRITINGS, stage, counting(stage, rewriting))
    model, x, target = network("gated", torch.float64)
    cases = [case_of(model, x, target, method) for method in ("gradient", "guided_backprop", "gradient")]
    frames = [rows(joined(case, cases[0]), "implementation_invariance") for case in cases]
    assert sorted(made) == sorted(REWRITINGS)
    assert frames[0].equals(frames[2])
    # What cannot be had is known as well.
    assert frames[1]["reason"].astype(object).str.startswith("no batch norm follows").sum() == len(x)
    _, first = cases[0].source.shared["rewritings"]
    other = case_of(model, x, target, "gradient", samples=list("abcde"))
    rows(joined(other, cases[0]), "implementation_invariance")
    assert sorted(made) == sorted(2 * list(REWRITINGS))
    # Those of one block are kept at a time.
    here, second = other.source.shared["rewritings"]
    assert here == (tuple("abcde"), other.chunk)
    assert second.keys() == first.keys()
    assert second["units permuted"] is not first["units permuted"]


def joined(case, other):
    """The same case as part of the study of another."""
    case.source = other.source
    return case
