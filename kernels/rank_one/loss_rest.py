"""The rest of a row in a rank-one loss: all classes but x_0, x_t and the mask.

What is summed over them is a curve of their exponentials: a line of each token.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.marks import bit_of, hidden, mark
from ..common.math import widened
from ..common.once import once
from ..common.tile import (
    load_tile,
    on_flat,
    on_tile,
)
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
    elif FILLED:  # a settled row is not read: another is read twice
        HIGH: tl.constexpr = classes.j.shape[0]
        ROWS: tl.constexpr = classes.j.shape[1]
        row = on_tile(once(tl.where(tokens.settled, tokens.read, tl.arange(0, ROWS))))
        row = tl.reshape(tl.broadcast_to(row, [HIGH, ROWS, 1]), [HIGH * ROWS, 1])
        at = a.logits + classes.first + row * a.num_classes + classes.flat
        logits = tl.reshape(tl.load(at), classes.j.shape)
    else:
        reads = (
            on_flat(once(tokens.settled.to(tl.int32)), classes.j.shape[0]) == 0
        ) & classes.there
        logits = load_tile(a.logits, classes, reads, float("-inf"))
    return hidden(widened(logits, REAL), words, bit)


@triton.jit
def highest(tokens, of_rest, special):
    """Return the largest logit of a row, of that of the rest and those of the special classes."""
    logit_x0, logit_xt, logit_mask = special
    top = tl.maximum(tl.maximum(of_rest, logit_x0), tl.maximum(logit_xt, logit_mask))
    return tl.where(tokens.settled, 0.0, top)


@triton.jit
def slope_of(chain, solved):
    """Return the slope of the line of each token, where all pi are 1/K with 1 / pi in it."""
    slope = solved.slope
    if chain.pi is None:
        slope *= chain.num_classes.to(slope.dtype)
    return slope


@triton.jit
def line_of(chain, solved):
    """Return the line of each token, a number each; h = 1 on that of one without curvature."""
    return Line(
        tl.where(solved.curved, solved.ratio, 1.0),
        tl.where(solved.curved, solved.shift, 1.0),
        tl.where(solved.curved, slope_of(chain, solved), 0.0),
    )


@triton.jit
def line_on_tile(line):
    """Return the lines of a tile's tokens as they lie beside its numbers."""
    return Line(on_tile(once(line.ratio)), on_tile(once(line.shift)), on_tile(once(line.slope)))


@triton.jit
def least_sum(a, chain, parts, sum_pi):
    """Return which sum of phi has enough digits left of its parts and of its logarithms.

    Those of single classes add four times the error of those of products of four.
    """
    FOLD: tl.constexpr = 1.0 if chain.pi is None else 4.0
    if a.logits.dtype.element_ty.primitive_bitwidth == 16:
        return tl.maximum(parts * (1.0 / 32), sum_pi * (FOLD / 128))
    else:
        return tl.maximum(parts * (1.0 / 8), sum_pi * (FOLD / 32))


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
def straight_gradient_of(tokens, e, result, factor):
    """Return that of rows where all of it is flat."""
    return e * on_tile(flat_of(tokens, result, factor))


@triton.jit
def flat_of(tokens, result, factor):
    """Return what the gradient has for each e, of a settled token what it is."""
    return once(tl.where(tokens.settled, tokens.value, result.flat * factor))
