"""Products of float32 rows with a matrix that is a sum of three bfloat16 ones."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import INTERPRETED


class Parts(NamedTuple):
    """Three bfloat16 numbers, whose sum is a float32 one to its last digit."""

    high: Any
    middle: Any
    low: Any


@triton.jit
def split(x):
    """Return the parts of float32 numbers."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return Parts(high, middle, low)


@triton.jit
def load_parts(a, steps, rows, i, j):
    """Return ``Qbar_s[i, j]`` less what all its rows have in common."""
    inside = (i < a.num_classes) & (j < a.num_classes)
    size = tl.full([], a.num_classes, tl.int64) * a.num_classes
    high = steps.parts + rows.step.to(tl.int64) * 3 * size
    entry = i * a.num_classes + j
    return Parts(
        tl.load(high + entry, mask=inside, other=0.0),
        tl.load(high + size + entry, mask=inside, other=0.0),
        tl.load(high + 2 * size + entry, mask=inside, other=0.0),
    )


@triton.jit
def sum_of(parts):
    """Return the numbers themselves."""
    return (parts.low.to(tl.float32) + parts.middle.to(tl.float32)) + parts.high.to(tl.float32)


@triton.jit
def multiply(x, parts, total, PRECISION: tl.constexpr):
    """Return a total and x times a matrix.

    Of parts, the least products first; they round in a sum of their own, which is added at once.
    """
    if PRECISION == "bf16x6":
        own = split(x)
        product = dot(own.low, parts.high, tl.zeros_like(total))
        product = dot(own.middle, parts.middle, product)
        product = dot(own.high, parts.low, product)
        product = dot(own.middle, parts.high, product)
        product = dot(own.high, parts.middle, product)
        return total + dot(own.high, parts.high, product)
    else:
        return tl.dot(x, sum_of(parts), total, input_precision=PRECISION)


@triton.jit
def dot(a, b, total):
    """Add a product of bfloat16 numbers; Triton's interpreter multiplies them as float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total)
