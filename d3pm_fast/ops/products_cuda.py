"""The scan of cumulative products by the CUDA C++ kernel."""

import torch
from torch import Tensor

from .library import pointer, start_cuda


def scan(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    """Return the products, or of their gradient the adjoints."""
    out = torch.empty_like(matrices, dtype=None if upstream is None else torch.float64)
    start_cuda(
        "scan",
        matrices,
        str(matrices.dtype),
        *matrices.shape[:2],
        matrices.data_ptr(),
        pointer(upstream),
        out.data_ptr(),
    )
    return out
