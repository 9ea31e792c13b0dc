"""The rest of whole rows: an exponential and a reciprocal a class, with pi a logarithm as well.

With ``w_j = c e_j`` and ``h_0 = shift / ratio`` a class of the rest has

    1 + g_j = ratio (1 + w_j / pi_j),   h_j = (h_0 pi_j + w_j) / (pi_j + w_j),

and as phi(g) = g - log(1 + g),

    sum pi_j phi(g_j) = phi(shift) sum pi_j + ratio sum w_j + sum pi_j log(pi_j / (pi_j + w_j)).

Where p is close to q these parts cancel: then phi is summed class by class. Where all pi are 1/K, 1
stands for pi_j and K is in c; then the logarithms are those of products of four.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.marks import hidden
from ..common.math import (
    INTERPRETED,
    LN2,
    LOG2E,
    fast_exp2,
    fast_log2,
    has_ptx,
    least,
    phi,
    reciprocal,
    sum_of_phi,
)
from ..common.once import once
from ..common.staged import load_staged, store_staged
from ..common.tile import classes_from, on_tile, row_sum, store_tile
from .loss_rest import (
    curve,
    flat_of,
    is_excluded,
    least_sum,
    line_of,
    line_on_tile,
    load_rest,
    marks_of,
    slope_of,
)
from .loss_row import Row
from .loss_tokens import count_special, pi_of_special
from .step import pi_of

LARGEST = tl.constexpr(1e9)  # of c: products of four are in float32's range
HUGE = tl.constexpr(1e6)  # of logits


@triton.jit
def load_whole(a, chain, tokens, classes, REAL: tl.constexpr, FILLED: tl.constexpr):
    """Return the logits of the rest; -inf for what is not of it, and for a settled row."""
    if a.IS_STAGED:
        words, bit = marks_of(a, chain, tokens, classes)
        beyond = tl.full([1, 1, 1], -1, tl.int32) << a.num_classes
        words |= beyond  # a row is a thread's, and its marks are of one word
        return hidden(load_staged(a, a.logits, classes).to(REAL), words, bit)
    else:
        return load_rest(a, chain, tokens, classes, REAL, FILLED)


@triton.jit
def store_whole(a, classes, gradient):
    """Write the gradient of rows."""
    if a.IS_STAGED:
        store_staged(a, a.grad, classes, within(a, classes, gradient, 0.0))
    else:
        store_tile(a.grad, classes, gradient)


@triton.jit
def within(a, classes, x, other):
    """Return numbers of a tile, ``other`` beyond the last class where a row is a thread's.

    The compiler knows there which they are: nothing is done for them.
    """
    if a.IS_STAGED:
        return tl.where(classes.high + classes.low < a.num_classes, x, other)
    else:
        return x


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
def exponentials_of_tile(a, classes, logits, level):
    """Return those of a tile, most of which have no huge logits."""
    if logits.dtype == tl.float64:
        return tl.exp(logits - on_tile(level.origin))
    else:
        origin, scaled = on_tile(once(level.origin)), on_tile(once(-level.scaled))
        if tl.max((level.origin != 0.0).to(tl.int32), axis=0) > 0:
            logits -= origin
            e = fast_exp2(tl.fma(logits, LOG2E, scaled))
        else:
            e = fast_exp2(tl.fma(logits, LOG2E, scaled))
        return within(a, classes, e, -0.0)


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
    """``w_j = c e_j``, and h where that is 0."""

    c: Any
    h_0: Any


@triton.jit
def bend_of(chain, solved):
    """Return the bend of each token; h = 1 on that of one without curvature, whatever c is."""
    per_ratio = reciprocal(solved.ratio)
    c = tl.where(solved.curved, slope_of(chain, solved) * per_ratio, 1.0)
    return Bend(
        on_tile(once(c)), on_tile(once(tl.where(solved.curved, solved.shift * per_ratio, 1.0)))
    )


@triton.jit
def curvature_of_whole(a, chain, tokens, classes, e, row, level, solved, FILLED: tl.constexpr):
    """Return the curves of classes, and the sums of pi phi(g) and of e h over the rest."""
    bend = bend_of(chain, solved)
    slope, sum_pi = slope_of(chain, solved), sum_of_pi(a, chain, tokens, e.dtype)
    HAS_GROUPS: tl.constexpr = chain.pi is None and e.dtype == tl.float32
    parts = sum_pi * phi(solved.shift, solved.ratio) + slope * row.e_rest
    if chain.pi is None:
        y = within(a, classes, tl.fma(e, bend.c, 1.0), 1.0)
        of_class = e * reciprocal(y)
        sum_phi = parts - sum_of_logs(y)
        in_range = slope < LARGEST * solved.ratio
        by_groups = in_range & (solved.ratio > 0.5) & (slope < LARGEST)
        if not a.IS_STAGED:
            # With a mask or few classes, registers are too few.
            by_groups &= (a.HAS_MASK == 0) & (e.shape[0] * e.shape[2] > 64)
    else:
        pi = pi_of(chain, classes, FILLED)
        of_class, log2 = bent(e, pi, bend)
        sum_phi = parts + LN2 * once(row_sum(pi * log2))
        in_range = sum_pi > 1.0 / 16  # a difference
    keeps = in_range & (sum_phi > least_sum(a, chain, parts, sum_pi))
    cancels = solved.curved & (keeps == 0)
    curves = Curves(of_class, bend)
    by_class = cancels
    if HAS_GROUPS:
        by_class &= by_groups == 0
    if tl.max(by_class.to(tl.int32), axis=0) > 0:
        line = line_on_tile(line_of(chain, solved))
        sum_phi = tl.where(
            cancels, once(sum_by_class(a, chain, tokens, line, level, classes)), sum_phi
        )
        sum_h = sum_of_h(a, chain, classes, e, curves)
    elif HAS_GROUPS:
        if tl.max(cancels.to(tl.int32), axis=0) > 0:
            line = line_on_tile(line_of(chain, solved))
            sum_phi = tl.where(
                cancels, once(sum_by_groups(a, chain, tokens, classes, e, line)), sum_phi
            )
            sum_h = sum_of_h(a, chain, classes, e, curves)
        else:
            sum_h = sum_of_large_h(a, classes, curves, row, solved)
    elif chain.pi is None:
        sum_h = sum_of_large_h(a, classes, curves, row, solved)
    else:
        sum_h = sum_of_h(a, chain, classes, e, curves)
    if chain.pi is None:
        sum_phi /= chain.num_classes.to(e.dtype)
    return curves, sum_phi, sum_h


class Curves(NamedTuple):
    """Of each class of the rest h, or ``e / (1 + w)`` where all pi are 1/K; and their bend."""

    of_class: Any
    bend: Any


@triton.jit
def sum_of_h(a, chain, classes, e, curves):
    """Return the sum of e h over the rest."""
    if chain.pi is None:
        e_h = curves.of_class * tl.fma(e, curves.bend.c, curves.bend.h_0)
        return once(row_sum(within(a, classes, e_h, -0.0)))
    else:
        return once(row_sum(e * curves.of_class))


@triton.jit
def sum_of_large_h(a, classes, curves, row, solved):
    """Return that where all pi are 1/K, by ``h = 1 - 1 / (ratio (1 + w))``: not near p = q."""
    of_rest = once(row_sum(within(a, classes, curves.of_class, -0.0)))
    return row.e_rest - of_rest * reciprocal(solved.ratio)


@triton.jit
def gradient_of_whole(chain, tokens, e, curves, result, factor):
    """Return the gradient of the rest; what it has for the special classes is to be replaced."""
    steep, flat = on_tile(once(result.steep * factor)), on_tile(flat_of(tokens, result, factor))
    if chain.pi is None:
        bend = curves.bend
        return curves.of_class * tl.fma(e, bend.c * (steep + flat), bend.h_0 * steep + flat)
    else:
        return e * (steep * curves.of_class + flat)


@triton.jit
def bent(e, pi, bend):
    """Return h, and log2(pi / (pi + w)) or any number where pi is 0.

    On NVIDIA a class at a time, with the same instructions: all w of a tile take registers.
    """
    if INTERPRETED or e.dtype == tl.float64 or not has_ptx():
        w = bend.c * e + least(e.dtype)
        per_sum = reciprocal(pi + w)
        return (bend.h_0 * pi + w) * per_sum, fast_log2(pi * per_sum + least(e.dtype))
    else:
        return tl.inline_asm_elementwise(
            "{.reg .f32 w, v; fma.rn.f32 w, $4, $2, 0f01000000; add.f32 v, $3, w;"
            " rcp.approx.ftz.f32 v, v; fma.rn.f32 w, $5, $3, w; mul.f32 $0, w, v;"
            " fma.rn.f32 v, $3, v, 0f01000000; lg2.approx.ftz.f32 $1, v;}",
            "=&f,=&f,f,f,f,f", [e, pi, bend.c, bend.h_0], (tl.float32, tl.float32),
            is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def sum_of_pi(a, chain, tokens, REAL: tl.constexpr):
    """Return the sum of pi over the rest, or its number where all pi are 1/K."""
    if chain.pi is None:
        every = tl.full([1], a.num_classes, tl.int32)
        return (every - count_special(a, chain, tokens)).to(REAL)
    else:
        return 1.0 - pi_of_special(chain, tokens, REAL)


@triton.jit
def sum_of_logs(y):
    """Return the sum of log(y_j) of each row, y_j in [1, 1e9]: of four numbers one logarithm."""
    HIGH: tl.constexpr = y.shape[0]
    FOUR: tl.constexpr = 4 if HIGH > 4 else HIGH
    of_four = tl.reduce(tl.reshape(y, [HIGH // FOUR, FOUR, y.shape[1], y.shape[2]]), 1, product)
    return LN2 * once(row_sum(fast_log2(of_four)))


@triton.jit
def product(x, y):
    """Combine two numbers."""
    return x * y


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
    HIGH: tl.constexpr = classes.j.shape[0] // 2 if a.IS_STAGED else 1
    origin, scaled = on_tile(once(level.origin)), on_tile(once(level.scaled))
    total = row_sum(tl.zeros([1, ROWS, LOW], level.origin.dtype))
    for start in range(0, a.num_classes, HIGH * LOW):
        part = classes_from(a, start, ROWS, HIGH, LOW)
        logits = load_rest(a, chain, tokens, part, total.dtype)
        e, _ = exponentials(logits, Level(origin, scaled))
        g, y = curve(chain, part, e, line)
        terms = phi(g, y)
        if chain.pi is not None:
            pi = pi_of(chain, part)
            terms = tl.where(pi > 0.0, pi * terms, line.slope * e)
        total += row_sum(tl.where(is_excluded(a, chain, tokens, part), 0.0, terms))
    return total
