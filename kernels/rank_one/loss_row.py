"""The loss of tokens of a rank-one chain; ``csrc/loss_row.h`` derives it and has the notation.

The classes x_0, x_t (where it is another) and the mask (where it is neither) are apart from the
rest: what there is of them is a number a token.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import fast_exp, log1p, phi, phi_plus, reciprocal, tiny


class Token(NamedTuple):
    """The step as the special classes see it, and the weights.

    Whether the divergence is wanted, and whether the bound's term is the cross-entropy; the factor
    of both terms, which the weights have.
    """

    keep: Any
    spread: Any
    spread_in_z: Any
    bar_keep: Any
    bar_base: Any
    bar_x0: Any
    bar_xt: Any
    bar_mask: Any
    same: Any
    tilt: Any
    vb: Any
    ce: Any
    diverges: Any
    is_direct: Any
    weight: Any


class Row(NamedTuple):
    """exp(logit - top) of the special classes and summed over the rest, all times one number."""

    e_x0: Any
    e_xt: Any
    e_mask: Any
    e_rest: Any
    log_e_x0: Any


class Solved(NamedTuple):
    """What the classes of the rest need, see ``csrc/loss_row.h``, and ``finish`` again."""

    ratio: Any
    shift: Any
    slope: Any
    curved: Any
    others: Any
    sum: Any
    cross_entropy: Any
    inv: Any
    s_x0: Any
    not_x0: Any
    s_xt: Any
    s_mask: Any
    d_x0: Any
    f_x0: Any
    f_xt: Any
    per_d_x0: Any
    per_z: Any
    per_zq: Any
    g_x0: Any
    level: Any  # s[x_0] is this times exp(-cross_entropy)


class Ends(NamedTuple):
    """What the sums over the rest are added to, and how much of theirs is: all that is left to do.

    Of a token without curvature the sums are 0.
    """

    loss: Any
    loss_of_phi: Any
    divergence: Any
    divergence_of_phi: Any
    steep: Any
    flat: Any
    grad_x0: Any
    grad_xt: Any
    grad_mask: Any


class Result(NamedTuple):
    """The loss and its gradient, ``e_j (steep h_j + flat)`` for a class j of the rest."""

    loss: Any
    divergence: Any
    steep: Any
    flat: Any
    grad_x0: Any
    grad_xt: Any
    grad_mask: Any


@triton.jit
def row_of(a, top, e_rest, special):
    """Return what the mathematics of a token needs of its row."""
    logit_x0, logit_xt, logit_mask = special
    e_mask = tl.zeros_like(e_rest)
    if a.HAS_MASK:
        e_mask = fast_exp(logit_mask - top)
    log_e_x0 = logit_x0 - top
    return Row(fast_exp(log_e_x0), fast_exp(logit_xt - top), e_mask, e_rest, log_e_x0)


@triton.jit
def one_plus(g, product):
    """Return 1 + g, or where more of its digits are in a product of factors, that."""
    return tl.where(g > -0.5, 1.0 + g, product)


@triton.jit
def solve(token, row, REAL: tl.constexpr):
    """Return what a token's row leads to, but for the sums of curvature."""
    same = token.same
    raw_xt = tl.where(same, 0.0, row.e_xt)
    others = row.e_rest + row.e_mask + raw_xt
    sum = row.e_x0 + others
    # Where x_0 leads, the logarithm of sum / e_x0 does not cancel.
    over = others * reciprocal(row.e_x0)
    leads = over < 1.0
    log_sum = log1p(tl.where(leads, over, sum - 1.0))
    cross_entropy = tl.where(leads, log_sum, log_sum - row.log_e_x0)

    tilt_x0 = tl.where(same, token.tilt, 1.0)
    t_x0 = row.e_x0 * tilt_x0
    t_xt = raw_xt * token.tilt
    t_others = row.e_rest + row.e_mask + t_xt
    inv = reciprocal(t_x0 + t_others)
    s_x0 = t_x0 * inv
    s_xt = t_xt * inv
    not_x0 = t_others * inv

    d_x0 = token.bar_keep + token.bar_x0
    f_x0 = token.bar_keep * s_x0 + token.bar_x0
    d_xt = tl.where(same, d_x0, token.bar_xt)
    f_xt = tl.where(same, f_x0, token.bar_keep * s_xt + token.bar_xt)
    z = token.spread_in_z + token.keep * f_xt
    zq = token.spread_in_z + token.keep * d_xt
    per_z, per_d_x0 = reciprocal(z), reciprocal(d_x0)
    shift = token.keep * token.bar_keep * tl.where(same, not_x0, -s_xt) * per_z
    ratio = one_plus(shift, zq * per_z)
    curved = (token.bar_base > tiny(REAL)) & token.diverges & (ratio > 0.0)
    slope = ratio * token.bar_keep * inv * reciprocal(token.bar_base)

    fall_same = token.spread * not_x0
    fall_other = not_x0 * (token.spread_in_z + token.keep * token.bar_xt) + token.keep * d_x0 * s_xt
    fall = tl.where(same, fall_same, fall_other)
    g_x0 = tl.where(d_x0 > 0.0, -(token.bar_keep * per_d_x0) * (fall * per_z), 0.0)
    return Solved(
        ratio,
        shift,
        slope,
        curved,
        others,
        sum,
        cross_entropy,
        inv,
        s_x0,
        not_x0,
        s_xt,
        row.e_mask * inv,
        d_x0,
        f_x0,
        f_xt,
        per_d_x0,
        per_z,
        reciprocal(zq),
        g_x0,
        tilt_x0 * sum * inv,
    )


