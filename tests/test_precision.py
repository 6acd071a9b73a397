"""Single precision is single precision unless somebody asks for less, and afterwards everything is as it was."""

import pytest
import torch
from torch import nn

import harness
from harness.precision import computing_in

cudnn = torch.backends.cudnn


def state():
    return torch.get_float32_matmul_precision(), cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


@pytest.fixture
def as_torch_starts():
    matmul, together = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    cudnn.allow_tf32 = together


def test_torch_starts_with_less_for_convolutions_and_we_do_not(as_torch_starts):
    torch.backends.cudnn.allow_tf32 = True
    before = state()
    with computing_in("float32"):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not cudnn.allow_tf32
    assert state() == before
    with computing_in("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        assert cudnn.allow_tf32
    assert state() == before


def test_what_somebody_has_set_apart_is_so_again_also_after_an_error(as_torch_starts):
    torch.set_float32_matmul_precision("medium")
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "ieee", "tf32"
    before = state()
    with pytest.raises(RuntimeError, match="on the way"), computing_in("float32"):
        raise RuntimeError("on the way")
    assert state() == before


def test_it_is_part_of_the_key_and_recorded():
    model, x = nn.Sequential(nn.Linear(6, 3)).eval(), torch.randn(4, 6)
    cells = [
        harness.evaluate(model, x, methods=["gradient"], metrics=["sparseness"], precision=precision).cells
        for precision in ("float32", "tf32")
    ]
    assert [each["matmul_precision"][0] for each in cells] == ["highest", "high"]
    assert cells[0]["key"][0] != cells[1]["key"][0]


def test_an_unknown_one_is_an_input_error(monkeypatch):
    with pytest.raises(harness.InputError, match="--precision is float32 or tf32, got 'half'"):
        computing_in.__wrapped__.__wrapped__("half").__next__()


def test_the_setting_of_all_can_be_read_afterwards(as_torch_starts):
    for together in (True, False):
        cudnn.allow_tf32 = together
        with computing_in("float32"):
            assert not cudnn.allow_tf32
        assert cudnn.allow_tf32 == together
