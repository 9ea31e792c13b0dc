"""The smallest operation, by every implementation: the example of docs/design.md."""

import pytest
import torch
from helpers.compare import same_bits

from d3pm_fast import ops
from d3pm_fast.reference.logspace import compute_dtype

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
SIZES = [(3, 4, 1), (2, 3, 7), (5, 1, 27), (1, 3, 256), (1, 1, 9001), (0, 3, 5)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def gap(impl):
    """The operation on CPU tensors, or on copies on a GPU where its kernels are for one."""
    on = "cuda" if torch.cuda.is_available() and impl in ALSO_BY else "cpu"
    return lambda *tensors: ops.gap.kernel(impl)(*(x.to(on) for x in tensors)).cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_largest_logit_less_that_of_the_class(gap, size, dtype):
    *shape, num_classes = size
    logits = torch.randn(*size).to(dtype)
    logits[..., -1] = -torch.inf if num_classes > 1 else 0.5
    x = torch.randint(num_classes, tuple(shape))
    expected = [
        max(row.tolist()) - row[token].item()
        for row, token in zip(logits.flatten(0, -2), x.flatten(), strict=True)
    ]
    expected = torch.tensor(expected, dtype=torch.float64).view(shape)
    assert same_bits(gap(logits, x), expected.to(compute_dtype(dtype)))


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_bad_class_is_an_error_on_the_cpu_and_nan_elsewhere(gap, impl, bad):
    logits, x = torch.randn(2, 3), torch.tensor([1, bad])
    if impl in ALSO_BY:
        assert gap(logits, x).isnan().tolist() == [False, True]
        return
    with pytest.raises((IndexError, RuntimeError)):
        gap(logits, x)