@triton.jit
def needs_sums(a, token, solved, REAL: tl.constexpr):
    """Return which tokens have a curve, or a mask apart with a phi of its own."""
    needs = solved.curved
    if a.HAS_MASK:
        needs |= token.diverges & (token.bar_mask > tiny(REAL))
    return needs


@triton.jit
def ends_of(a, token, row, solved, REAL: tl.constexpr, ALONE: tl.constexpr = False):
    """Return all of the result that needs no sum of curvature.

    ALONE says that no token needs any, see :func:`needs_sums`.
    """
    least = tiny(REAL)
    ratio = solved.ratio
    per_z, per_zq = solved.per_z, solved.per_zq
    is_density = token.spread_in_z != token.spread
    stay = token.spread_in_z + token.keep

    # x_0. Where ub = 0 its ratio is that of s, whose logarithm outlives its underflow.
    c_x0 = tl.where(token.same, stay, token.spread)
    q_x0 = c_x0 * per_zq * solved.d_x0
    has_x0 = token.bar_x0 > least
    r_x0 = one_plus(solved.g_x0, solved.f_x0 * solved.per_d_x0 * ratio)
    is_far = (token.bar_x0 <= least) & (solved.g_x0 < -0.5)
    less = tl.where(is_far, solved.cross_entropy, 0.0)
    phi_x0 = phi_plus(solved.g_x0, tl.where(is_far, solved.level * ratio, r_x0), less)
    w_x0 = tl.where(has_x0, token.bar_keep * solved.s_x0 * reciprocal(solved.f_x0), 1.0)
    # Also where q_x0 is below the range.
    possible = (c_x0 > 0.0) & (solved.d_x0 > 0.0) & ((is_density & token.same) == 0)
    weighted = tl.where(phi_x0 < float("inf"), q_x0 * phi_x0, phi_x0)
    term_x0 = tl.where(possible, weighted, 0.0)
    pull_x0 = q_x0 * solved.g_x0 * w_x0

    # x_t, where it is another class.
    has_xt = token.bar_xt > least
    g_xt = token.spread * reciprocal(token.bar_xt) * (token.bar_keep * solved.s_xt * per_z)
    r_xt = 1.0 + tl.where(is_density, 0.0, g_xt)
    h_xt = tl.where(has_xt, g_xt * reciprocal(r_xt), 1.0)
    near_xt = tl.where(is_density, 0.0, phi(g_xt, r_xt))
    term_xt = tl.where(has_xt, stay * per_zq * token.bar_xt * near_xt, stay * per_z * solved.f_xt)
    pull_xt = stay * per_z * token.bar_keep * solved.s_xt * h_xt

    # The mask, where it is neither.
    term_mask, pull_mask = tl.zeros_like(ratio), tl.zeros_like(ratio)
    if a.HAS_MASK and ALONE:
        term_mask = token.spread * per_z * token.bar_keep * solved.s_mask
        pull_mask = term_mask
    elif a.HAS_MASK:
        has_mask = token.bar_mask > least
        lift = ratio * token.bar_keep * solved.s_mask * reciprocal(token.bar_mask)
        r_mask = ratio + lift
        h_mask = tl.where(has_mask, (solved.shift + lift) * reciprocal(r_mask), 1.0)
        near_mask = token.spread * per_zq * token.bar_mask * phi(solved.shift + lift, r_mask)
        term_mask = tl.where(
            has_mask, near_mask, token.spread * per_z * token.bar_keep * solved.s_mask
        )
        pull_mask = token.spread * per_z * token.bar_keep * solved.s_mask * h_mask

    # The rest.
    per_e = token.spread * per_z * token.bar_keep * solved.inv
    flat_rest = per_e * row.e_rest
    if not ALONE:
        flat_rest = tl.where(solved.curved, 0.0, flat_rest)
    of_phi = token.spread * per_zq * token.bar_base

    divergence = term_x0 + tl.where(token.same, 0.0, term_xt) + term_mask + flat_rest
    pull_others = tl.where(token.same, 0.0, pull_xt) + pull_mask + flat_rest

    bound = token.vb != 0.0
    loss = tl.where(bound, token.vb * divergence, 0.0)
    loss += tl.where(token.ce != 0.0, token.ce * solved.cross_entropy, 0.0)
    common = tl.where(bound, -token.vb * (pull_x0 + pull_others), 0.0)
    share = token.ce * reciprocal(solved.sum)
    slant_x0 = pull_x0 * solved.not_x0 - solved.s_x0 * pull_others
    return Ends(
        loss,
        tl.where(bound, token.vb * of_phi, 0.0),
        divergence,
        of_phi,
        tl.where(bound, token.vb * per_e, 0.0),
        common * solved.inv + share,
        tl.where(bound, token.vb * slant_x0, 0.0) - share * solved.others,
        tl.where(bound, token.vb * pull_xt, 0.0) + common * solved.s_xt + share * row.e_xt,
        tl.where(bound, token.vb * pull_mask, 0.0) + common * solved.s_mask + share * row.e_mask,
    )


