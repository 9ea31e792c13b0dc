"""Log-probabilities of a step of rank-one chains, and their gradient.

    log q_j = log(u + a [j = x_t]) + log d_j - log Zq

``posterior_row.py`` has log p and its gradient. A row that fits is held by one program, many of
them where classes are few; a longer one is read again for each pass, out of the cache.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Model
from ..common.launch import constant, launch, triton_type
from ..common.math import log, reciprocal, tiny, widened
from ..common.staged import load_staged, staged_tile_of, store_staged
from ..common.tile import (
    classes_from,
    load_tile,
    on_flat,
    on_tile,
    row_max,
    row_sum,
    store_tile,
    tile_of,
)
from .posterior_row import (
    PosteriorCall,
    bend_of,
    exp_of,
    highest,
    load_reverse,
    load_special_logits,
    log_line_of,
    pull_of,
    row_of,
    store_special_gradient,
    store_special_logs,
    with_log,
    z_of,
)
from .step import chain_of, load_class, load_step, never_stays, pi_at, pi_of, spread_at


class Rows(NamedTuple):
    """The tokens of a program, and their classes."""

    at: Any
    x0: Any
    x_t: Any
    inside: Any
    good: Any  # whether the indices are in their ranges


@triton.jit
def load_rows(a, chain, REAL: tl.constexpr, ROWS: tl.constexpr):
    """Return the program's tokens and their steps."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    step = load_step(chain, at, a.num_tokens, False, REAL)
    x_t, is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    x0, x0_is_class = load_class(a.x0, at, a.num_tokens, a.num_classes)
    good = step.exists & is_class & x0_is_class
    return Rows(at, x0.to(tl.int32), x_t.to(tl.int32), at < a.num_tokens, good), step


@triton.jit
def bar_spread_of(chain, step, classes, REAL: tl.constexpr):
    """Return ``bar_base pi_j + bar_to_mask [j = mask]`` of a tile's classes."""
    if chain.pi is None:
        pi = pi_at(chain, classes.j, REAL)
    else:
        pi = pi_of(chain, classes)
    to_mask = tl.where(classes.j == chain.mask_id, on_tile(step.bar_to_mask), 0.0)
    return on_tile(step.bar_base) * pi + to_mask


@triton.jit
def store(a, rows, classes, values):
    """Write the entries of a tile; NaN where an index is bad."""
    values = tl.where(on_tile(rows.good), values, float("nan"))
    store_tile(a.out, classes, values)


@triton.jit
def q_posterior_of_tokens(
    a, chain, REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):  # fmt: skip
    """Write log q(x_s | x_t, x_0)."""
    rows, step = load_rows(a, chain, REAL, ROWS)
    u = spread_at(chain, step.base, step.to_mask, rows.x_t, REAL)
    bar_xt = spread_at(chain, step.bar_base, step.bar_to_mask, rows.x_t, REAL)
    same = rows.x0 == rows.x_t
    zq = u + step.keep * (bar_xt + tl.where(same, step.bar_keep, 0.0))
    log_leave = log(u / zq)
    log_stay = log((u + step.keep) / zq)
    stays = on_tile(u == 0.0)  # and NaN where it cannot
    impossible = on_tile(tl.where(never_stays(step, same, bar_xt), float("nan"), 0.0).to(REAL))
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        spread = bar_spread_of(chain, step, classes, REAL)
        kept = classes.j == on_tile(rows.x0)
        log_truth = log(spread + tl.where(kept, on_tile(step.bar_keep), 0.0))
        log_truth = tl.where(kept & (spread == 0.0), on_tile(step.log_bar_keep), log_truth)
        here = classes.j == on_tile(rows.x_t)
        log_q = tl.where(here, on_tile(log_stay), on_tile(log_leave)) + log_truth
        fixed = tl.where(here, 0.0, float("-inf")) + impossible
        store(a, rows, classes, tl.where(stays, fixed, log_q))


@triton.jit
def is_apart(a, chain, tokens, classes):
    """Return which classes of a tile are x_t or the mask."""
    apart = classes.high == on_tile(tokens.x_t) - classes.low
    if a.HAS_MASK:
        apart |= classes.high == chain.mask_id - classes.low
    return apart


