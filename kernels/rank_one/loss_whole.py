"""The rest of whole rows where pi is 1/K: one exponential and one reciprocal a class.

With ``u_j = c e_j`` a class of the rest has

    1 + g_j = ratio (1 + u_j),   h_j = (h_0 + u_j) / (1 + u_j),   h_0 = shift / ratio,

so that of ``m_j = e_j / (1 + u_j)`` the sum of e_j h_j is that of ``m_j (h_0 + u_j)``, and the
gradient is ``m_j ((steep + flat) u_j + steep h_0 + flat)``. As phi(g) = g - log(1 + g),

    sum phi(g_j) = n phi(shift) + ratio sum u_j - sum log(1 + u_j)

over n classes, whose logarithms are those of products. Where p is close to q these parts cancel:
then phi is summed class by class.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import LN2, log, phi, power_and_mantissa, reciprocal
from ..common.tile import classes_from, on_tile, row_sum, store_tile
from .loss_rest import curve, exponentials, is_excluded, load_rest
from .loss_tokens import count_special

LARGEST = tl.constexpr(1e9)  # of c: products of four are in float32's range


class Bend(NamedTuple):
    """``u_j = c e_j``, and h where that is 0."""

    c: Any
    h_0: Any


@triton.jit
def bend_of(line):
    """Return the bend of each token; h = 1 on that of one without curvature."""
    return Bend(line.slope / line.ratio, line.shift / line.ratio)


@triton.jit
def curvature_of_whole(a, chain, tokens, classes, e, row, top, solved, line, bend):
    """Return m, and the sums of phi(g) / K and of e h over the rest."""
    u = bend.c * e
    y = 1.0 + u
    m = e * reciprocal(y)
    sum_h = row_sum(m * (bend.h_0 + u))
    count = (a.num_classes - count_special(a, chain, tokens)).to(e.dtype)
    num_classes = chain.num_classes.to(e.dtype)
    slope = solved.slope * num_classes
    parts = count * phi(solved.shift, solved.ratio) + slope * row.e_rest
    sum_phi = parts - sum_of_logs(y)
    cancels = (sum_phi < least_sum(a, parts, count)) | (slope > LARGEST * solved.ratio)
    cancels &= solved.curved
    if tl.max(cancels.to(tl.int32), axis=0) > 0:
        by_class = sum_of_phi(a, chain, tokens, line, top, classes)
        sum_phi = tl.where(cancels, by_class, sum_phi)
    return m, sum_phi / num_classes, sum_h


@triton.jit
def least_sum(a, parts, count):
    """Return which sum of phi has enough digits left of its parts and of its products."""
    if a.logits.dtype.element_ty.primitive_bitwidth == 16:
        return tl.maximum(parts * (1.0 / 32), count * (1.0 / 128))
    else:
        return tl.maximum(parts * (1.0 / 8), count * (1.0 / 32))


@triton.jit
def sum_of_logs(y):
    """Return the sum of log(y_j) of each row, y_j in [1, 1e9]: in float32 by products.

    Of four numbers first, then of the mantissas of these: at most 128, each within sqrt(2) of 1.
    """
    HIGH: tl.constexpr = y.shape[0]
    ROWS: tl.constexpr = y.shape[1]
    LOW: tl.constexpr = y.shape[2]
    if y.dtype == tl.float64:
        return row_sum(tl.log(y))
    else:
        FOUR: tl.constexpr = 4 if HIGH > 4 else HIGH
        VECTOR: tl.constexpr = 8 if LOW > 8 else LOW
        of_four = tl.reduce(tl.reshape(y, [HIGH // FOUR, FOUR, ROWS, LOW]), 1, product)
        powers, mantissas = power_and_mantissa(of_four)
        powers, mantissas = tl.reduce((powers, mantissas), 0, sum_and_product)
        shape: tl.constexpr = [ROWS, LOW // VECTOR, VECTOR]
        of_thread = tl.reshape(powers, shape), tl.reshape(mantissas, shape)
        powers, mantissas = tl.reduce(of_thread, 2, sum_and_product)
        more, mantissas = power_and_mantissa(mantissas)
        powers, mantissas = tl.reduce((powers + more, mantissas), 1, sum_and_product)
        return log(mantissas) + powers.to(tl.float32) * LN2


@triton.jit
def product(x, y):
    """Combine two numbers."""
    return x * y


@triton.jit
def sum_and_product(n, x, m, y):
    """Combine two numbers 2^n x and 2^m y."""
    return n + m, x * y


@triton.jit
def store_gradient_of_whole(a, tokens, classes, e, m, bend, result, factor):
    """Write the gradient of the rest; what it writes to the special classes is to be replaced."""
    flat = on_tile(tl.where(tokens.settled, tokens.value, result.flat * factor))
    steep = on_tile(result.steep * factor)
    gradient = m * ((steep + flat) * bend.c * e + (steep * bend.h_0 + flat))
    store_tile(a.grad, classes, gradient)


@triton.jit
def sum_of_phi(a, chain, tokens, line, top, classes):
    """Return the sum of phi(g) over the rest, a part of the tile at a time, which is read again."""
    ROWS: tl.constexpr = classes.j.shape[1]
    LOW: tl.constexpr = classes.j.shape[2]
    total = tl.zeros_like(top)
    for start in range(0, a.num_classes, LOW):
        part = classes_from(a, start, ROWS, 1, LOW)
        e = exponentials(a, load_rest(a, chain, tokens, part, top.dtype), top)
        g, y = curve(chain, part, e, line)
        total += row_sum(tl.where(is_excluded(a, chain, tokens, part), 0.0, phi(g, y)))
    return total
