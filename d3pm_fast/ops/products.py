"""The scan of cumulative products, of each implementation.

``scan(matrices, None)`` returns the products in the matrices' dtype, ``scan(matrices, upstream)``
their adjoints ``A_t = upstream_t + A_{t+1} Q_{t+1}^T`` in float64. All are contiguous
``(T, K, K)``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import products_cuda, products_torch
from .library import Deferred, library

Scan = Callable[[Tensor, Tensor | None], Tensor]

MOST_CLASSES = 64  # with more, a Triton program spills registers in float64


def _fake(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    return torch.empty_like(matrices, dtype=None if upstream is None else torch.float64)


def _register(prefix: str, kernel: Scan) -> Scan:
    name = f"{prefix}products_scan"
    library.define(f"{name}(Tensor matrices, Tensor? upstream) -> Tensor")
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"d3pm_fast::{name}", _fake, lib=library)
    return getattr(torch.ops.d3pm_fast, name)  # type: ignore[no-any-return]


_ON_GPU = {
    "triton": _register("triton_", Deferred("d3pm_fast.kernels.products").scan),
    "cuda": _register("cuda_", products_cuda.scan),
}


def scan_of(name: str, num_classes: int) -> Scan:
    """Return the scan of an implementation; torch's where it has none of its own."""
    if num_classes > MOST_CLASSES:
        return products_torch.scan
    return _ON_GPU.get(name, products_torch.scan)
