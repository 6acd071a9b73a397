"""What transformers are made of, by attention LRP, LRP-epsilon and DeepLIFT, however it is written."""

import literal_attention as twin
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness import NotApplicableError
from harness.methods.composites import ruled_gradients
from harness.methods.deeplift import deeplift
from harness.methods.gradients import input_x_gradient
from harness.methods.lrp import attention_lrp, lrp_epsilon
from harness.methods.relevance import LRP
from harness.methods.rules import Epsilon
from harness.networks import VisionTransformer
from harness.space import InputSpace

EXACT = {"rtol": 1e-12, "atol": 1e-12}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SPACE = InputSpace("signal")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def through_constants(model, x, target, epsilon=1e-6):
    return lrp_epsilon(model, x, target, space=SPACE, epsilon=epsilon)


def compared(model, x, target):
    return deeplift(model, x, target, baseline=x.flip(0) / 2)


every_method = pytest.mark.parametrize("explain", [attention_lrp, through_constants, compared])


@pytest.fixture
def block():
    """A transformer block on five tokens of width 6: (model, x, target)."""
    return twin.Block(6, 2, 4), normal(3, 5, 6), torch.tensor([0, 3, 1])


@torch.no_grad()
def output(model, x, target):
    return model(x).gather(1, target[:, None])[:, 0]


def assert_sums(model, x, target):
    """DeepLIFT adds up, also where the baseline is the sample."""
    change = output(model, x, target) - output(model, x.flip(0) / 2, target)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(compared(model, x, target).flatten(1).sum(1), change, **EXACT)
    same = deeplift(model, x, target, baseline=x.clone())
    torch.testing.assert_close(same, torch.zeros_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize(("explain", "through_softmax"), [(attention_lrp, True), (through_constants, False)])
def test_equals_the_published_rules_carried_as_relevance(explain, through_softmax, epsilon, block):
    expected = twin.relevance_of(*block, epsilon, through_softmax)
    torch.testing.assert_close(explain(*block, epsilon=epsilon), expected, **CLOSE)
    assert (expected - twin.relevance_of(*block, epsilon, not through_softmax)).norm() > 0.1 * expected.norm()


def transformer():
    """A vision transformer that tells its positions apart, with biases, and a batch for it: (model, x, target)."""
    model = VisionTransformer((2, 12, 12), 4, patch=4, width=12, depth=2, heads=2).double().eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=70 + index) / (parameter[0].numel() ** 0.5)
    return model, normal(4, 2, 12, 12), torch.arange(4)


@pytest.mark.parametrize("biases", [False, True])
def test_relevance_of_pixels_token_positions_and_biases_sums_to_the_logit(biases):
    model, x, target = transformer()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and ("norm" in name or not biases):
            parameter.data.zero_()
    absorbing = {name: p for name, p in model.named_parameters() if name.endswith("bias") and p.any()}
    absorbing |= {"token": model.token, "position": model.position}
    rules = LRP(Epsilon(1e-12), Epsilon(1e-12)).rules()
    gradients = ruled_gradients(model, x, target, rules, "lrp_epsilon", also=list(absorbing.values()))
    # Queries and keys make attention weights, which are constants.
    reached = {name: g for name, g in zip(absorbing, gradients[1:], strict=True) if g is not None}
    assert absorbing.keys() - reached.keys() == {name for name in absorbing if "query" in name or "key" in name}
    parts = [(x * gradients[0]).sum(), *((absorbing[name] * g).sum() for name, g in reached.items())]
    assert all(abs(float(part.detach())) > 1e-3 for part in parts)
    torch.testing.assert_close(sum(parts), output(model, x, target).sum(), rtol=1e-9, atol=1e-9)


