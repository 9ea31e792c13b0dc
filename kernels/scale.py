"""Multiplies a gradient by a number on the device, without a pass over it where that is 1."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK = 4096


@triton.jit
def scale_of_entries(grad, factor_at, size, BLOCK: tl.constexpr):
    """Read nothing but the factor where it is 1."""
    factor = tl.load(factor_at)
    if factor != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(grad + at, mask=at < size).to(factor.dtype) * factor
        tl.store(grad + at, values.to(grad.dtype.element_ty), mask=at < size)


def scale_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply the gradient, contiguous, in place."""
    size = grad.numel()
    launch(scale_of_entries, triton.cdiv(size, BLOCK), grad, grad, factor, size, BLOCK, num_warps=8)
    return grad
