"""Cosine similarity convergence: literal matrix products, the published decay, and whatever is no backward pass."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import harness
from cases import Functional, case_of, network, relu_mlp, rows
from harness.metrics.cosine_convergence import chance
from harness.random import torch_seeded
from harness.types import NotApplicableError


def dense(method, width=256, depth=8, n=6):
    model = relu_mlp((width,) * (depth + 1))
    x = torch.rand(n, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return rows(case_of(model, x, torch.zeros(n, dtype=torch.int64), method), "cosine_convergence", pairs=3)


def by_stage(frame):
    tested = frame[(frame["role"] == "test") & frame["stage"].notna()]
    return tested.groupby("stage_index")["value"].median()


def test_z_plus_converges_on_a_chain_of_dense_layers_and_the_masked_gradient_does_not():
    """Protocols: 1 - |cos| = .71, .04, 7e-4, 2e-5, 8e-7, 1e-8, 3e-10, 9e-12 for z+; .85 to .99 for the gradient."""
    converged = 1 - by_stage(dense("lrp_z_plus"))
    assert (converged.diff().dropna() < 0).all()
    assert converged.iloc[3] < 1e-2
    assert converged.iloc[-1] < 1e-9
    # A factor of at least ten a layer, as measured there.
    assert (np.diff(np.log10(converged.to_numpy()))[2:] < -1).all()
    assert ((1 - by_stage(dense("gradient"))) > 0.8).all()


def test_the_masked_gradient_is_a_product_of_masked_matrices():
    """Literally: the Gaussian vector at the logits, times each transposed weight, masked where a unit was off."""
    model = relu_mlp((7, 9, 8, 5))
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = case_of(model, x, torch.zeros(4, dtype=torch.int64), "gradient")
    frame = rows(case, "cosine_convergence", pairs=2)
    for draw in range(2):
        sides = [case.draws("cosine_convergence", side).normal(5, draw=draw) for side in (0, 1)]
        for index, layer in enumerate((4, 2, 0), 1):
            inside = model[:layer](x)
            sides = [side @ model[layer].weight for side in sides]
            expected = torch.cosine_similarity(*sides).abs()
            found = frame[(frame["stage_index"] == index) & (frame["draw"] == draw)]["value"].to_numpy(copy=True)
            torch.testing.assert_close(torch.tensor(found), expected.detach())
            sides = [side * (inside > 0) for side in sides]
        headline = frame[frame["stage"].isna() & (frame["draw"] == draw)]["value"].to_numpy()
        assert np.array_equal(headline, found)  # of the lowest block


def test_lrp_epsilon_carries_value_times_gradient():
    """For epsilon near zero the relevance of a hidden layer is its activation times its gradient."""
    model = relu_mlp((7, 9, 5))
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = case_of(model, x, torch.zeros(4, dtype=torch.int64), "lrp_epsilon")
    frame = rows(case, "cosine_convergence", pairs=1)
    hidden, logits = model[:2](x), model(x)
    noise = [case.draws("cosine_convergence", side).normal(5) for side in (0, 1)]
    relevance = [hidden * ((side / logits) @ model[2].weight) for side in noise]
    expected = torch.cosine_similarity(*relevance).abs()
    found = torch.tensor(frame[frame["stage_index"] == 1]["value"].to_numpy(copy=True))[-4:]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 3, 10, 64])
def test_chance_is_the_median_for_independent_vectors(channels):
    a, b = torch.randn(2, 40000, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(torch.cosine_similarity(a, b).abs().median()) == pytest.approx(chance(channels), rel=0.03)


def test_the_floor_of_every_stage_is_that_of_its_channels():
    frame = dense("gradient", width=20, depth=2)
    floors = frame[frame["role"] == "floor_random"]
    assert floors["value"].to_numpy() == pytest.approx(chance(20))
    assert set(floors["stage_index"]) == {1, 2}


def test_cosines_are_taken_over_channels_position_by_position():
    """All positions of a 1 x 1 convolution are one dense network: the median over them is that of these networks."""
    # Of other weights a position may be dead, which has no cosine.
    with torch_seeded("alive"):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
        )
    model = model.double().eval()
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case = case_of(model, x, torch.zeros(2, dtype=torch.int64), "gradient")
    frame = rows(case, "cosine_convergence", pairs=1)
    noise = [case.draws("cosine_convergence", side).normal(3) for side in (0, 1)]
    leaf = model[:2](x).detach().requires_grad_()
    carried = [torch.autograd.grad(model[2:](leaf), leaf, side)[0] for side in noise]
    expected = torch.nn.functional.cosine_similarity(*carried, dim=1).abs().flatten(1).quantile(0.5, 1)
    found = frame[(frame["stage_index"] == 2) & (frame["role"] == "test")]["value"].to_numpy(copy=True)
    torch.testing.assert_close(torch.tensor(found), expected)


@pytest.mark.parametrize(
    "method", ["gradient", "guided_backprop", "deconvnet", "lrp_epsilon", "lrp_z_plus", "deeplift"]
)
@pytest.mark.parametrize("name", ["functional", "modules", "vit", "signal", "table", "gelu"])
def test_networks_of_every_kind_are_looked_into_and_left_as_they_were(name, method):
    model, x, target = network(name, torch.float64)
    case = case_of(model, x, target, (method, {"baseline": "zero"}) if method == "deeplift" else method)
    try:
        maps = case.explain()
    except NotApplicableError:
        pytest.skip(f"{method} does not apply to {name}")
    frame = rows(case, "cosine_convergence", pairs=1)
    tested = frame[(frame["role"] == "test") & frame["stage"].notna()]
    reached = tested.groupby("stage")["value"].apply(lambda values: values.notna().any())
    # What the first block reads is the input, which some rules treat in a way of their own.
    assert reached[list(tested["stage"].unique())[:-1]].all(), reached
    assert tested["value"].dropna().between(0, 1).all()
    assert torch.equal(case.explain(), maps)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_chunks_change_nothing():
    model, x, target = network("functional", torch.float64, n=7)
    whole, parts = (case_of(model, x, target, "lrp_epsilon") for _ in range(2))
    parts.chunk = 3
    first, second = (rows(case, "cosine_convergence", pairs=2) for case in (whole, parts))
    torch.testing.assert_close(*(torch.tensor(f["value"].to_numpy(copy=True)) for f in (first, second)))


@pytest.mark.parametrize(("method", "count"), [("sobel", 0), ("smoothgrad", 25), ("random", 0)])
def test_methods_without_one_backward_pass_do_not_apply(method, count):
    model, x, target = network("functional")
    x = torch.rand(len(target), 2, 24, 24)
    with pytest.raises(NotApplicableError, match=f"{method}: needs a method .* one backward pass, got {count}"):
        rows(case_of(model, x, target, method), "cosine_convergence")


def test_in_a_study_it_is_not_applicable_and_no_failure():
    model, x, _ = network("functional")
    results = harness.evaluate(
        model, x, methods=["gradient", "occlusion"], metrics=["cosine_convergence"], build=Functional
    )
    assert results.failures.empty
    status = results.cells.set_index("method")["status"]
    assert dict(status) == {"gradient": "done", "occlusion": "not_applicable"}
    assert results.table("headlines").set_index("method").loc["gradient", "measure"] == "cosine"
    assert 0 < results.table("headlines").set_index("method").loc["gradient", "value"] <= 1


@pytest.mark.parametrize("method", ["gradient", "lrp_epsilon", "deep_taylor"])
def test_no_graph_is_left_behind(method):
    """A hook that holds the tensor that it hangs on keeps the whole graph, and no collector finds it."""
    model, x, target = network("functional", torch.float64)
    seen = []

    def watch(_module, inputs):
        if inputs[0].grad_fn is not None:
            seen.append(weakref.ref(inputs[0]))

    handles = [module.register_forward_pre_hook(watch) for module in (model.stem, model.block, model.head)]
    rows(case_of(model, x, target, method), "cosine_convergence", pairs=2)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert len(seen) > 6
    assert not [reference for reference in seen if reference() is not None]


class TokensFirst(nn.Module):
    """A transformer whose layers take [tokens, samples, channels]."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(3, 8), nn.Linear(8, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x.permute(2, 0, 1))).mean(0))


