"""Rows that are too long to be held: read a part at a time, by all threads of a program.

What a row's mathematics needs is found in one pass, with the largest logit so far and a sum of
exponentials below it in each thread. A second pass sums over the curve of the rest, if the row has
one, and a third writes the gradient. The passes after the first find the row in the cache.

With ``w = lift e`` a class has ``1 + g = ratio (1 + w / pi)``, and ``e h = m (tilt pi + w)`` of
``m = e / (pi + w)``; where pi is 1/K, 1 stands for it and its inverse is in lift. The logarithms of
``sum pi phi(g) = phi(shift) sum pi + slope sum e - sum pi log(1 + w / pi)`` are those of products
of four classes where pi is 1/K. phi is convex, so the sum is at least ``sum pi`` times phi of the
mean of g. Where that is too little next to its parts, phi is summed without them: by four classes
at a time, or one.
"""

import torch
import triton
import triton.language as tl

from ..common.marks import hidden
from ..common.math import fast_exp, fast_log, phi, reciprocal, sum_of_phi, widened
from ..common.tile import Tile, classes_from, is_aligned, load_tile, on_tile, row_sum, store_tile
from .loss_rest import curve, highest, is_excluded, least_sum, line_on_tile, marks_of
from .loss_tokens import count_special, store_special
from .step import pi_at, pi_of

LARGEST = tl.constexpr(1e9)  # of 1 + g and its inverse: products of four are in float32's range
LEAST_PI = tl.constexpr(1e-18)  # but for 0