def fused(self, x):
    parts = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
    return self.output(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


def fused_by_keyword(self, x):
    query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
    mixed = F.scaled_dot_product_attention(value=value, key=key, query=query, scale=query.shape[-1] ** -0.5)
    return self.output(mixed.transpose(1, 2).flatten(2))


def by_einsum(self, x):
    query, key, value = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
    scores = torch.einsum("nqhw,nkhw->nhqk", query * query.shape[-1] ** -0.5, key)
    return self.output(torch.einsum("nhqk,nkhw->nqhw", F.softmax(scores, dim=-1), value).flatten(2))


def by_baddbmm(self, x):
    query, key, value = (self.split(layer(x)).flatten(0, 1) for layer in (self.query, self.key, self.value))
    nothing = torch.zeros(1, x.shape[1], x.shape[1], dtype=x.dtype)
    scores = torch.baddbmm(nothing, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    mixed = torch.bmm(scores.softmax(-1), value).unflatten(0, (-1, self.heads))
    return self.output(mixed.transpose(1, 2).flatten(2))


def with_positions_in_front(self, x):
    x = x.transpose(0, 1)
    parts = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
    query, key, value = (part.permute(1, 2, 0, 3) for part in parts)
    weights = (query @ key.transpose(2, 3)).div_(query.shape[-1] ** 0.5).softmax(-1)
    return self.output((weights @ value).permute(2, 0, 1, 3).flatten(2)).transpose(0, 1)


def by_module(need_weights, batch_first):
    def attend(self, x):
        module = nn.MultiheadAttention(12, self.heads, batch_first=batch_first, dtype=x.dtype).eval()
        parts = self.query, self.key, self.value
        module.in_proj_weight.data = torch.cat([part.weight for part in parts]).detach()
        module.in_proj_bias.data = torch.cat([part.bias for part in parts]).detach()
        module.out_proj.load_state_dict(self.output.state_dict())
        x = x if batch_first else x.transpose(0, 1)
        mixed = module(x, x, x, need_weights=need_weights)[0]
        return mixed if batch_first else mixed.transpose(0, 1)

    return attend


SPELLINGS = {
    "fused": fused,
    "fused by keyword": fused_by_keyword,
    "einsum": by_einsum,
    "baddbmm": by_baddbmm,
    "positions in front": with_positions_in_front,
    "module": by_module(False, True),
    "module with weights": by_module(True, True),
    "module with positions in front": by_module(False, False),
    "module with positions in front and weights": by_module(True, False),
}


@every_method
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_map_is_the_same_however_attention_is_written(spelling, explain, monkeypatch):
    model, x, target = transformer()
    expected = explain(model, x, target)
    assert (expected - input_x_gradient(model, x, target)).norm() > 0.1 * expected.norm()
    logits = model(x)
    monkeypatch.setattr(type(model.layers[0].attention), "forward", SPELLINGS[spelling])
    torch.testing.assert_close(model(x), logits, **EXACT)
    torch.testing.assert_close(explain(model, x, target), expected, **CLOSE)


class Read(nn.Module):
    """Four fixed linear functions of whatever `function(x, *layers)` returns; its layers are drawn anew."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers).double()
        for index, parameter in enumerate(self.layers.parameters()):
            parameter.data = normal(*parameter.shape, seed=50 + index) / parameter.shape[-1] ** 0.5
        self.eval()

    def forward(self, x):
        z = self.function(x, *self.layers).flatten(1)
        return z @ normal(z.shape[1], 4, seed=9)


TOKENS = normal(3, 6, 8)
SEEN = (normal(6, 6, seed=3) > -0.3) | torch.eye(6, dtype=torch.bool)
BLINDED = torch.zeros(6, 6, dtype=torch.float64).masked_fill(~SEEN, -torch.inf)
CAUSAL = torch.ones(6, 6, dtype=torch.bool).tril()
PADDING = torch.tensor([False] * 4 + [True] * 2)


def by_hand(x, fused, mask=None, groups=1):
    query, key, value = heads(x, fused, groups)
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ value


def heads(x, fused, groups=1):
    parts = [part.unflatten(-1, (4, 2)).transpose(1, 2) for part in fused(x).chunk(3, -1)]
    return parts[0], *(part[:, ::groups].repeat_interleave(groups, 1) for part in parts[1:])


def grouped(x, fused):
    query, key, value = heads(x, fused)
    return F.scaled_dot_product_attention(query, key[:, ::2], value[:, ::2], enable_gqa=True)


MASKS = {
    "bool": (lambda x, a: F.scaled_dot_product_attention(*heads(x, a), SEEN), lambda x, a: by_hand(x, a, SEEN)),
    "float": (
        lambda x, a: F.scaled_dot_product_attention(*heads(x, a), attn_mask=BLINDED),
        lambda x, a: by_hand(x, a, SEEN),
    ),
    "causal": (
        lambda x, a: F.scaled_dot_product_attention(*heads(x, a), is_causal=True),
        lambda x, a: by_hand(x, a, CAUSAL),
    ),
    "grouped": (grouped, lambda x, a: by_hand(x, a, groups=2)),
}


@every_method
@pytest.mark.parametrize("name", MASKS)
def test_masks_and_groups_of_fused_attention_are_what_they_are_by_hand(name, explain):
    target = torch.arange(3)
    model, written = (Read(function, nn.Linear(8, 24)) for function in MASKS[name])
    expected = explain(written, TOKENS, target)
    assert expected.isfinite().all()
    torch.testing.assert_close(explain(model, TOKENS, target), expected, **CLOSE)
    assert_sums(model, TOKENS, target)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{"attn_mask": ~SEEN}, {"attn_mask": BLINDED}, {"key_padding_mask": PADDING}])
def test_deeplift_sums_and_lrp_is_finite_through_masked_attention_modules(options, need_weights):
    def attend(x, module):
        masks = {name: mask.expand(len(x), -1) if mask.ndim == 1 else mask for name, mask in options.items()}
        return module(x, x, x, need_weights=need_weights, **masks)[0]

    model, target = Read(attend, nn.MultiheadAttention(8, 2, batch_first=True)), torch.arange(3)
    assert_sums(model, TOKENS, target)
    for explain in (attention_lrp, through_constants):
        assert explain(model, TOKENS, target).isfinite().all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_deeplift_sums_through_encoder_layers(norm_first, batch_first):
    def encode(x, layer):
        return (
            layer(x, src_key_padding_mask=PADDING.expand(len(x), -1))
            if batch_first
            else layer(x.transpose(0, 1)).transpose(0, 1)
        )

    options = {"batch_first": batch_first, "norm_first": norm_first}
    assert_sums(Read(encode, nn.TransformerEncoderLayer(8, 2, 16, **options)), TOKENS, torch.arange(3))


@every_method
def test_an_encoder_layer_of_torch_gives_the_same_map_as_the_block_written_out(explain, block):
    model, x, target = block
    layer = nn.TransformerEncoderLayer(6, 2, 12, activation="gelu", batch_first=True, norm_first=True).double().eval()
    parts = model.query, model.key, model.value
    layer.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts]).detach()
    layer.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts]).detach()
    pairs = [(layer.self_attn.out_proj, model.output), (layer.linear1, model.up), (layer.linear2, model.down)]
    for ours, theirs in [*pairs, (layer.norm1, model.norm1), (layer.norm2, model.norm2)]:
        ours.load_state_dict(theirs.state_dict())

    class Encoded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, model.head

        def forward(self, x):
            return self.head(self.layer(x).mean(1))

    torch.testing.assert_close(explain(Encoded().eval(), x, target), explain(model, x, target), **CLOSE)


def single(function, x, baseline, target):
    """The DeepLIFT map of one output of a function of one sample."""
    model = Function(function)
    return deeplift(model, x[None], torch.tensor([target]), baseline=baseline[None])[0]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_softmax_of_two_scores_is_the_sigmoid_of_their_difference():
    x, baseline = normal(2), normal(2, seed=2)
    expected = single(lambda x: (x[:, :1] - x[:, 1:]).sigmoid(), x, baseline, 0)
    torch.testing.assert_close(single(lambda x: x.softmax(1), x, baseline, 0), expected, **EXACT)


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_a_number_added_to_all_scores_leaves_the_multipliers_of_softmax_as_they_are(function):
    x, baseline = normal(5), normal(5, seed=2)
    plain, shifted = (single(lambda x: function(x, 1), x + s, baseline, 0) / (x + s - baseline) for s in (0, 4))
    torch.testing.assert_close(shifted, plain, **CLOSE)


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_softmax_passes_the_logarithmic_means_of_its_probabilities(function):
    x, baseline = normal(5), normal(5, seed=2)
    for target in range(5):
        expected = twin.rescaled_softmax(x.tolist(), baseline.tolist(), target, function is torch.log_softmax)
        maps = single(lambda x: function(x, 1), x, baseline, target)
        torch.testing.assert_close(maps, torch.tensor(expected, dtype=torch.float64), **EXACT)


def home_made(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


@pytest.mark.parametrize("function", [lambda x: F.layer_norm(x, (5,)), home_made])
def test_deeplift_takes_layer_norm_for_the_product_of_the_centred_sample_and_its_scale(function):
    x, baseline = normal(5), normal(5, seed=2)
    for target in range(5):
        expected = twin.rescaled_layer_norm(x.tolist(), baseline.tolist(), target, 1e-5)
        torch.testing.assert_close(
            single(function, x, baseline, target), torch.tensor(expected, dtype=x.dtype), **CLOSE
        )


MASKED = {
    "filled": lambda z: z.masked_fill(~SEEN, -torch.inf).softmax(-1),
    "added": lambda z: (z + BLINDED).softmax(-1),
    "by hand": lambda z: scored(z + BLINDED),
    "through the logarithm": lambda z: z.masked_fill(~SEEN, -torch.inf).log_softmax(-1).exp(),
}


@pytest.mark.parametrize("name", MASKED)
def test_scores_that_are_masked_out_give_no_nan(name):
    assert_sums(Read(lambda x: MASKED[name](x[..., :6])), TOKENS, torch.arange(3))


def scored(x):
    exponential = x.exp()
    return exponential / exponential.sum(-1, keepdim=True)


def deviation(x):
    return ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt()


# A model -> the tensor that its input is scaled by, which takes nothing.
GATES = {
    "sigmoid": (lambda x: x * x.sigmoid(), torch.sigmoid),
    "hardsigmoid": (lambda x: x * F.hardsigmoid(x), F.hardsigmoid),
    "in place": (lambda x: (1 * x).mul_(x.sigmoid()), torch.sigmoid),
    "through views": (lambda x: x * x.sigmoid()[:, None].expand(-1, 3, -1).select(1, 2), torch.sigmoid),
    "silu": (F.silu, torch.sigmoid),
    "softmax": (lambda x: x * x.softmax(-1), lambda x: x.softmax(-1)),
    "norm": (lambda x: x / x.norm(dim=-1, keepdim=True), lambda x: 1 / x.norm(dim=-1, keepdim=True)),
    "normalize": (lambda x: F.normalize(x, dim=-1), lambda x: 1 / x.norm(dim=-1, keepdim=True)),
    "rsqrt": (lambda x: x * ((x * x).mean(-1, keepdim=True) + 1e-5).rsqrt(), lambda x: 1 / deviation(x)),
    "power": (lambda x: x * ((x * x).mean(-1, keepdim=True) + 1e-5) ** -0.5, lambda x: 1 / deviation(x)),
    "root": (lambda x: x / deviation(x), lambda x: 1 / deviation(x)),
    "rms norm": (lambda x: F.rms_norm(x, (5,), eps=1e-5), lambda x: 1 / deviation(x)),
    "division by one and a sigmoid": (lambda x: x / (1 + x.sigmoid()), lambda x: 1 / (1 + x.sigmoid())),
    "one over a root": (lambda x: x * (1 / deviation(x)), lambda x: 1 / deviation(x)),
    "twice a sigmoid": (lambda x: x * (2 * x.sigmoid()), lambda x: 2 * x.sigmoid()),
    "half a sigmoid": (lambda x: x * (x.sigmoid() / 2), lambda x: x.sigmoid() / 2),
    "what a sigmoid leaves": (lambda x: x * (1 - x.sigmoid()), lambda x: 1 - x.sigmoid()),
    "product of sigmoids": (lambda x: x * (x.sigmoid() * (-x).sigmoid()), lambda x: x.sigmoid() * (-x).sigmoid()),
    "home-made softmax": (lambda x: x * scored(x), lambda x: x.softmax(-1)),
}


@pytest.mark.parametrize("name", GATES)
def test_what_only_scales_takes_no_relevance(name):
    model, gate = GATES[name]
    x, target = normal(4, 5), torch.arange(4) % 4
    expected = x * gate(x) * normal(5, 4, seed=9).T[target]
    for explain in (through_constants, attention_lrp):
        if "softmax" not in name or explain is not attention_lrp:
            torch.testing.assert_close(explain(Read(model), x, target, epsilon=0.0), expected, rtol=1e-10, atol=1e-12)


def test_half_of_each_goes_to_two_factors_that_are_no_gates():
    x, target = normal(4, 5), torch.arange(4)
    weight = normal(5, 4, seed=9).T[target]
    expected = (x * x.roll(1, 1) * weight + x * x.roll(-1, 1) * weight.roll(-1, 1)) / 2
    torch.testing.assert_close(through_constants(Read(lambda x: x * x.roll(1, 1)), x, target, 0.0), expected, **EXACT)


def test_lrp_refuses_a_floor():
    with pytest.raises(NotApplicableError, match="div"):
        through_constants(Read(lambda x: x + torch.div(x, 0.5, rounding_mode="floor")), normal(4, 5), torch.arange(4))
