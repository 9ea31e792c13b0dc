"""Classes drawn from a tile of masses that is not kept: a line of it, then a class of the line.

The line is read again: its masses are made a second time, in float64.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .math import fast_exp, widened


@triton.jit
def masses_of(a, x, top, here, tilt):
    """Return s times a number a row, given logits, tilted where a class is x_t."""
    if x.dtype == tl.float32:
        e = fast_exp(x - top)
    else:
        e = tl.exp(x - top)
    return tl.where(here, e * tilt, e)


@triton.jit
def allowed(a, x, is_class, is_forbidden):
    """Return logits that are read, -inf for what is no class, or a forbidden one."""
    if not a.IS_FULL:
        x = tl.where(is_class, x, float("-inf"))
    if a.FORBIDS:
        x = tl.where(is_forbidden, float("-inf"), x)
    return x


class Line(NamedTuple):
    """The line of a tile, classes of one ``high``, in which a token's target falls."""

    index: Any
    mass: Any  # added up in the type of the calculation
    into: Any  # how much of it the target is in


@triton.jit
def line_of(part, target):
    """Return the first line whose running sum passes the target, given the mass of each.

    Where rounding leaves none, the last one that has any mass.
    """
    HIGH: tl.constexpr = part.shape[0]
    high = tl.arange(0, HIGH)[:, None]
    sums = tl.cumsum(part.to(tl.float64), axis=0)
    line = tl.sum((sums <= target[None, :]).to(tl.int32), axis=0)
    line = tl.minimum(line, tl.max(tl.where(part > 0.0, high, 0), axis=0))
    before = tl.sum(tl.where(high < line[None, :], part, 0.0).to(tl.float64), axis=0)
    mass = tl.sum(tl.where(high == line[None, :], part, 0.0), axis=0)
    return Line(line, mass, target - before)


@triton.jit
def class_of_line(a, of, top, line, REAL: tl.constexpr, LOW: tl.constexpr):
    """Return the class drawn of a line, whose masses are made again.

    Their sum in float64 has classes that are too rare for the line's own: the target moves along.
    """
    j = (line.index * LOW)[:, None] + tl.arange(0, LOW)[None, :]
    reads = of.reads[:, None]
    if not a.IS_FULL:
        reads &= j < a.num_classes
    x = tl.load(a.logits + (of.at * a.num_classes)[:, None] + j, mask=reads)
    x = allowed(a, widened(x, REAL), reads, j == a.forbidden)
    here = j == of.x_t.to(tl.int32)[:, None]
    return class_in(a, j, masses_of(a, x, top[:, None], here, of.tilt[:, None]), line, REAL)


@triton.jit
def class_in(a, j, mass, line, REAL: tl.constexpr):
    """Return the class of a line, given its classes and their masses, ``(ROWS, LOW)``."""
    mass = mass.to(tl.float64)
    more = (tl.sum(mass, axis=1) - line.mass).to(REAL) / line.mass
    target = line.into + line.into * more
    passes = (mass > 0.0) & (tl.cumsum(mass, axis=1) > target[:, None])
    found = tl.min(tl.where(passes, j, a.num_classes), axis=1)
    last = tl.max(tl.where(mass > 0.0, j, 0), axis=1)
    return tl.where(found < a.num_classes, found, last)
