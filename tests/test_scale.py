"""Gradients multiplied in place by what comes from above."""

import pytest
import torch
from helpers.compare import compute_dtype, same_bits

from d3pm_fast import _environment
from d3pm_fast.ops.scale import ENTRIES, scale_

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def scale_by_triton(grad, factor):
    from d3pm_fast.kernels.common.scale import scale_ as by_triton

    device = "cpu" if _environment.INTERPRET else "cuda"
    moved = grad.to(device)
    assert by_triton(moved, factor.to(device).contiguous()) is moved
    return grad.copy_(moved)


@pytest.fixture(params=["cpu", "triton"])
def scale(request, monkeypatch):
    if request.param == "cpu":
        yield scale_
        return
    pytest.importorskip("triton")
    from conftest import serve

    with serve("triton", monkeypatch):
        yield scale_by_triton


def product(grad, factor):
    return (grad.to(factor.dtype) * factor.unsqueeze(-1)).to(grad.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_token_has_its_factor(dtype, scale):
    grad = torch.randn(3, 4, 700).to(dtype)
    grad[0, 0, 0] = torch.nan
    factor = torch.randn(3, 4, dtype=compute_dtype(dtype))
    factor[1] = 1
    factor[2, 3] = 0
    expected = product(grad, factor)
    assert same_bits(scale(grad, factor), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_factor_for_all_tokens_may_be_spread_without_memory(dtype, scale):
    grad = torch.randn(3, 5, 7).to(dtype)
    factor = torch.tensor(-0.3, dtype=compute_dtype(dtype)).expand(3, 5)
    expected = product(grad, factor)
    assert same_bits(scale(grad, factor), expected)
    grad = torch.randn(0, 5, 7).to(dtype)
    assert scale(grad, factor[:0]).shape == grad.shape


def test_more_entries_than_are_multiplied_at_a_time():
    num_classes = 1 << 12
    grad = torch.randn(3 * ENTRIES // num_classes + 1, num_classes).bfloat16()
    factor = torch.randn(len(grad))
    expected = product(grad, factor)
    assert scale_(grad, factor) is grad
    assert same_bits(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_copy_of_a_gradient_is_made(dtype):
    """PyTorch alone widens 16 bits before it multiplies them with a vector of 32."""
    grad = torch.ones(1024, 4096).to(dtype)
    factor = torch.rand(1024, dtype=compute_dtype(dtype))
    with torch.profiler.profile(profile_memory=True) as profile:
        scale_(grad, factor)
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert max(sizes, default=0) <= ENTRIES * factor.itemsize
