"""Random subsets: what is drawn, sorted and summed at once is bounded, however many samples and units there are."""

import torch

from cases import Linear, case_of
from harness.metrics import subsets
from harness.metrics.perturbation import Removal
from harness.random import Draws


def removing(n=6, superpixels=0):
    x = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    model = Linear(torch.ones(2, 3 * 81, dtype=torch.float64))
    return Removal("black", superpixels=superpixels).on(case_of(model, x, torch.zeros(n, dtype=torch.int64), x))


def test_few_samples_at_once_have_the_ranks_of_all_at_once(monkeypatch):
    bits, drawn = Draws.bits, []
    monkeypatch.setattr(Draws, "bits", lambda *args, **options: drawn.append(found := bits(*args, **options)) or found)
    for superpixels in (0, 40):
        whole = subsets.subset_ranks(removing(superpixels=superpixels), 30)
        with monkeypatch.context() as context:
            context.setattr(subsets, "VALUES", 2 * 30 * whole.shape[2])
            drawn.clear()
            assert torch.equal(subsets.subset_ranks(removing(superpixels=superpixels), 30), whole)
        assert [len(each) for each in drawn] == [2, 2, 2]
        # By the definition, at once: units that a sample does not have come last.
        here = removing(superpixels=superpixels)
        words = bits(here.case.draws("perturbation", "subsets"), whole.shape[2], 30).transpose(1, 2)
        expected = words.masked_fill((here.sizes == 0)[:, None], 2**32).argsort(2).argsort(2)
        assert torch.equal(whole.long(), expected)


def test_a_sample_that_is_too_much_by_itself_goes_alone(monkeypatch):
    whole = subsets.subset_ranks(removing(), 30)
    monkeypatch.setattr(subsets, "VALUES", 7)
    assert torch.equal(subsets.subset_ranks(removing(), 30), whole)


def test_sums_over_subsets_are_those_of_a_product_of_matrices(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    sums, chosen = torch.randn(6, 81, generator=generator).double(), torch.rand(6, 30, 81, generator=generator) < 0.3
    expected = (chosen.double() @ sums[:, :, None])[..., 0]
    for values in (2**22, 2 * 30 * 81, 7):
        monkeypatch.setattr(subsets, "VALUES", values)
        torch.testing.assert_close(subsets.subset_sums(sums, chosen), expected, rtol=0, atol=1e-12)
