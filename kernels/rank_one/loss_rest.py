"""The rest of a row in a rank-one loss: all classes but x_0, x_t and the mask.

What is summed over them is a curve of their exponentials: a line of each token.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.marks import bit_of, hidden, mark
from ..common.math import fast_exp, phi
from ..common.once import once
from ..common.tile import (
    classes_from,
    load_tile,
    on_flat,
    on_tile,
    row_max,
    row_sum,
    store_tile,
)
from .loss_tokens import store_special
from .step import pi_of


class Line(NamedTuple):
    """For a class of the rest ``1 + g_j = ratio + slope e_j / pi_j``, ``g_j = shift + ...``.

    The slope has 1 / pi_j in it where all are 1/K.
    """

    ratio: Any
    shift: Any
    slope: Any


@triton.jit
def marks_of(a, chain, tokens, classes):
    """Return marks on x_0, x_t, the mask and all of a settled row, and each class's bit."""
    HIGH: tl.constexpr = classes.j.shape[0]
    LOW: tl.constexpr = classes.j.shape[2]
    kind: tl.constexpr = a.logits.dtype.element_ty
    words = mark(once(tokens.x0 - classes.start), HIGH, LOW, kind)
    words |= mark(once(tokens.x_t - classes.start), HIGH, LOW, kind)
    if a.HAS_MASK:
        mask_id = tl.full([1], chain.mask_id, tl.int32)
        words |= mark(mask_id - classes.start, HIGH, LOW, kind)
    return tl.where(on_tile(once(tokens.settled.to(tl.int32))) != 0, -1, words), bit_of(
        HIGH, LOW, kind
    )


@triton.jit
def is_excluded(a, chain, tokens, classes):
    """Return which classes of a tile are not of the rest."""
    words, bit = marks_of(a, chain, tokens, classes)
    return ((words & bit) != 0) | (classes.j >= a.num_classes)


@triton.jit
def load_rest(a, chain, tokens, classes, REAL: tl.constexpr, FILLED: tl.constexpr = False):
    """Return the logits of the rest; -inf for what is not of it, and for a settled row.

    FILLED says that no class of the tile is beyond the last.
    """
    words, bit = marks_of(a, chain, tokens, classes)
    if FILLED and not a.SPARSE:
        logits = load_tile(a.logits, classes)
    else:
        reads = (
            on_flat(once(tokens.settled.to(tl.int32)), classes.j.shape[0]) == 0
        ) & classes.there
        logits = load_tile(a.logits, classes, reads, float("-inf"))
    return hidden(logits.to(REAL), words, bit)


@triton.jit
def highest(tokens, of_rest, special):
    """Return the largest logit of a row, of that of the rest and those of the special classes."""
    logit_x0, logit_xt, logit_mask = special
    top = tl.maximum(tl.maximum(of_rest, logit_x0), tl.maximum(logit_xt, logit_mask))
    return tl.where(tokens.settled, 0.0, top)


@triton.jit
def line_of(chain, solved, REAL: tl.constexpr):
    """Return the line of each token; h = 1 on that of one without curvature."""
    slope = solved.slope
    if chain.pi is None:
        slope *= chain.num_classes.to(REAL)
    return Line(
        on_tile(tl.where(solved.curved, solved.ratio, 1.0)),
        on_tile(tl.where(solved.curved, solved.shift, 1.0)),
        on_tile(tl.where(solved.curved, slope, 0.0)),
    )


@triton.jit
def curve(chain, classes, e, line):
    """Return g and 1 + g of classes of the rest; 1 and 1 where pi = 0."""
    if chain.pi is None:
        return line.shift + line.slope * e, line.ratio + line.slope * e
    else:
        pi = pi_of(chain, classes)
        lift = line.slope * e / pi
        has = pi > 0.0
        return tl.where(has, line.shift + lift, 1.0), tl.where(has, line.ratio + lift, 1.0)


@triton.jit
def curvature(a, chain, tokens, classes, e, line):
    """Return the sums of pi phi(g) and e h over classes of the rest."""
    g, y = curve(chain, classes, e, line)
    if chain.pi is None:
        terms = phi(g, y) / chain.num_classes.to(e.dtype)
    else:
        pi = pi_of(chain, classes)
        terms = tl.where(pi > 0.0, pi * phi(g, y), line.slope * e)
    excluded = is_excluded(a, chain, tokens, classes)
    return row_sum(tl.where(excluded, 0.0, terms)), row_sum(e * (g / y))


@triton.jit
def gradient_of(tokens, e, h, result, factor):
    """Return the gradient of the rest; what it has for the special classes is to be replaced."""
    flat = tl.where(tokens.settled, tokens.value, result.flat * factor)
    return e * (on_tile(once(result.steep * factor)) * h + on_tile(once(flat)))


@triton.jit
def statistics_of_row(
    a, chain, tokens, special, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the largest logit of a row, and the sum of the exponentials of the rest."""
    top = highest(tokens, tl.full([1], float("-inf"), REAL), special)
    e_rest = tl.zeros([1], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        logits = load_rest(a, chain, tokens, classes, REAL)
        higher = tl.maximum(top, row_max(logits))
        e = fast_exp(logits - on_tile(higher))
        e = tl.where(logits == float("-inf"), 0.0, e)
        e_rest = tl.where(top == higher, e_rest, e_rest * fast_exp(top - higher)) + row_sum(e)
        top = higher
    return top, e_rest


@triton.jit
def sums_of_row(
    a, chain, tokens, line, top, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):
    """Return the sums of curvature over a row."""
    sum_phi, sum_h = tl.zeros([1], REAL), tl.zeros([1], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        e = fast_exp(load_rest(a, chain, tokens, classes, REAL) - on_tile(top))
        more_phi, more_h = curvature(a, chain, tokens, classes, e, line)
        sum_phi += more_phi
        sum_h += more_h
    return sum_phi, sum_h


@triton.jit
def gradient_of_row(
    a, chain, tokens, line, top, result, factor,
    REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a row."""
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        e = fast_exp(load_rest(a, chain, tokens, classes, REAL) - on_tile(top))
        g, y = curve(chain, classes, e, line)
        store_tile(a.grad, classes, gradient_of(tokens, e, g / y, result, factor))
    store_special(a, chain, tokens, result, factor)
