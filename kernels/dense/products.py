"""Cumulative products of matrices: rows do not meet, so a program takes one through all steps."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch


@triton.jit
def scan_of_row(
    matrices, terms, out, num_steps, num_classes, ADJOINT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A row of ``Q_1 ... Q_t``, or of ``A_t = terms_t + A_{t+1} Q_{t+1}^T`` from the last t on."""
    k = tl.arange(0, BLOCK)[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    inside = (k < num_classes) & (j < num_classes)
    size = tl.full([], num_classes, tl.int64) * num_classes
    column = tl.arange(0, BLOCK)
    has_column = column < num_classes
    at = tl.program_id(0).to(tl.int64) * num_classes + column
    if ADJOINT:
        stride = -size
        at += (num_steps - 1) * size
        matrices += (num_steps - 1) * size
        entries = j * num_classes + k
    else:
        stride = size
        matrices += size
        entries = k * num_classes + j
    running = tl.load(terms + at, mask=has_column, other=0.0).to(tl.float64)
    tl.store(out + at, running.to(out.dtype.element_ty), mask=has_column)
    for _ in range(1, num_steps):
        matrix = tl.load(matrices + entries, mask=inside, other=0.0).to(tl.float64)
        running = tl.sum(tl.expand_dims(running, 1) * matrix, axis=0)
        at += stride
        if ADJOINT:
            running += tl.load(terms + at, mask=has_column, other=0.0).to(tl.float64)
        tl.store(out + at, running.to(out.dtype.element_ty), mask=has_column)
        matrices += stride


def scan(matrices: Tensor, upstream: Tensor | None) -> Tensor:
    """Return the products in the matrices' dtype, or of their gradient the adjoints in float64."""
    out = torch.empty_like(matrices, dtype=None if upstream is None else torch.float64)
    num_steps, num_classes, _ = matrices.shape
    block = max(triton.next_power_of_2(num_classes), 8)
    launch(
        scan_of_row, num_classes if num_steps else 0, matrices,
        matrices, matrices if upstream is None else upstream, out, num_steps, num_classes,
        upstream is not None, block, num_warps=block // 8,
    )  # fmt: skip
    return out