@triton.jit
def load_entries(a, tokens, classes, pointer, other, REAL: tl.constexpr):
    """Return the entries of rows; another number for what is not read."""
    if a.IS_STAGED:
        reads = on_tile(tokens.settled == 0) & (classes.high < a.num_classes)
        return tl.where(reads, load_staged(a, pointer, classes).to(REAL), other)
    reads = (on_flat(tokens.settled.to(tl.int32), classes.j.shape[0]) == 0) & classes.there
    return widened(load_tile(pointer, classes, reads, other), REAL)


@triton.jit
def load_logits(a, chain, tokens, classes, REAL: tl.constexpr):
    """Return the logits of the rest, -inf for the special classes."""
    logits = load_entries(a, tokens, classes, a.logits, float("-inf"), REAL)
    return tl.where(is_apart(a, chain, tokens, classes), float("-inf"), logits)


@triton.jit
def bar_of_rest(chain, reverse, classes):
    """Return ub_j of classes of the rest."""
    if chain.pi is None:
        return on_tile(reverse.bar_base)
    else:
        return on_tile(reverse.bar_base) * pi_of(chain, classes)


@triton.jit
def is_entered(reverse):
    """Return whether noise enters the rest in a step of any token of the program."""
    return tl.max(reverse.bar_base, axis=0) > tiny(reverse.bar_base.dtype)


@triton.jit
def store_entries(a, classes, values):
    """Write the entries of rows."""
    if a.IS_STAGED:
        store_staged(a, a.out, classes, values)
    else:
        store_tile(a.out, classes, values)


@triton.jit
def store_log_p(a, chain, reverse, classes, x, e, line):
    """Write log p of the rest, given logit - top and its exponential."""
    log_p = on_tile(line.log_scale) + x
    if is_entered(reverse):
        bar = bar_of_rest(chain, reverse, classes)
        of_sum = with_log(a, on_tile(line.log_leave), on_tile(line.scale) * e + bar)
        log_p = tl.where(bar > tiny(e.dtype), of_sum, log_p)
    store_entries(a, classes, log_p)


@triton.jit
def weight_of_rest(chain, reverse, classes, e, bend):
    """Return w of classes of the rest; of others 0, or 1 where ub_j = 0."""
    bar = bar_of_rest(chain, reverse, classes)
    w = e * reciprocal(e + on_tile(bend) * bar)
    return tl.where(bar > tiny(e.dtype), w, 1.0)


