"""Tables of comparisons and rankings: by hand on made runs, from rows to words."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from harness import Results, Score
from harness.comparisons import Comparing, comparisons
from harness.headlines import Headline
from harness.plan import Cell
from harness.rank_figures import draw_models, draw_ranks
from harness.rankings import across_models, classes, families, rankings
from harness.rows import rows_of
from harness.store import Memory, Part

N = 60


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def made(values, *, direction="higher", family="faithfulness", controls=()):
    """Headlines; `values`: (model, method, metric) -> [samples] or [samples, draws]."""
    return [
        Headline(
            {"model": model, "model_seed": 0, "method": method, "metric": metric},
            "control" if method in controls else "gradient",
            family,
            direction,
            "score",
            "mean",
            numbers if numbers.ndim == 2 else numbers[:, None],
            np.arange(len(numbers)) % 3,
        )
        for (model, method, metric), numbers in values.items()
    ]


COMMON = noise(0, N)


def three(metric="area", model="net", by=(1.0, 0.0, 0.0)):
    """`a` ahead by so much, and two that hardly differ."""
    return {
        (model, name, metric): COMMON + shift + 0.2 * noise(index + len(metric), N)
        for index, (name, shift) in enumerate(zip("abc", by, strict=True))
    }


@pytest.mark.parametrize(("direction", "better"), [("higher", "a better"), ("lower", "{} better"), ("", "a higher")])
def test_every_two_methods_are_compared_and_the_better_one_is_named(direction, better):
    table = comparisons(made(three(), direction=direction))
    assert list(zip(table["first"], table["second"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(table["outcome"]) == [better.format("b"), better.format("c"), "not told apart"]
    first = table.iloc[0]
    apart = three()["net", "a", "area"] - three()["net", "b", "area"]
    assert first["difference"] == pytest.approx(apart.mean())
    assert first["p"] == stats.wilcoxon(apart).pvalue
    assert first["p_holm"] == pytest.approx(3 * first["p"]) or first["p_holm"] == pytest.approx(2 * first["p"])
    assert first["superiority"] == (apart > 0).mean()


def test_a_smallest_effect_makes_small_differences_equivalent_and_others_count_only_beyond_it():
    how = Comparing("sign_flip", {"score": 0.3})
    assert list(comparisons(made(three()), how)["outcome"]) == ["a better", "a better", "equivalent"]
    large = Comparing("sign_flip", {"area": 1.0})
    assert list(comparisons(made(three()), large)["outcome"])[:2] == ["not told apart"] * 2


def test_controls_and_other_samples_are_left_out():
    values = three() | {("net", "noise", "area"): noise(9, N), ("net", "short", "area"): noise(8, 5)}
    table = comparisons(made(values, controls=("noise",)))
    assert set(table["first"]) | set(table["second"]) == {"a", "b", "c"}


def test_ranks_with_what_they_may_be():
    table = rankings(made(three())).set_index("method")
    assert table.loc["a", ["rank", "low", "high", "best"]].tolist() == [1, 1, 1, 1]
    assert table.loc["b", ["low", "high"]].tolist() == [2, 3]
    assert table["mean_rank"].sum() == pytest.approx(6)
    assert (table["samples"] == N).all()
    lower = rankings(made(three(), direction="lower")).set_index("method")
    assert lower.loc["a", "rank"] == 3
    assert rankings(made(three(), direction="")).empty


def tailed(statistic):
    """`a` is the better one in most samples, and far worse in a few."""
    worse = np.where(np.arange(N) < 5, -100.0, 0.0)
    headlines = made({("net", "a", "area"): COMMON + 1 + worse, ("net", "b", "area"): COMMON})
    return [replace(each, statistic=statistic) for each in headlines]


def test_methods_rank_by_the_statistic_that_stands_for_the_metric():
    for statistic, ranks in (("mean", [2, 1]), ("median", [1, 2])):
        assert rankings(tailed(statistic))["rank"].tolist() == ranks
        others = [replace(each, labels={**each.labels, "metric": "two"}) for each in tailed(statistic)]
        assert families(tailed(statistic) + others)[0]["mean_rank"].tolist() == ranks
        models = [replace(each, labels={**each.labels, "model": "other"}) for each in tailed(statistic)]
        assert across_models(tailed(statistic) + models)["mean_rank"].tolist() == ranks
        row = classes(tailed(statistic)).iloc[0]
        assert row["value"] == pytest.approx(getattr(np, statistic)(tailed(statistic)[0].values[::3]))


def test_a_sample_without_a_score_ranks_nobody_and_a_method_without_any_is_left_out():
    values = three()
    values["net", "a", "area"][:7] = np.nan
    values["net", "d", "area"] = np.full(N, np.nan)
    table = rankings(made(values))
    assert set(table["method"]) == {"a", "b", "c"}
    assert (table["samples"] == N - 7).all()


def test_metrics_of_one_family_rank_together_and_leaving_one_out_shows_who_decides():
    values = three("one", by=(1, 0, -1)) | three("two", by=(1, 0, -1)) | three("odd", by=(-3, 0, 1))
    together, left = families(made(values))
    table = together.set_index("method")
    assert table.loc["a", "mean_rank"] == pytest.approx((1 + 1 + 3) / 3)
    assert (table["metrics"] == 3).all()
    assert 0 < table["kendall_w"].iloc[0] < 0.2
    assert table["best"].sum() == pytest.approx(1)
    assert (table["low"] <= table["mean_rank"]).all()
    assert (table["mean_rank"] <= table["high"]).all()
    left = left.set_index("left_out")
    assert left.loc["odd", "first"] == "a"
    assert left.loc["odd", "tau"] == pytest.approx(1)
    agreed, _ = families(made(three("one", by=(1, 0, -1)) | three("two", by=(1, 0, -1))))
    assert agreed["kendall_w"].iloc[0] == 1


def test_a_randomization_test_ranks_nobody_because_noise_would_win():
    tests = made(three("one") | three("two") | three("one", model="other"), family="randomization")
    assert rankings(tests).empty
    assert families(tests)[0].empty
    assert across_models(tests)["mean_rank"].isna().all()
    assert len(comparisons(tests)) == 9


def test_families_are_never_mixed():
    both = made(three("one")) + made(three("two"), family="complexity")
    assert families(both)[0].empty


def test_over_models_models_are_counted():
    values = {}
    for model, shift in (("x", 0.0), ("y", 0.5), ("z", 1.0)):
        values |= {key: value + shift for key, value in three(model=model, by=(1, 0, -1)).items()}
    table = across_models(made(values)).set_index("method")
    assert (table["models"] == 3).all()
    means = [values[model, "a", "area"].mean() for model in "xyz"]
    student = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert table.loc["a", ["mean", "low", "high"]].tolist() == pytest.approx([np.mean(means), *student])
    assert table["mean_rank"].tolist() == [1, 2, 3]
    assert table["wins"].tolist() == [3, 0, 0]
    assert table["friedman_p"].iloc[0] == pytest.approx(stats.friedmanchisquare([3] * 3, [2] * 3, [1] * 3).pvalue)
    # Demsar (2006), table 5 (a): q = 2.343 for three methods.
    assert table["critical_difference"].iloc[0] == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 3)), rel=1e-3)
    assert across_models(made(three())).empty


def test_each_class_has_its_own_row():
    table = classes(made(three()))
    assert len(table) == 3 * 3
    row = table[(table["method"] == "a") & (table["target"] == 1)].iloc[0]
    assert row["value"] == pytest.approx(three()["net", "a", "area"][1::3].mean())
    assert row["samples"] == N / 3


def results():
    """A run of two models: a test with verdicts, two metrics of one family, one method that does not apply."""
    store, cells = Memory(), []
    for model in ("net", "other"):
        for index, method in enumerate(("gradient", "lrp", "cam")):
            for metric in ("parameter_randomization", "area", "gain"):
                cell = Cell(f"{model}-{method}-{metric}", model, 0, "data", method, metric, 0)
                status = "not_applicable" if (method, metric) == ("cam", "gain") else "done"
                shift = torch.as_tensor(COMMON + (2 - index) + 0.1 * noise(index, N))
                store.put(cell, Part(rows(metric, shift, index), info(metric, status)))
                cells.append(cell)
    manifest = {"study": {"name": "made", "seed": 0}, "run": "made", "environment": {}, "subjects": []}
    return Results(manifest, tuple(cells), store)


def rows(metric, shift, index):
    target = torch.arange(N) % 3
    names = [f"s{i}" for i in range(N)]
    if metric != "parameter_randomization":
        return rows_of([Score("score", shift)], names, target)
    view = {"channels": "sum", "sign": "signed", "normalization": "none"}
    scores = [Score("spearman", torch.ones(N).double(), role="ceiling_rerun", stage="trained", stage_index=0, **view)]
    for draw in range(10):
        where = {"mode": "full", "stage": "all", "stage_index": 1, "draw": draw}
        values = torch.as_tensor(0.45 * index + 0.02 * noise(draw, N))
        scores.append(Score("spearman", values, **where, **view))
        scores.append(
            Score("spearman", torch.as_tensor(0.02 * noise(draw + 20, N)), role="floor_shift", **where, **view)
        )
        scores.append(Score("output_pearson", torch.as_tensor(0.1 + 0.02 * noise(draw + 40, N)), **where))
        if draw:
            floor = torch.as_tensor(0.02 * noise(draw + 60, N))
            scores.append(Score("spearman", floor, role="floor_random", **where, **view))
    return rows_of(scores, names, target)


def info(metric, status):
    test = metric == "parameter_randomization"
    return {
        "status": status,
        "reason": "cam: no layer" if status != "done" else "",
        "method_family": "gradient",
        "method_expected": {},
        "metric_function": "parameter_randomization" if test else metric,
        "metric_family": "randomization" if test else "faithfulness",
        "metric_version": 1,
        "metric_options": {},
        "direction": "lower" if test else "higher",
        "headline": "spearman" if test else "score",
        "summary_statistic": "mean",
        **dict.fromkeys(("forward", "backward", "maps_forward", "maps_backward"), N),
        **dict.fromkeys(("seconds", "maps_seconds"), 0.5),
    }


def test_the_glance_has_verdicts_ranks_reasons_and_cost():
    run = results()
    table = run.table("glance").query("model == 'net'").set_index("method")
    assert table["parameter_randomization"].tolist() == ["PASS", "INCONCLUSIVE", "FAIL"]
    assert table["area"].tolist() == ["1 of 3", "2 of 3", "3 of 3"]
    assert table["gain"].tolist() == ["1 of 2", "2 of 2", "n/a"]
    assert table.loc["gradient", "reasons"] == ""
    assert "survives" in table.loc["lrp", "reasons"]
    assert "gain: cam: no layer" in table.loc["cam", "reasons"]
    assert table.loc["gradient", "passes"] == 2 * N + 3 * 2 * N
    assert table.loc["gradient", "seconds"] == 0.5 + 3 * 0.5


def test_a_notebook_shows_verdicts_in_colour():
    shown = results()._repr_html_()
    assert "INCONCLUSIVE" in shown
    assert shown.count("<table") == 2
    assert "font-weight: bold" in shown


def test_every_new_table_comes_from_the_rows_and_figures_are_drawn(tmp_path):
    run = results()
    for name in ("comparisons", "rankings", "across_models", "classes"):
        assert len(run.table(name)), name
    # Two metrics of one family are on the two methods that both of them have.
    assert set(run.table("families")["method"]) == {"gradient", "lrp"}
    assert set(run.table("classes")["target"]) == {0, 1, 2}
    draw_ranks(run.table("rankings").query("model == 'net'"), run.table("comparisons"), "net").savefig(
        tmp_path / "a.png"
    )
    draw_models(run.table("across_models")).savefig(tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_run_of_an_earlier_version_has_the_family_of_its_metric():
    run = results()
    for part in run.store.parts.values():
        part.info.pop("metric_family")
    assert isinstance(run.table("rankings"), pd.DataFrame)