@triton.jit
def result_of(ends, solved, sum_phi, sum_h):
    """Return the result, from sums of pi_j phi(g_j) and e_j h_j over the rest."""
    sum_phi = tl.where(solved.curved, sum_phi, 0.0)
    pull = ends.steep * tl.where(solved.curved, sum_h, 0.0)
    return Result(
        ends.loss + ends.loss_of_phi * sum_phi,
        ends.divergence + ends.divergence_of_phi * sum_phi,
        ends.steep,
        ends.flat - pull * solved.inv,
        ends.grad_x0 - pull * solved.s_x0,
        ends.grad_xt - pull * solved.s_xt,
        ends.grad_mask - pull * solved.s_mask,
    )


@triton.jit
def result_alone(ends):
    """Return the result where there are no sums; h is 1, and so all of the gradient is flat."""
    return Result(
        ends.loss,
        ends.divergence,
        tl.zeros_like(ends.steep),
        ends.steep + ends.flat,
        ends.grad_x0,
        ends.grad_xt,
        ends.grad_mask,
    )


@triton.jit
def finish(a, token, row, solved, sum_phi, sum_h, REAL: tl.constexpr):
    """Return the result of a row, from its sums."""
    return result_of(ends_of(a, token, row, solved, REAL), solved, sum_phi, sum_h)
