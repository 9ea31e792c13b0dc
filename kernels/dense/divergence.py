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

from ..common.math import fast_reciprocal, phi, tiny
from .entries import value_of
from .predict import (
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
LEAST_F = tl.constexpr(1.2e-38)  # one below 2^-126 is float64 in Triton before 3.9
LEAST_REACH = tl.constexpr(1e-12)  # above it a class that `tiny` counts out has no share in q


class Entries(NamedTuple):
    """c, d, f and D of some classes."""

    c: Any
    d: Any
    f: Any
    change: Any


class Totals(NamedTuple):
    """``Z``, ``Zq`` and ``sum_j c_j D_j``."""

    z: Any
    zq: Any
    change: Any


@triton.jit
def entries_of(a, steps, rows, anchor, others, carried, j):
    """Return what is made of a loss's ``v Qbar_s`` at classes ``j [1, C]``.

    ``anchor`` is s of the anchor, and ``others`` that of all others.
    """
    c = value_of(load_column(a, steps, rows, j).to(tl.float32))
    d = value_of(load_truth(a, steps, rows, j).to(tl.float32))
    centred = is_centred(a, steps, rows)
    f = tl.where(centred, 1.0, anchor)[:, None] * d + carried
    change = carried - tl.where(centred, 0.0, others)[:, None] * d
    return Entries(tl.where(c < tiny(tl.float32), 0.0, c), d, f, change)


@triton.jit
def totals_of(
    a, steps, rows, softmax, TILTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the sums over all classes, by ``Z = (s Qbar_t)[x_t]``."""
    z = tl.zeros([ROWS], tl.float32)
    change = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]
        s = probabilities(a, steps, rows, softmax, i, TILTED)
        reached, more = reached_by(a, steps, rows, s, i)
        z += reached
        change += more
    return Totals(z, value_of(reach_of_anchor(a, steps, rows)).to(tl.float32), change)


@triton.jit
def reached_by(a, steps, rows, s, i):
    """Return what the classes ``i [1, C]`` have of ``Z`` and of ``Z - Zq``."""
    zq = value_of(reach_of_anchor(a, steps, rows))[:, None]
    reads = rows.reads & (i < a.num_classes)
    entry = tl.load(reach_at(a, steps, rows, i), mask=reads, other=0.0)
    reach = value_of(entry.to(tl.float32))
    more = tl.where(entry < 0.0, -zq, entry - zq).to(tl.float32)
    return tl.sum(s * reach, axis=1), tl.sum(s * more, axis=1)


@triton.jit
def divergence_of(entries, totals):
    """Return what some classes have of the sums, and their r.

    The sums are of the terms, of how f's error grows in them, and of ``r_j f_j``.
    """
    ratio = totals.zq / totals.z
    per_z, per_zq = 1.0 / totals.z[:, None], 1.0 / totals.zq[:, None]
    # Where Z is far below Zq, f is far below d, and keeps digits that f - d has lost.
    rises = totals.zq < 2.0 * totals.z
    scale = tl.where(rises, totals.change, totals.z)[:, None] * per_zq
    had = entries.d > tiny(tl.float32)
    d = tl.where(had, entries.d, 1.0)
    residual = tl.where(rises[:, None], entries.change, entries.f) - scale * d
    # An f below LEAST_F is so far below its d that the row is not sure, or d is as good as 0.
    per_f = fast_reciprocal(tl.maximum(entries.f, LEAST_F))
    per_q = ratio[:, None] * fast_reciprocal(d)
    reach, share = entries.c * per_z, entries.c * per_zq
    term = tl.where(had, share * d * phi(residual * per_q, entries.f * per_q), reach * entries.f)
    r = reach * tl.where(had, residual * per_f, 1.0)
    possible = entries.c > 0.0
    term, r = tl.where(possible, term, 0.0), tl.where(possible, r, 0.0)
    grows = reach + tl.where(had, share * (d * per_f), 0.0)
    return tl.sum(term, axis=1), r, tl.sum(grows, axis=1), tl.sum(r * entries.f, axis=1)


@triton.jit
def mean_pull_of(a, steps, rows, rest, r):
    """Return some classes' share in ``s Qbar_s r``, where all that is in common is left out.

    With it that is 0.
    """
    return tl.where(is_centred(a, steps, rows), tl.sum(rest * r, axis=1), 0.0)


@triton.jit
def mean_pull_of_loss(a, steps, rows, carried, r, j):
    """Return the same from what is carried of a loss's v, which lacks the anchor's row."""
    pull = tl.zeros_like(rows.x_t).to(tl.float32)
    if is_centred(a, steps, rows):
        rest = value_of(load_truth(a, steps, rows, j)) - load_common(a, steps, rows, j)
        pull += tl.sum((rest.to(tl.float32) + carried) * r, axis=1)
    return pull


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