def tile_of_long_row(num_classes: int, dtype: torch.dtype) -> tuple[Tile, int]:
    """Return the part of a row that is read at a time, and how many threads share it."""
    aligned = is_aligned(num_classes)
    numbers = 4 if dtype == torch.float64 else 32 if aligned else 16
    vector = 16 // dtype.itemsize if aligned else 1
    num_warps = 4 if num_classes <= 16384 else 8
    threads = 32 * num_warps
    return Tile(1, numbers // vector, threads * vector, num_warps), threads


@triton.jit
def holds(condition):
    """Return what holds of the program's row."""
    return tl.max(condition.to(tl.int32), axis=0) > 0


@triton.jit
def has(start, place, SIZE: tl.constexpr):
    """Return whether a part has a class."""
    return (tl.max(place, axis=0) - start).to(tl.uint32) < SIZE


@triton.jit
def load_part(a, chain, tokens, classes, REAL: tl.constexpr):
    """Return the logits of the rest; few parts have other classes, or end beyond the last."""
    SIZE: tl.constexpr = classes.j.shape[0] * classes.j.shape[2]
    start = classes.start
    apart = has(start, tokens.x0, SIZE) | has(start, tokens.x_t, SIZE)
    apart |= start + SIZE > a.num_classes
    if a.HAS_MASK:
        apart |= has(start, tl.full([1], chain.mask_id, tl.int32), SIZE)
    if apart:
        logits = load_tile(a.logits, classes, classes.there, float("-inf"), "evict_last")
        logits = widened(logits, REAL)
        words, bit = marks_of(a, chain, tokens, classes)
        logits = hidden(logits, words, bit)
    else:
        logits = widened(load_tile(a.logits, classes, KEEP="evict_last"), REAL)
    return logits


@triton.jit
def statistics_of_row(
    a, chain, tokens, special, REAL: tl.constexpr,
    HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Return the largest logit of a row, and the sum of the exponentials of the rest."""
    top = tl.full([THREADS], float("-inf"), REAL)
    e_rest = tl.zeros([THREADS], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        logits = load_part(a, chain, tokens, classes, REAL)
        logits = tl.reshape(logits, [HIGH, THREADS, LOW // THREADS])
        higher = tl.maximum(top, tl.max(tl.max(logits, axis=2), axis=0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        e = fast_exp(logits - level[None, :, None])
        e_rest = e_rest * fast_exp(top - level) + tl.sum(tl.sum(e, axis=2), axis=0)
        top = higher
    of_row = highest(tokens, tl.max(top[None, :], axis=1), special)
    scaled = e_rest * fast_exp(top - of_row[:, None])
    return of_row, tl.sum(tl.where(top == float("-inf"), 0.0, scaled), axis=1)


@triton.jit
def is_curved(line):
    """Return whether h is not 1."""
    return holds(line.slope != 0.0)


@triton.jit
def sums_of_row(
    a, chain, tokens, line, top, e_rest, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the sums of pi phi(g) and e h over the rest of a row that has a curve.

    Of a shard's part of one, e_rest is None.
    """
    by_logs = has_products(line)
    parts = line.slope
    if e_rest is not None and REAL == tl.float32:
        weight = weight_of_rest(a, chain, tokens, REAL)
        parts = weight * phi(line.shift, line.ratio) + line.slope * e_rest
        mean = line.slope * e_rest * reciprocal(weight)
        at_least = weight * phi(line.shift + mean, line.ratio + mean)
        by_logs &= at_least > least_sum(a, chain, parts, weight)
    if REAL == tl.float64 or (e_rest is None and chain.pi is not None):
        sum_phi, sum_h = sums_by_class(a, chain, tokens, line, top, REAL, HIGH, LOW)
    elif chain.pi is not None:
        if holds(by_logs):
            sum_log, sum_h = sums_by_logs(a, chain, tokens, line, top, REAL, HIGH, LOW)
            sum_phi = parts - sum_log
        else:
            sum_phi, sum_h = sums_by_class(a, chain, tokens, line, top, REAL, HIGH, LOW)
    elif holds(has_products(line)):
        if e_rest is None:
            sum_phi, sum_h = sums_by_fours(a, chain, tokens, line, top, REAL, HIGH, LOW)
        elif holds(by_logs):
            sum_log, sum_h = sums_by_logs(a, chain, tokens, line, top, REAL, HIGH, LOW)
            sum_phi = parts - sum_log
        else:
            sum_phi, sum_h = sums_by_fours(a, chain, tokens, line, top, REAL, HIGH, LOW)
    else:
        sum_phi, sum_h = sums_by_class(a, chain, tokens, line, top, REAL, HIGH, LOW)
    if chain.pi is None:
        sum_phi /= chain.num_classes.to(REAL)
    return sum_phi, sum_h


@triton.jit
def has_products(line):
    """Return whether products of four 1 + g, and of four 1 + w, are in range."""
    in_range = (line.ratio + line.slope < LARGEST) & (line.ratio * LARGEST > 1.0)
    return in_range & (line.slope < line.ratio * LARGEST)


@triton.jit
def weight_of_rest(a, chain, tokens, REAL: tl.constexpr):
    """Return the number of classes of the rest, or their pi; nothing where that cancels."""
    if chain.pi is None:
        return (a.num_classes - count_special(a, chain, tokens)).to(REAL)
    else:
        mask_id = tl.full([1], chain.mask_id, tl.int32)
        of_xt = tl.where(tokens.x_t == tokens.x0, 0.0, pi_at(chain, tokens.x_t, REAL))
        of_mask = tl.where(
            (mask_id == tokens.x0) | (mask_id == tokens.x_t), 0.0, pi_at(chain, mask_id, REAL)
        )
        weight = 1.0 - pi_at(chain, tokens.x0, REAL) - of_xt - of_mask
        return tl.where(weight > 1.0 / 16, weight, float("nan"))


@triton.jit
def exponentials_of_part(a, chain, tokens, classes, top, REAL: tl.constexpr):
    """Return exp(logit - top) of the rest, 0 elsewhere."""
    return fast_exp(load_part(a, chain, tokens, classes, REAL) - on_tile(top))


@triton.jit
def by_fours(x):
    """Return a tile of an even number of fours with an axis of four."""
    HIGH: tl.constexpr = x.shape[0]
    return tl.reshape(x, [HIGH // 4, 4, x.shape[1], x.shape[2]])


@triton.jit
def of_fractions(n, d, other_n, other_d):
    """Combine two fractions: the numerator and the denominator of their sum."""
    return n * other_d + other_n * d, d * other_d


@triton.jit
def sums_by_logs(
    a, chain, tokens, line, top, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the sums of pi log(1 + w / pi) and of e h."""
    lift, tilt = on_tile(lift_of(line)), on_tile(line.shift * reciprocal(line.ratio))
    FOURS: tl.constexpr = HIGH // 4 if chain.pi is None else 1
    sum_log, sum_h = tl.zeros([FOURS, 1, LOW], REAL), tl.zeros([FOURS, 1, LOW], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        e = exponentials_of_part(a, chain, tokens, classes, top, REAL)
        if chain.pi is None:
            w = lift * e
            n, d = tl.reduce((by_fours(e * (tilt + w)), by_fours(1.0 + w)), 1, of_fractions)
            sum_h += n * reciprocal(d)
            sum_log += fast_log(d)
        else:
            pi = pi_of(chain, classes)
            w = weighted(e, pi, lift)
            v = tl.maximum(pi + w, LEAST_PI)
            p = tl.maximum(pi, LEAST_PI)
            inverse = reciprocal(v * p)
            h = e * (inverse * p) * (tilt * pi + w)
            sum_h += tl.sum(h, axis=0)[None, :, :]
            sum_log += tl.sum(pi * fast_log(v * (inverse * v)), axis=0)[None, :, :]
    return row_sum(sum_log), row_sum(sum_h)


@triton.jit
def lift_of(line):
    """Return the factor of e in w."""
    return line.slope * reciprocal(line.ratio)


@triton.jit
def weighted(e, pi, lift):
    """Return w. Where pi is 0, h is 1 whatever w; then w is large, so that it is not lost."""
    return e * tl.where(pi > 0.0, lift, 1.0 / LEAST_PI)


@triton.jit
def sums_by_fours(
    a, chain, tokens, line, top, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the sums of phi(g), by four classes of a thread at a time, and of e h."""
    on = line_on_tile(line)
    sum_phi, sum_h = tl.zeros([HIGH // 4, 1, LOW], REAL), tl.zeros([HIGH // 4, 1, LOW], REAL)
    count = tl.zeros([1, 1, LOW], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        e = exponentials_of_part(a, chain, tokens, classes, top, REAL)
        exists = e > 0.0
        g, y = curve(chain, classes, e, on)
        g, y = tl.where(exists, g, 0.0), tl.where(exists, y, 1.0)
        count += tl.sum(tl.where(exists, 1.0, 0.0), axis=0)[None, :, :]
        of_four = by_fours(g), by_fours(tl.zeros_like(g)), by_fours(e * g), by_fours(y)
        sum, rest, n, d = tl.reduce(of_four, 1, of_fours)
        sum_phi += sum_of_phi(sum, rest, d)
        sum_h += n * reciprocal(d)
    left = (a.num_classes - count_special(a, chain, tokens)).to(REAL) - row_sum(count)
    return row_sum(sum_phi) + left * phi(line.shift, line.ratio), row_sum(sum_h)


@triton.jit
def of_fours(sum, rest, n, d, other_sum, other_rest, other_n, other_d):
    """Combine two groups of numbers x, as in ``loss_whole.joined``, and two fractions."""
    cross = (sum + rest) * (other_sum + other_rest)
    return (
        sum + other_sum,
        (rest + other_rest) + cross,
        n * other_d + other_n * d,
        d * other_d,
    )


@triton.jit
def sums_by_class(
    a, chain, tokens, line, top, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the sums of pi phi(g) and of e h, class by class; K times the first without pi.

    Without pi few rows need it, and its program is short.
    """
    on = line_on_tile(line)
    sum_phi, sum_h = tl.zeros([1, 1, LOW], REAL), tl.zeros([1, 1, LOW], REAL)
    STEPS: tl.constexpr = HIGH if chain.pi is None else 1
    for start in range(0, a.num_classes, HIGH * LOW):
        for step in range(STEPS):
            classes = classes_from(a, start + step * LOW, 1, HIGH // STEPS, LOW)
            e = exponentials_of_part(a, chain, tokens, classes, top, REAL)
            g, y = curve(chain, classes, e, on)
            terms = phi(g, y)
            if chain.pi is not None:
                pi = pi_of(chain, classes)
                terms = tl.where(pi > 0.0, pi * terms, on.slope * e)
            excluded = is_excluded(a, chain, tokens, classes)
            sum_phi += tl.sum(tl.where(excluded, 0.0, terms), axis=0)[None, :, :]
            sum_h += tl.sum(e * (g / y), axis=0)[None, :, :]
    return row_sum(sum_phi), row_sum(sum_h)


@triton.jit
def store_curved_gradient(
    a, chain, tokens, line, top, result, factor,
    REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a row that has a curve."""
    steep, flat = result.steep * factor, result.flat * factor
    lift, tilt = on_tile(lift_of(line)), line.shift * reciprocal(line.ratio)
    of_w, of_pi = on_tile(steep + flat), on_tile(steep * tilt + flat)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        e = exponentials_of_all(a, classes, top, REAL)
        if chain.pi is None:
            w = lift * e
            gradient = e * reciprocal(1.0 + w) * (of_w * w + of_pi)
        else:
            pi = pi_of(chain, classes)
            w = weighted(e, pi, lift)
            m = e * reciprocal(tl.maximum(pi + w, LEAST_PI))
            gradient = m * (of_w * w + of_pi * pi)
        store_tile(a.grad, classes, gradient, "evict_first")
    store_special(a, chain, tokens, result, factor)


@triton.jit
def store_straight_gradient(
    a, chain, tokens, top, result, factor,
    REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a row where h is 1."""
    of_e = on_tile((result.steep + result.flat) * factor)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        gradient = of_e * exponentials_of_all(a, classes, top, REAL)
        store_tile(a.grad, classes, gradient, "evict_first")
    store_special(a, chain, tokens, result, factor)


@triton.jit
def exponentials_of_all(a, classes, top, REAL: tl.constexpr):
    """Return exp(logit - top) of all classes; what is made of those apart is to be replaced."""
    logits = load_tile(a.logits, classes, classes.there, KEEP="evict_first")
    return fast_exp(widened(logits, REAL) - on_tile(top))


@triton.jit
def store_settled_gradient(a, tokens, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Write the gradient of a row that is not read."""
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        store_tile(a.grad, classes, tl.broadcast_to(on_tile(tokens.value), classes.j.shape))
