"""How a tile's gradient is written, ``s (G - its mean under s)`` with ``G = r Qbar_s^T``.

At the anchor it is minus the sum of all others, which keeps the digits of a sure prediction.
"""

import triton
import triton.language as tl

from ..common.math import rounded_to


@triton.jit
def store_row(a, rows, classes, values):
    """Write values of classes; 0 in rows that do not count, NaN in those with a bad index."""
    other = tl.where(rows.counts, float("nan"), 0.0)
    values = tl.where(rows.reads, values, other[:, None])
    at = a.out + rows.at[:, None] * a.num_classes + classes
    inside = rows.inside[:, None] & (classes < a.num_classes)
    tl.store(at, rounded_to(values, a.out.dtype.element_ty), mask=inside)


@triton.jit
def store_anchor(a, rows, others):
    """Write the anchor's gradient, once all threads have written the others'."""
    tl.debug_barrier()
    at = a.out + rows.at * a.num_classes + rows.anchor
    tl.store(at, rounded_to(-others, a.out.dtype.element_ty), mask=rows.live)
