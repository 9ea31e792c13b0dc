"""The bound's term between the two products; ``csrc/cpu/dense_target.h`` derives it.

With c = Q_{s->t}[:, x_t], d = Qbar_s[x_0, :], f = s Qbar_s and D = f - d:
    q_j = c_j d_j / Zq,  p_j = c_j f_j / Z,  W = Z / Zq - 1 = sum_j c_j D_j / Zq
    g_j = p_j / q_j - 1 = (D_j - W d_j) Zq / (Z d_j),  h_j = g_j / (1 + g_j) = (D_j - W d_j) / f_j
    KL(q || p) = sum_j q_j (g_j - log(1 + g_j)), p_j where q_j = 0;  r_j = c_j / Z h_j.

Z and Zq are sums of Qbar_t[:, x_t], and so the density's, too: it has rates for c, and Qbar_t for
Qbar_s. As it depends on Z, r_{x_t} = -sum_j r_j f_j / Z.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import phi, tiny
from .entries import value_of
from .predict import (
    carry,
    is_centred,
    load_column,
    load_common,
    load_truth,
    probabilities,
    reach_at,
    reach_of_anchor,
)

# What rounding leaves out of an entry of f by underflow alone, times the number of classes.
UNDERFLOW = tl.constexpr(1e-30)
LEAST_REACH = tl.constexpr(1e-12)  # above it a class that `tiny` counts out has no share in q


class Entries(NamedTuple):
    """c, d, f and D of some classes; centred, f less what all rows of Qbar_s have in common."""

    c: Any
    d: Any
    f: Any
    change: Any
    rest: Any


class Totals(NamedTuple):
    """``Z``, ``Zq`` and ``sum_j c_j D_j``."""

    z: Any
    zq: Any
    change: Any


@triton.jit
def entries_of(a, steps, rows, softmax, carried, j):
    """Return what is made of ``v Qbar_s``, anchored, at classes ``j [1, C]``."""
    c = value_of(load_column(a, steps, rows, j)).to(tl.float32)
    truth = value_of(load_truth(a, steps, rows, j))
    d = truth.to(tl.float32)
    centred = is_centred(a, steps, rows)
    f = tl.where(centred, d, softmax.anchor[:, None] * d) + carried
    change = carried - tl.where(centred, 0.0, softmax.others[:, None] * d)
    rest = (truth - load_common(a, steps, rows, j)).to(tl.float32) + carried
    return Entries(tl.where(c < tiny(tl.float32), 0.0, c), d, f, change, rest)


@triton.jit
def totals_of(
    a, steps, rows, softmax, TILTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the sums over all classes, by ``Z = (s Qbar_t)[x_t]``."""
    anchor = rows.anchor[:, None]
    zq = value_of(reach_of_anchor(a, steps, rows))
    z = tl.zeros([ROWS], tl.float32)
    change = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]
        reads = rows.reads & (i < a.num_classes)
        reach = value_of(tl.load(reach_at(a, steps, rows, i), mask=reads, other=0.0))
        s = probabilities(a, steps, rows, softmax, i, TILTED)
        s = tl.where(i == anchor, softmax.anchor[:, None], s)
        z += tl.sum(s * reach.to(tl.float32), axis=1)
        change += tl.sum(s * (reach - zq[:, None]).to(tl.float32), axis=1)
    return Totals(z, zq.to(tl.float32), change)


@triton.jit
def divergence_of(entries, totals):
    """Return what some classes have of the sums, and their r.

    The sums are of the terms, of how f's error grows in them, and of ``r_j f_j``.
    """
    w, ratio = totals.change / totals.zq, totals.zq / totals.z
    possible = entries.c > 0.0
    had = possible & (entries.d > tiny(tl.float32))
    f, d = tl.where(possible, entries.f, 1.0), tl.where(had, entries.d, 1.0)
    # Where Z is far below Zq, f is far below d, and keeps digits that f - d has lost.
    rises = totals.zq < 2.0 * totals.z
    by_change = entries.change - w[:, None] * entries.d
    by_value = entries.f - (totals.z / totals.zq)[:, None] * entries.d
    residual = tl.where(rises[:, None], by_change, by_value)
    h = tl.where(had, residual / f, 1.0)
    g = tl.where(had, residual * ratio[:, None] / d, 0.0)
    y = tl.where(had, entries.f * ratio[:, None] / d, 1.0)
    per_z, per_zq = 1.0 / totals.z[:, None], 1.0 / totals.zq[:, None]
    term = entries.c * tl.where(had, entries.d * per_zq * phi(g, y), entries.f * per_z)
    reach = entries.c * per_z
    grows = reach + entries.c * per_zq * tl.abs(tl.where(had, entries.d / f, 0.0))
    r = tl.where(possible, reach * h, 0.0)
    return (
        tl.sum(tl.where(possible, term, 0.0), axis=1),
        r,
        tl.sum(tl.where(possible, grows, 0.0), axis=1),
        tl.sum(r * f, axis=1),
    )


@triton.jit
def mean_pull_of(a, steps, rows, rest, r):
    """Return some classes' share in ``s Qbar_s r``, where all that is in common is left out.

    With it that is 0.
    """
    return tl.where(is_centred(a, steps, rows), tl.sum(rest * r, axis=1), 0.0)


@triton.jit
def diverge(
    a, steps, rows, softmax, totals, j, TILTED: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return what :func:`divergence_of` does of classes ``j [1, COLUMNS]``, and the mean pull."""
    carried = carry(a, steps, rows, softmax, j, True, TILTED, PRECISION, ROWS, COLUMNS, BLOCK)
    entries = entries_of(a, steps, rows, softmax, carried, j)
    term, r, grows, moved = divergence_of(entries, totals)
    return term, r, grows, moved, mean_pull_of(a, steps, rows, entries.rest, r)


@triton.jit
def own_pull_of(a, steps, rows, totals, moved):
    """Return r of x_t itself in a density, and its share in the mean pull."""
    own = -moved / totals.z
    zq = value_of(reach_of_anchor(a, steps, rows))
    rest = (zq - load_common(a, steps, rows, rows.x_t)).to(tl.float32) + totals.change
    return own, tl.where(is_centred(a, steps, rows), rest * own, 0.0)


@triton.jit
def is_sure(divergence, grows, totals, num_classes):
    """Return whether float32 has kept the digits of a row's term."""
    bound = grows * (num_classes * UNDERFLOW)
    reached = (totals.zq > LEAST_REACH) & (totals.z > 0.0)
    return reached & (tl.abs(divergence) < float("inf")) & (bound <= 1.1920929e-7)
