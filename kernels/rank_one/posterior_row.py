"""Reverse steps of rank-one chains: what of log p, and of its gradient, is a number a token.

    log p_j = log(u + a [j = x_t]) + log f_j - log Z,   f_j = A s_j + ub_j

For G = dL/dlog p:  dL/dlogit_i = w_i G_i - s_i (c_i A / Z sum(G) + D), with c_i =
u + a [i = x_t], w_i = A s_i / f_i (1 where ub_i = 0) and D what makes the sum over i zero.

The classes x_t and the mask (where it is another) are apart from the rest.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..common.math import fast_exp, fast_log, log, plus_log, reciprocal, short_exp, tiny
from ..common.once import once, once_of
from .step import load_class, load_step, pi_at, posterior_mean_tilt, spread_at


class PosteriorCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K); None for q
    upstream: Any  # (N, K); None where log-probabilities are wanted, not their gradient
    x0: Any  # None for p
    x_t: Any
    out: Any  # (N, K)
    num_tokens: Any
    num_classes: Any
    HAS_MASK: Any  # whether the chain has a mask
    FAST: Any  # whether by the hardware's powers of two and logarithms
    IS_STAGED: Any = tl.constexpr(False)  # whether by tiles of ``staged.py``


class Tokens(NamedTuple):
    """The tokens of a program, and which of them are settled before their row is read."""

    at: Any
    x_t: Any
    inside: Any
    settled: Any
    bad: Any  # whether that is since an index is out of its range


class Special(NamedTuple):
    """The logits, or other entries of a row, of x_t and of the mask where that is another."""

    xt: Any
    mask: Any


class Reverse(NamedTuple):
    """A step back to each token; one to s itself leads to x_t from any class."""

    keep: Any
    u: Any
    bar_keep: Any
    log_bar_keep: Any
    bar_base: Any  # ub_j of the rest: over pi_j where classes have a pi each
    bar_xt: Any
    bar_mask: Any
    as_rest: Any  # Special: what ub_j of the special classes would be if they were of the rest
    tilt: Any


class Row(NamedTuple):
    """``exp(logit - top)`` of the special classes, that of x_t tilted; the sum over all classes."""

    e_xt: Any
    e_mask: Any
    sum: Any


@triton.jit
def exp_of(a, x):
    """Return exp(x) for x <= 0 or NaN."""
    if a.FAST:
        return fast_exp(x)
    else:
        return short_exp(x)


@triton.jit
def log_of(a, y):
    """Return log(y) for y >= 0 or NaN."""
    if a.FAST:
        return fast_log(y)
    else:
        return log(y)


@triton.jit
def with_log(a, x, y):
    """Return x + log(y) for a normal y > 0."""
    if a.FAST:
        return x + fast_log(y)
    else:
        return plus_log(x, y)


@triton.jit
def over(a, x, y):
    """Return x / y for y that is a normal number."""
    if a.FAST:
        return x * reciprocal(y)
    else:
        return x / y


@triton.jit
def load_reverse(a, chain, model, REAL: tl.constexpr, ROWS: tl.constexpr):
    """Return the program's tokens and their steps.

    A token that only x_t leads to is settled, whatever its logits.
    """
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < a.num_tokens
    step = load_step(chain, at, a.num_tokens, model.direct, REAL)
    x_t, is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    x_t = once(x_t.to(tl.int32))
    direct = step.predicts_x0
    u = spread_at(chain, step.base, step.to_mask, x_t, REAL)
    bar_xt = spread_at(chain, step.bar_base, step.bar_to_mask, x_t, REAL)
    tilt = tl.full([ROWS], 1.0, REAL)
    if model.posterior_mean:
        tilt = posterior_mean_tilt(step, u, bar_xt)
    u = tl.where(direct, 1.0, u)
    bad = (step.exists & is_class) == 0
    settled = once_of(bad | ((u == 0.0) & step.keeps))
    mask_id = tl.full([ROWS], chain.mask_id, tl.int32)
    bar_base = tl.where(direct | settled, 0.0, step.bar_base)
    as_rest = Special(bar_base * pi_at(chain, x_t, REAL), bar_base * pi_at(chain, mask_id, REAL))
    if chain.pi is None:
        bar_base = once(as_rest.xt)
    reverse = Reverse(
        tl.where(direct, 0.0, step.keep),
        u,
        tl.where(direct, 1.0, step.bar_keep),
        tl.where(direct, 0.0, step.log_bar_keep),
        bar_base,
        tl.where(direct, 0.0, bar_xt),
        tl.where(direct, 0.0, as_rest.mask + step.bar_to_mask),
        as_rest,
        tilt,
    )
    return Tokens(at, x_t, inside, settled, bad), reverse


@triton.jit
def value_of(tokens, value):
    """Return what settled tokens have somewhere."""
    return tl.where(tokens.bad, float("nan"), value)


@triton.jit
def load_special(a, chain, tokens, row, other, REAL: tl.constexpr):
    """Return the entries of rows of the special classes; another number where one is not read."""
    at = row + tokens.at * a.num_classes
    reads = tokens.inside & (tokens.settled == 0)
    xt = tl.load(at + tokens.x_t, mask=reads, other=other).to(REAL)
    mask = tl.full([tokens.x_t.shape[0]], other, REAL)
    if a.HAS_MASK:
        apart = reads & (tokens.x_t != chain.mask_id)
        mask = tl.load(at + chain.mask_id, mask=apart, other=other).to(REAL)
    return Special(xt, mask)


@triton.jit
def load_special_logits(a, chain, tokens, REAL: tl.constexpr):
    """Return the logits of the special classes, -inf for one that is forbidden."""
    special = load_special(a, chain, tokens, a.logits, float("-inf"), REAL)
    if a.HAS_MASK:
        xt = tl.where(tokens.x_t == chain.forbidden, float("-inf"), special.xt)
        mask = tl.where(chain.mask_id == chain.forbidden, float("-inf"), special.mask)
        return Special(xt, mask)
    else:
        return special


@triton.jit
def highest(tokens, of_rest, special):
    """Return the largest logit of a row; 0 where it is not read."""
    top = tl.maximum(tl.maximum(of_rest, special.xt), special.mask)
    return tl.where(tokens.settled, 0.0, top)


@triton.jit
def row_of(a, reverse, special, top, of_rest):
    """Return what the special classes have of the sum of a row, given that of the rest."""
    e_xt = exp_of(a, special.xt - top) * reverse.tilt
    e_mask = tl.zeros_like(e_xt)
    if a.HAS_MASK:
        e_mask = exp_of(a, special.mask - top)
    return Row(e_xt, e_mask, of_rest + e_xt + e_mask)


@triton.jit
def z_of(a, reverse, row):
    """Return Z of each token."""
    here = reverse.bar_keep * over(a, row.e_xt, row.sum) + reverse.bar_xt
    return reverse.u + reverse.keep * here


class LogLine(NamedTuple):
    """log p of a class is a logarithm, or where ub_j = 0 a line of its logit.

    There its level goes before anything is rounded.
    """

    scale: Any  # f_j = scale e_j + ub_j
    log_scale: Any  # log p_j = logit_j - top + log_scale
    log_leave: Any  # log p_j = log f_j + log_leave


@triton.jit
def log_line_of(a, tokens, reverse, row, z):
    """Return the line of the rest; of a settled token everything is the same."""
    log_leave = log_of(a, over(a, reverse.u, z))
    log_scale = reverse.log_bar_keep - with_log(a, 0.0, row.sum) + log_leave
    log_scale = tl.where(tokens.settled, value_of(tokens, float("-inf")), log_scale)
    return LogLine(over(a, reverse.bar_keep, row.sum), log_scale, log_leave)


@triton.jit
def log_f(a, e, log_s, bar, line, log_scale):
    """Return log f of a special class."""
    of_sum = with_log(a, 0.0, line.scale * e + bar)
    return tl.where(bar > tiny(e.dtype), of_sum, log_s + log_scale)


@triton.jit
def store_special_logs(a, chain, tokens, reverse, special, top, row, z, line):
    """Write log p of the special classes."""
    log_scale = line.log_scale - line.log_leave
    log_s = with_log(a, special.xt - top, reverse.tilt)
    log_stay = log_of(a, over(a, reverse.u + reverse.keep, z))
    log_xt = log_stay + log_f(a, row.e_xt, log_s, reverse.bar_xt, line, log_scale)
    log_xt = tl.where(tokens.settled, value_of(tokens, 0.0), log_xt)
    log_mask = tl.zeros_like(log_xt)
    if a.HAS_MASK:
        log_s = special.mask - top
        of_f = log_f(a, row.e_mask, log_s, reverse.bar_mask, line, log_scale)
        log_mask = tl.where(tokens.settled, line.log_scale, line.log_leave + of_f)
    store_special(a, chain, tokens, Special(log_xt, log_mask))


class Pull(NamedTuple):
    """What the gradient of a class is made of, ``w_i G_i - e_i (level + [i = x_t] level_xt)``."""

    level: Any
    level_xt: Any


@triton.jit
def bend_of(a, reverse, row):
    """Return what makes ``w_j = e_j / (e_j + bend ub_j)``."""
    return over(a, row.sum, reverse.bar_keep)


@triton.jit
def weight_of(a, e, bar, bend):
    """Return w of a special class of each token."""
    return tl.where(bar > tiny(e.dtype), over(a, e, e + bend * bar), 1.0)


@triton.jit
def weights_of(a, chain, tokens, reverse, row, bend):
    """Return w of the special classes."""
    xt = weight_of(a, row.e_xt, reverse.bar_xt, bend)
    mask = weight_of(a, row.e_mask, reverse.bar_mask, bend)
    if a.HAS_MASK:
        xt = tl.where(tokens.x_t == chain.forbidden, 0.0, xt)
        mask = tl.where(chain.mask_id == chain.forbidden, 0.0, mask)
    return Special(xt, mask)


@triton.jit
def weight_in_tile(bar):
    """Return what a tile has as w of a special class of each token, where e is 0."""
    return tl.where(bar > tiny(bar.dtype), 0.0, 1.0)


@triton.jit
def pull_of(
    a, chain, tokens, reverse, row, z, bend, all_g, wg_of_tile, REAL: tl.constexpr
):  # fmt: skip
    """Return the pull of each token, and w G of the special classes.

    Given the sums of G and of w G as a tile has them.
    """
    g = load_special(a, chain, tokens, a.upstream, 0.0, REAL)
    w = weights_of(a, chain, tokens, reverse, row, bend)
    more_xt = w.xt - weight_in_tile(reverse.as_rest.xt)
    more_mask = w.mask - weight_in_tile(reverse.as_rest.mask)
    per_row = over(a, 1.0, row.sum)
    stay = reverse.keep * over(a, reverse.bar_keep, z) * all_g
    level = wg_of_tile + more_xt * g.xt + more_mask * g.mask - stay * row.e_xt * per_row
    level = tl.where(tokens.settled, value_of(tokens, 0.0), level * per_row)
    return Pull(level, stay * per_row), Special(w.xt * g.xt, w.mask * g.mask)


@triton.jit
def store_special_gradient(a, chain, tokens, row, weighted, pull):
    """Write the gradient of the special classes, of their w G."""
    xt = weighted.xt - row.e_xt * (pull.level + pull.level_xt)
    xt = tl.where(tokens.settled, value_of(tokens, 0.0), xt)
    mask = tl.zeros_like(xt)
    if a.HAS_MASK:
        mask = tl.where(
            tokens.settled, value_of(tokens, 0.0), weighted.mask - row.e_mask * pull.level
        )
    store_special(a, chain, tokens, Special(xt, mask))


@triton.jit
def store_special(a, chain, tokens, values):
    """Write the entries of the special classes, once all threads have written the rest's."""
    tl.debug_barrier()
    to = a.out + tokens.at * a.num_classes
    kind = a.out.dtype.element_ty
    tl.store(to + tokens.x_t, values.xt.to(kind), mask=tokens.inside)
    if a.HAS_MASK:
        apart = tokens.inside & (tokens.x_t != chain.mask_id)
        tl.store(to + chain.mask_id, values.mask.to(kind), mask=apart)
