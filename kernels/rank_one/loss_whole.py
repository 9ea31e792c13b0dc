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

from ..common.math import LN2, LOG2E, fast_exp2, fast_log, phi, reciprocal, sum_of_phi
from ..common.tile import classes_from, on_tile, row_sum, store_tile
from .loss_rest import curve, is_excluded, load_rest
from .loss_row import Row
from .loss_tokens import count_special

LARGEST = tl.constexpr(1e9)  # of c: products of four are in float32's range
HUGE = tl.constexpr(1e6)  # of logits


class Level(NamedTuple):
    """What is subtracted from a row's logits: their largest, times 1 / ln 2 in float32.

    That times float32's error is a factor of all exponentials of a row. Logits so large that it
    would be none of 1's kind have an origin of their own; that of others is 0.
    """

    origin: Any
    scaled: Any


@triton.jit
def level_of(top):
    """Return the level of rows by their largest logits."""
    if top.dtype == tl.float64:
        return Level(top, tl.zeros_like(top))
    else:
        origin = tl.where(tl.abs(top) > HUGE, top, 0.0)
        return Level(origin, (top - origin) * LOG2E)


@triton.jit
def exponentials_of_tile(logits, level):
    """Return those of a tile, most of which have no huge logits."""
    if logits.dtype == tl.float64:
        return tl.exp(logits - on_tile(level.origin))
    else:
        if tl.max((level.origin != 0.0).to(tl.int32), axis=0) > 0:
            logits -= on_tile(level.origin)
        return fast_exp2(tl.fma(logits, LOG2E, -on_tile(level.scaled)))


@triton.jit
def exponentials(logits, level):
    """Return exp(logit - top) and its logarithm, times and plus a number of a row's own."""
    below = logits - level.origin
    if logits.dtype == tl.float64:
        return tl.exp(below), below
    else:
        power = tl.fma(below, LOG2E, -level.scaled)
        return fast_exp2(power), power * LN2


@triton.jit
def row_of_whole(a, level, e_rest, special):
    """Return what the mathematics of a token needs of its row."""
    logit_x0, logit_xt, logit_mask = special
    e_x0, log_e_x0 = exponentials(logit_x0, level)
    e_xt, _ = exponentials(logit_xt, level)
    e_mask = tl.zeros_like(e_rest)
    if a.HAS_MASK:
        e_mask, _ = exponentials(logit_mask, level)
    return Row(e_x0, e_xt, e_mask, e_rest, log_e_x0)


class Bend(NamedTuple):
    """``u_j = c e_j``, and h where that is 0."""

    c: Any
    h_0: Any


@triton.jit
def bend_of(chain, token, solved, REAL: tl.constexpr):
    """Return the bend of each token; h = 1 on that of one without curvature."""
    curved = solved.curved
    per_base = chain.num_classes.to(REAL) * reciprocal(token.bar_base)
    c = tl.where(curved, token.bar_keep * solved.inv * per_base, 0.0)
    return Bend(on_tile(c), on_tile(tl.where(curved, solved.shift * reciprocal(solved.ratio), 1.0)))


@triton.jit
def curvature_of_whole(a, chain, tokens, classes, e, row, level, solved, line, bend):
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
    in_range = slope < LARGEST * solved.ratio
    cancels = (sum_phi < least_sum(a, parts, count)) | (in_range == 0)
    cancels &= solved.curved
    by_groups = cancels & in_range & (solved.ratio > 0.5) & (slope < LARGEST)
    # With a mask, or with float32 in some Tritons, the registers are too few.
    by_groups &= (a.HAS_MASK == 0) & (a.logits.dtype.element_ty.primitive_bitwidth == 16)
    if tl.max(by_groups.to(tl.int32), axis=0) > 0:
        sum = sum_by_groups(a, chain, tokens, classes, e, line)
        sum_phi = tl.where(by_groups, sum, sum_phi)
    by_class = cancels & (by_groups == 0)
    if tl.max(by_class.to(tl.int32), axis=0) > 0:
        sum = sum_by_class(a, chain, tokens, line, level, classes)
        sum_phi = tl.where(by_class, sum, sum_phi)
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
    """Return the sum of log(y_j) of each row, y_j in [1, 1e9]: of four numbers one logarithm."""
    HIGH: tl.constexpr = y.shape[0]
    FOUR: tl.constexpr = 4 if HIGH > 4 else HIGH
    of_four = tl.reduce(tl.reshape(y, [HIGH // FOUR, FOUR, y.shape[1], y.shape[2]]), 1, product)
    return row_sum(fast_log(of_four))


@triton.jit
def product(x, y):
    """Combine two numbers."""
    return x * y


@triton.jit
def store_gradient_of_whole(a, tokens, classes, e, m, bend, result, factor):
    """Write the gradient of the rest; what it writes to the special classes is to be replaced."""
    flat = on_tile(tl.where(tokens.settled, tokens.value, result.flat * factor))
    steep = on_tile(result.steep * factor)
    gradient = m * ((steep + flat) * bend.c * e + (steep * bend.h_0 + flat))
    store_tile(a.grad, classes, gradient)


@triton.jit
def sum_by_groups(a, chain, tokens, classes, e, line):
    """Return the sum of phi(g) over the rest, by four classes of a thread at a time; g > -1/2."""
    HIGH: tl.constexpr = e.shape[0]
    FOUR: tl.constexpr = 4 if HIGH > 4 else HIGH
    g, _ = curve(chain, classes, e, line)
    excluded = is_excluded(a, chain, tokens, classes)
    of_four: tl.constexpr = [HIGH // FOUR, FOUR, e.shape[1], e.shape[2]]
    g = tl.reshape(tl.where(excluded, 0.0, g), of_four)
    return row_sum(sum_of_phi(*tl.reduce((g, tl.zeros_like(g)), 1, joined)))


@triton.jit
def joined(sum, rest, other_sum, other_rest):
    """Combine two groups of numbers x: their sums, and products of 1 + x less 1 and the sum."""
    cross = (sum + rest) * (other_sum + other_rest)
    return sum + other_sum, (rest + other_rest) + cross


@triton.jit
def sum_by_class(a, chain, tokens, line, level, classes):
    """Return the sum of phi(g) over the rest, a part of the tile at a time, which is read again."""
    ROWS: tl.constexpr = classes.j.shape[1]
    LOW: tl.constexpr = classes.j.shape[2]
    total = tl.zeros_like(level.origin)
    for start in range(0, a.num_classes, LOW):
        part = classes_from(a, start, ROWS, 1, LOW)
        logits = load_rest(a, chain, tokens, part, total.dtype)
        e, _ = exponentials(logits, Level(on_tile(level.origin), on_tile(level.scaled)))
        g, y = curve(chain, part, e, line)
        total += row_sum(tl.where(is_excluded(a, chain, tokens, part), 0.0, phi(g, y)))
    return total
