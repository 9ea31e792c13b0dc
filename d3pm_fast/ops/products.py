"""``torch.ops.d3pm_fast.*products_scan``: cumulative products of matrices.

``scan(matrices, None)`` returns the products in the matrices' dtype, ``scan(matrices, upstream)``
their adjoints ``A_t = upstream_t + A_{t+1} Q_{t+1}^T`` in float64. All are contiguous
``(T, K, K)``.
"""

from typing import Any

import torch
from torch import Tensor

from .host import pointer, start_cuda
from .kernel import triton_kernel
from .register import Operation

MOST_CLASSES = 64  # with more, a Triton program spills registers in float64
MOST_BLOCKED_CLASSES = 32  # up to here twice as many products cost less than T calls


def _fake_scan(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    return torch.empty_like(matrices, dtype=None if upstream is None else torch.float64)


products_scan = Operation("products_scan", _fake_scan)


def scan_of(implementation: str, num_classes: int) -> Any:
    """Return the scan of an implementation; that of torch where there are too many classes."""
    return scan_by_torch if num_classes > MOST_CLASSES else products_scan.kernel(implementation)


def scan_by_torch(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    """Return the products, or of their gradient the adjoints, by torch's matrix products."""
    wide = matrices.double()
    if upstream is None:
        products = _products(wide)
        # No conversion where there is none to do: compiled by PyTorch 2.11 as the result of an
        # autograd.Function, it cuts the graph, and the gradient is 0.
        return products if matrices.dtype == wide.dtype else products.to(matrices.dtype)
    adjoint = upstream.double().clone()
    for t in range(len(wide) - 2, -1, -1):
        adjoint[t] += adjoint[t + 1] @ wide[t + 1].T
    return adjoint


def _products(matrices: Tensor) -> Tensor:
    num_steps, num_classes, _ = matrices.shape
    if num_classes > MOST_BLOCKED_CLASSES or num_steps < 4:
        return _one_by_one(matrices.unsqueeze(0)).squeeze(0)
    length = int(num_steps**0.5)
    whole = num_steps // length * length
    blocks = _one_by_one(matrices[:whole].unflatten(0, (-1, length)))
    before = _one_by_one(blocks[:-1, -1].unsqueeze(0)).squeeze(0)  # of all earlier blocks
    products = torch.cat([blocks[0], (before.unsqueeze(1) @ blocks[1:]).flatten(0, 1)])
    if whole == num_steps:
        return products
    rest = _one_by_one(matrices[whole:].unsqueeze(0)).squeeze(0)
    return torch.cat([products, products[-1] @ rest])


def _one_by_one(matrices: Tensor) -> Tensor:
    """Return the products along the second dimension of ``(N, T, K, K)``."""
    products = [matrices[:, 0]] if matrices.shape[1] else []
    for t in range(1, matrices.shape[1]):
        products.append(products[-1] @ matrices[:, t])
    return torch.stack(products, dim=1) if products else matrices


def _on_cuda(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    out = _fake_scan(matrices, upstream)
    tensors = matrices.data_ptr(), pointer(upstream), out.data_ptr()
    start_cuda("scan", matrices, str(matrices.dtype), (*matrices.shape[:2], *tensors))
    return out


products_scan.serve("cpu", scan_by_torch, is_registered=False)
products_scan.serve("cuda", _on_cuda)
products_scan.serve("triton", triton_kernel("dense.products.scan"))