@triton.jit
def p_posterior_of_whole_rows(
    a, chain, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write log p(x_s | x_t), or with ``upstream`` its gradient with respect to the logits."""
    tokens, reverse = load_reverse(a, chain, model, REAL, ROWS)
    classes = classes_from(a, 0, ROWS, HIGH, LOW)
    logits = load_logits(a, chain, tokens, classes, REAL)
    special = load_special_logits(a, chain, tokens, REAL)
    top = highest(tokens, row_max(logits), special)
    x = logits - on_tile(top)
    e = exp_of(a, x)
    row = row_of(a, reverse, special, top, row_sum(e))
    z = z_of(a, reverse, row)
    if a.upstream is None:
        line = log_line_of(a, tokens, reverse, row, z)
        store_log_p(a, chain, reverse, classes, x, e, line)
        store_special_logs(a, chain, tokens, reverse, special, top, row, z, line)
    else:
        g = load_entries(a, tokens, classes, a.upstream, 0.0, REAL)
        bend = bend_of(a, reverse, row)
        wg = g * weight_of_rest(chain, reverse, classes, e, bend)
        pull, weighted = pull_of(
            a, chain, tokens, reverse, row, z, bend, row_sum(g), row_sum(wg), REAL
        )
        store_entries(a, classes, wg - on_tile(pull.level) * e)
        store_special_gradient(a, chain, tokens, row, weighted, pull)


@triton.jit
def p_posterior_of_long_rows(
    a, chain, model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr
):  # fmt: skip
    """The same of a row a program, a tile of classes at a time."""
    tokens, reverse = load_reverse(a, chain, model, REAL, 1)
    special = load_special_logits(a, chain, tokens, REAL)
    highs = tl.full([HIGH, 1, LOW], float("-inf"), REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        highs = tl.maximum(highs, load_logits(a, chain, tokens, classes, REAL))
    top = highest(tokens, row_max(highs), special)
    sums = tl.zeros([HIGH, 1, LOW], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, 1, HIGH, LOW)
        sums += exp_of(a, load_logits(a, chain, tokens, classes, REAL) - on_tile(top))
    row = row_of(a, reverse, special, top, row_sum(sums))
    z = z_of(a, reverse, row)
    if a.upstream is None:
        line = log_line_of(a, tokens, reverse, row, z)
        for start in range(0, a.num_classes, HIGH * LOW):
            classes = classes_from(a, start, 1, HIGH, LOW)
            x = load_logits(a, chain, tokens, classes, REAL) - on_tile(top)
            store_log_p(a, chain, reverse, classes, x, exp_of(a, x), line)
        store_special_logs(a, chain, tokens, reverse, special, top, row, z, line)
    else:
        bend = bend_of(a, reverse, row)
        sums_g = tl.zeros([HIGH, 1, LOW], REAL)
        sums_wg = tl.zeros([HIGH, 1, LOW], REAL)
        for start in range(0, a.num_classes, HIGH * LOW):
            classes = classes_from(a, start, 1, HIGH, LOW)
            e = exp_of(a, load_logits(a, chain, tokens, classes, REAL) - on_tile(top))
            g = load_entries(a, tokens, classes, a.upstream, 0.0, REAL)
            sums_g += g
            sums_wg += g * weight_of_rest(chain, reverse, classes, e, bend)
        pull, weighted = pull_of(
            a, chain, tokens, reverse, row, z, bend, row_sum(sums_g), row_sum(sums_wg), REAL
        )
        for start in range(0, a.num_classes, HIGH * LOW):
            classes = classes_from(a, start, 1, HIGH, LOW)
            e = exp_of(a, load_logits(a, chain, tokens, classes, REAL) - on_tile(top))
            g = load_entries(a, tokens, classes, a.upstream, 0.0, REAL)
            wg = g * weight_of_rest(chain, reverse, classes, e, bend)
            store_entries(a, classes, wg - on_tile(pull.level) * e)
        store_special_gradient(a, chain, tokens, row, weighted, pull)


def q_posterior(x0: Tensor, x_t: Tensor, step: RankOneStep, dtype: torch.dtype) -> Tensor:
    """Return log q(x_s | x_t, x_0)."""
    out = torch.empty(*x0.shape, step.num_classes, dtype=dtype, device=x0.device)
    a = _call(None, None, x0, x_t, step, out)
    real = _real(out)
    chain = chain_of(a.num_tokens, step, real)
    tile = tile_of(a.num_classes, dtype, copies=1 if chain.pi is None else 2)
    launch(
        q_posterior_of_tokens, triton.cdiv(a.num_tokens, tile.rows), out, a, chain,
        triton_type(real), tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
    return out


def p_posterior(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    """Return log p(x_s | x_t), or with a gradient of it that of the logits."""
    out = torch.empty_like(logits)
    a = _call(logits, upstream, None, x_t, step, out)
    real = _real(out)
    chain = chain_of(a.num_tokens, step, real)
    tile = staged_tile_of(step.num_classes, out.dtype)
    if tile is not None:
        a = a._replace(num_classes=tl.constexpr(step.num_classes), IS_STAGED=tl.constexpr(True))
    else:
        tile = tile_of(step.num_classes, out.dtype, in_vectors=_numbers(out, upstream))
    if tile.num_classes < step.num_classes:
        kernel, shape = p_posterior_of_long_rows, (tile.high, tile.low)
    else:
        kernel, shape = p_posterior_of_whole_rows, (tile.rows, tile.high, tile.low)
    launch(
        kernel, triton.cdiv(a.num_tokens, tile.rows), out, a, chain, constant(model),
        triton_type(real), *shape, num_warps=tile.num_warps,
    )  # fmt: skip
    return out


def _numbers(out: Tensor, upstream: Tensor | None) -> int | None:
    """Return how many of a row a thread has; beside them it keeps what comes from above."""
    if out.dtype == torch.float64:
        return None
    return 32 if out.dtype == torch.float32 and upstream is not None else 64


def _real(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32


def _call(
    logits: Tensor | None,
    upstream: Tensor | None,
    x0: Tensor | None,
    x_t: Tensor,
    step: RankOneStep,
    out: Tensor,
) -> PosteriorCall:
    has_mask, fast = tl.constexpr(step.mask_id >= 0), tl.constexpr(out.dtype.itemsize == 2)
    size = x_t.numel(), step.num_classes
    return PosteriorCall(logits, upstream, x0, x_t, out, *size, has_mask, fast)
