"""Multiplies a gradient by numbers on the device, without a pass over it where they are 1."""

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK = 4096


@triton.jit
def scale_of_entries(grad, factor_at, per_factor, size, BLOCK: tl.constexpr):
    """Read nothing but factors where they are 1; ``per_factor`` None has one for all entries."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    if per_factor is None:
        factor = tl.load(factor_at + tl.zeros([BLOCK], tl.int32))
    else:
        # In 32 bits, but for one division.
        ahead = (first % per_factor).to(tl.int32) + tl.arange(0, BLOCK)
        token = first // per_factor + ahead // per_factor
        factor = tl.load(factor_at + token, mask=at < size, other=1.0)
    if tl.max((factor != 1.0).to(tl.int32), axis=0) > 0:
        values = tl.load(grad + at, mask=at < size).to(factor.dtype) * factor
        tl.store(grad + at, values.to(grad.dtype.element_ty), mask=at < size)


def scale_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply the gradient, ``(*S, K)``, in place by one number or by one for each token."""
    size, per_factor = grad.numel(), grad.shape[-1] if factor.ndim else None
    launch(
        scale_of_entries, triton.cdiv(size, BLOCK), grad,
        grad, factor, per_factor, size, BLOCK, num_warps=8,
    )  # fmt: skip
    return grad