@pytest.mark.parametrize(("samples", "chunk"), [(5, 64), (6, 64), (8, 6), (1, 64)])
def test_as_many_tokens_as_samples_are_not_taken_for_samples(samples, chunk):
    """Six tokens: with six samples in a batch, the cosines of tokens would be those of the samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = TokensFirst().double().eval(), torch.rand(samples, 3, 6, dtype=torch.float64)
    case = case_of(model, x, torch.zeros(samples, dtype=torch.int64), "gradient", chunk=chunk)
    frame = rows(case, "cosine_convergence", pairs=1)
    inside = frame["stage"].notna() & (frame["stage"] != "out")
    assert frame.loc[inside, "value"].isna().all()
    assert set(frame.loc[inside, "reason"]) == {"samples are not the first axis there"}
    assert frame.loc[~inside, "value"].notna().all()


def test_where_every_input_has_one_channel_the_headline_says_so_too():
    model = nn.Sequential(nn.Linear(1, 2)).double().eval()
    case = case_of(model, torch.rand(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), "gradient")
    frame = rows(case, "cosine_convergence", pairs=1)
    assert set(frame["reason"]) == {"one channel has no direction"}


class Tokens(nn.Module):
    """Two linear layers on [samples, tokens, channels]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.second(self.first(x.transpose(1, 2)).relu()).square().mean(1)


def test_the_channels_of_tokens_come_last():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Tokens().double().eval(), torch.rand(4, 3, 7, dtype=torch.float64)
    case = case_of(model, x, torch.zeros(4, dtype=torch.int64), "gradient")
    frame = rows(case, "cosine_convergence", pairs=1)
    inside = model.first(x.transpose(1, 2)).relu().detach().requires_grad_()
    noise = [case.draws("cosine_convergence", side).normal(5) for side in (0, 1)]
    carried = [torch.autograd.grad(model.second(inside).square().mean(1), inside, side)[0] for side in noise]
    expected = torch.cosine_similarity(*carried, dim=2).abs().quantile(0.5, 1)
    found = frame[(frame["stage"] == "second") & (frame["role"] == "test")]["value"].to_numpy(copy=True)
    torch.testing.assert_close(torch.tensor(found), expected)


def test_a_sample_that_nothing_is_carried_to_is_undefined_alone():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 3)).double().eval()
    model[0].weight.data.abs_()
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    case = case_of(model, x, torch.zeros(2, dtype=torch.int64), "gradient")
    frame = rows(case, "cosine_convergence", pairs=1)
    lowest = frame[(frame["stage"] == "0") & (frame["role"] == "test")]
    assert lowest["value"].isna().tolist() == [False, True]
    assert lowest["reason"].tolist()[1] == "the backward pass does not come by"
