"""The distractor task: the canvases are what they are called, and a network that learns it looks at the truth."""

from pathlib import Path

import pytest
import torch

from cases import case_of
from harness.catalogue import METHODS
from harness.data.bundled import mnist_5k
from harness.data.distractor import distractor
from harness.model_entries import models_of
from harness.places import Place
from harness.progress import silent
from harness.subjects import load_entry


def halves(data):
    """Both digits of each canvas, the one that decides first, and whether it is on the left; found by the mask."""
    rows = range(len(data))
    x, masks = data.batch(rows), data.masks(rows)
    left = masks[..., :28].flatten(1).any(1)
    assert (left != masks[..., 28:].flatten(1).any(1)).all()
    first, second = x[..., :28], x[..., 28:]
    where = left[:, None, None, None]
    return torch.where(where, first, second), torch.where(where, second, first), left


def known(digits):
    return {digit.numpy().tobytes(): (row, int(label)) for row, (digit, label) in enumerate(zip(*digits, strict=True))}


@pytest.mark.parametrize("part", ["held out", "train"])
def test_a_digit_below_five_decides_and_the_other_is_of_the_same_part_of_mnist(part):
    data, digits = distractor(), mnist_5k()
    data, digits = (data, digits) if part == "held out" else (data.train, digits.train)
    assert len(data) == (1000 if part == "held out" else 4000)
    assert data.batch([0]).shape == (1, 1, 28, 56)
    by_content = known((digits.batch(range(len(digits))), digits.labels))
    deciding, other, left = halves(data)
    found = [[by_content[each.numpy().tobytes()] for each in half] for half in (deciding, other)]
    assert [label for _, label in found[0]] == data.labels.tolist()
    assert {label for _, label in found[1]} == {5, 6, 7, 8, 9}
    assert set(data.labels.bincount().tolist()) == {len(data) // 5}
    for half in found:  # every digit in two pairs
        assert sorted(row for row, _ in half) == sorted(2 * sorted({row for row, _ in half}))
    assert abs(left.double().mean() - 0.5) < 4 * 0.5 / len(data) ** 0.5
    # Neither the distractor nor the side tells the class: chi-squared of their tables is what chance gives.
    for told in (torch.tensor([label - 5 for _, label in found[1]]), left.long()):
        table = torch.stack([(data.labels == c)[:, None] * torch.nn.functional.one_hot(told) for c in range(5)]).sum(1)
        expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
        freedom = 4 * (table.shape[1] - 1)
        statistic = float(((table - expected) ** 2 / expected).sum())
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_the_mask_is_the_ink_of_the_digit_that_decides():
    data = distractor()
    rows = range(50)
    deciding, _, left = halves(data)
    for row in rows:
        mask = torch.zeros(1, 28, 56)
        columns = slice(0, 28) if left[row] else slice(28, 56)
        mask[..., columns] = (deciding[row] > 0).float()
        torch.testing.assert_close(data.masks([row])[0], mask, rtol=0, atol=0)


def test_it_is_the_same_each_time_and_no_canvas_is_in_both_parts():
    data = distractor()
    again = distractor.__wrapped__()
    assert data.fingerprint == again.fingerprint
    contents = [{x.numpy().tobytes() for x in part.batch(range(len(part)))} for part in (data, data.train)]
    assert not contents[0] & contents[1]
    assert len({*data.ids, *data.train.ids}) == 5000


# --- what a network learns on it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    (entry,) = models_of([{"source": "mnist-cnn", "data": "distractor"}], None, Place("test"))
    return load_entry(entry, Path(), seed=0, device=torch.device("cpu"), progress=silent)


def answers(model, first, second, left):
    where = left[:, None, None, None]
    x = torch.where(where, torch.cat([first, second], 3), torch.cat([second, first], 3))
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(250)])


@pytest.mark.slow
def test_a_network_learns_it_and_uses_the_digit_that_decides_alone(trained):
    loaded, data = trained
    model = loaded.model
    deciding, other, left = halves(data)
    before = answers(model, deciding, other, left)
    assert (before == data.labels).double().mean() >= 0.95
    # Other distractors, or the same on the other side: hardly anything changes.
    for shift in (1, 300, 777):
        assert (answers(model, deciding, other.roll(shift, 0), left) == before).double().mean() >= 0.97
    assert (answers(model, deciding, other, ~left) == before).double().mean() >= 0.97
    # Another digit that decides: the answer follows it.
    for shift in (1, 300, 777):
        after = answers(model, deciding.roll(shift, 0), other, left)
        assert (after == before.roll(shift, 0)).double().mean() >= 0.95
        changed = data.labels.roll(shift, 0) != data.labels
        assert (after != before)[changed].double().mean() >= 0.95


@pytest.mark.slow
def test_a_partner_memorizes_noise_and_a_second_training_learns_the_task(trained):
    loaded, _ = trained
    partner = loaded.partner()
    assert partner.invalid == ""
    assert partner.train_accuracy >= 0.95
    assert loaded.retrained_test_accuracy >= 0.95


def mass(maps, masks):
    """The share of the absolute relevance that lies on the mask, of each sample."""
    relevance = maps.abs().sum(1, keepdim=True).flatten(1)
    return (relevance * masks.flatten(1)).sum(1) / relevance.sum(1)


def deviations(difference):
    """The mean of paired differences in units of its standard error."""
    return float(difference.mean() / difference.std() * len(difference) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "count"),
    [("input_x_gradient", {}, 200), ("occlusion", {"window": 7, "stride": 4, "baseline": "black"}, 60)],
)
def test_relevance_lies_on_the_truth_for_trained_networks_and_not_for_others(trained, method, options, count):
    loaded, data = trained
    x, masks, labels = data.batch(range(count)), data.masks(range(count)), data.labels[:count]
    case = case_of(loaded.model, x, labels, (method, METHODS[method].resolve(options)), space=data.space)
    truth, distracting = (half.flatten(1) for half in (masks, (x > 0) * (1 - masks)))
    ignorant = [loaded.twin(draw) for draw in range(4)]
    ignorant.append(loaded.partner().model)

    def preference(model):
        """How much more relevance lies on the ink of the one digit than on that of the other, by the area of both."""
        relevance = case.explain(model).abs().flatten(1)
        relevance = relevance / relevance.sum(1, keepdim=True)
        share = truth.sum(1) / (truth + distracting).sum(1)
        return (relevance * truth).sum(1) - share * (relevance * (truth + distracting)).sum(1)

    learnt = [preference(model) for model in (loaded.model, loaded.retrained())]
    assert all(deviations(each) > 4 for each in learnt)
    for model in ignorant:
        random = preference(model)
        assert abs(deviations(random)) < 4
        assert all(deviations(each - random) > 4 for each in learnt)


@pytest.mark.slow
def test_the_oracle_is_all_on_the_truth_and_noise_at_its_share_of_the_area(trained):
    loaded, data = trained
    x, masks, labels = data.batch(range(200)), data.masks(range(200)), data.labels[:200]
    case = case_of(loaded.model, x, labels, "oracle", space=data.space)
    case.masks = masks
    assert (mass(case.maps, masks) == 1).all()
    area = masks.flatten(1).mean(1)
    noise = mass(case_of(loaded.model, x, labels, "random", space=data.space).maps, masks)
    assert abs((noise - area).mean()) < 4 * float((noise - area).std()) / 200**0.5
