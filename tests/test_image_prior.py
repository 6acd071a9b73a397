"""Decoders as priors: closed forms, the bound term by term, and data on a curve that no plane holds."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from harness.methods.image_parameters import Box
from harness.methods.image_prior import PrincipalComponents
from harness.methods.variational_autoencoder import CODES, VariationalAutoencoder, negative_bound
from harness.space import InputSpace
from harness.types import NotApplicableError

UNIT = InputSpace("image", (0.0,), (1.0,))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bars(count, side=16):
    """Images of one bright bar each, at a place of its own: a curve in the space of images, far from any plane."""
    places = torch.arange(side).repeat(count // side)
    rows = (torch.arange(side) - places[:, None]).double()
    return (-(rows.square()) / 4).exp()[:, None, :, None].expand(-1, 1, -1, side).contiguous()


def off_the_data(images, x):
    """The mean distance of images to the nearest sample."""
    return torch.cdist(images.flatten(1), x.flatten(1)).amin(1).mean().item()


def codes_of(decoder, count=200):
    return normal(count, decoder.codes, seed=3)


def test_the_linear_decoder_is_that_of_principal_components_with_codes_of_one_length():
    x = normal(30, 2, 4, 5) * torch.linspace(0.1, 1, 40, dtype=torch.float64).view(2, 4, 5)
    box = Box.of(InputSpace("image", (0.0,), (1.0,), low=-100.0, high=100.0), x)
    decoder = PrincipalComponents.fitted(x, box, codes=6)
    theirs = PCA(6, svd_solver="full").fit(x.flatten(1).numpy())
    spanned = decoder.components.flatten(1).numpy()
    np.testing.assert_allclose(np.linalg.norm(spanned, axis=1) ** 2, theirs.explained_variance_)
    np.testing.assert_allclose(
        np.abs(spanned @ theirs.components_.T), np.diag(theirs.explained_variance_**0.5), atol=1e-9
    )
    code = normal(5, 6)
    expected = theirs.mean_ + 6**0.5 * (code / code.norm(dim=1, keepdim=True)).numpy() @ spanned
    np.testing.assert_allclose(decoder.images(code).flatten(1).numpy(), expected)
    torch.testing.assert_close(decoder.images(7 * code), decoder.images(code))
    narrow = PrincipalComponents.fitted(x, Box.of(InputSpace("image", (0.0,), (1.0,)), x)).images(normal(5, 29))
    assert narrow.min() >= 0
    assert narrow.max() <= 1


def test_the_bound_is_likelihood_and_divergence():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(12, 6).double(), nn.Linear(3, 12).double()
    values, noise = torch.rand(5, 12, dtype=torch.float64).round(), normal(5, 3)
    mean, log_variance = encoder(values)[:, :3], encoder(values)[:, 3:]
    posterior = Normal(mean, log_variance.exp().sqrt())
    told = Independent(Bernoulli(logits=decoder(mean + posterior.stddev * noise)), 1)
    divergence = kl_divergence(posterior, Normal(torch.zeros(3).double(), torch.ones(3).double())).sum(1)
    torch.testing.assert_close(negative_bound(encoder, decoder, values, noise), divergence - told.log_prob(values))


def test_a_trained_decoder_stays_on_a_curve_that_no_plane_holds():
    x = bars(320)
    box = Box.of(UNIT, x)
    trained, untrained = (VariationalAutoencoder.fitted(x, box, 0, steps) for steps in (1500, 0))
    linear = PrincipalComponents.fitted(x, box, CODES)
    off, of_linear, of_untrained = (
        off_the_data(each.images(codes_of(each)), x) for each in (trained, linear, untrained)
    )
    assert off < 0.3 * torch.cdist(x[:16].flatten(1), x[:16].flatten(1)).median().item()
    assert off < 0.75 * of_linear
    assert off < 0.5 * of_untrained


def test_the_trained_decoder_is_a_function_of_the_data_and_the_seed():
    x = bars(32).float()
    box = Box.of(UNIT, x)
    before = torch.random.get_rng_state()
    one, again, other = (VariationalAutoencoder.fitted(x, box, seed, 20) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    code = codes_of(one, 4).float()
    assert torch.equal(one.images(code), again.images(code))
    assert not torch.allclose(one.images(code), other.images(code))
    torch.testing.assert_close(one.images(7 * code), one.images(code))
    assert one.images(code).dtype == torch.float32


def test_the_trained_decoder_keeps_to_the_valid_range_and_shape_of_any_input():
    space = InputSpace("signal", (0.5,), (0.25,))
    x = 2 * normal(20, 3, 30).clamp(-1, 1)
    decoder = VariationalAutoencoder.fitted(x, Box.of(space, x), 0, 200)
    images = decoder.images(codes_of(decoder))
    assert images.shape == (200, 3, 30)
    assert images.min() >= -2
    assert images.max() <= 2
    assert images.std(0).mean() > 0.01


def test_samples_with_too_many_values_are_refused_with_what_to_take_instead():
    x = torch.zeros(2, 3, 80, 80)
    with pytest.raises(
        NotApplicableError, match=r"at most 16384 values, got \[3, 80, 80\]: take prior: principal_comp"
    ):
        VariationalAutoencoder.fitted(x, Box.of(UNIT, x), 0)
