"""Log-probabilities of a step of rank-one chains, and their gradient.

    log q_j = log(u + a [j = x_t]) + log d_j - log Zq
    log p_j = log(u + a [j = x_t]) + log f_j - log Z

For G = dL/dlog p:  dL/dlogit_i = w_i G_i - s_i (c_i A / Z sum(G) + D), with c_i =
u + a [i = x_t], w_i = A s_i / f_i (1 where ub_i = 0) and D what makes the sum over i zero.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Model
from ..common.launch import constant, launch, triton_type
from ..common.math import exp, log, tiny
from ..common.tile import (
    classes_from,
    load_tile,
    on_tile,
    row_max,
    row_sum,
    store_tile,
    tile_of,
)
from .step import (
    Step,
    chain_of,
    load_class,
    load_step,
    never_stays,
    pi_at,
    pi_of,
    posterior_mean_tilt,
    spread_at,
)


class PosteriorCall(NamedTuple):
    """The tensors of all tokens."""

    logits: Any  # (N, K); None for q
    upstream: Any  # (N, K); None where log-probabilities are wanted, not their gradient
    x0: Any  # None for p
    x_t: Any
    out: Any  # (N, K)
    num_tokens: Any
    num_classes: Any


class Rows(NamedTuple):
    """The tokens of a program, and their classes."""

    at: Any
    x0: Any  # x_t for p
    x_t: Any
    inside: Any
    good: Any  # whether the indices are in their ranges


@triton.jit
def load_rows(a, chain, DIRECT: tl.constexpr, REAL: tl.constexpr, ROWS: tl.constexpr):
    """Return the program's tokens and their steps; one that is s itself jumps from anywhere."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    step = load_step(chain, at, a.num_tokens, DIRECT, REAL)
    x_t, is_class = load_class(a.x_t, at, a.num_tokens, a.num_classes)
    x0, x0_is_class = x_t, is_class
    if a.x0 is not None:
        x0, x0_is_class = load_class(a.x0, at, a.num_tokens, a.num_classes)
    good = step.exists & is_class & x0_is_class
    inside = at < a.num_tokens
    return Rows(at, x0.to(tl.int32), x_t.to(tl.int32), inside, good), step


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
    rows, step = load_rows(a, chain, False, REAL, ROWS)
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


class Predicted(NamedTuple):
    """The step to take and s = weight exp(logit - top) of each token."""

    step: Any
    u: Any
    top: Any
    log_tilt: Any
    sum: Any  # of the weights
    s_xt: Any
    z: Any


@triton.jit
def load_logits(a, chain, classes, REAL: tl.constexpr):
    """Return the logits of some classes, -inf for one that is forbidden."""
    logits = load_tile(a.logits, classes, classes.there, float("-inf")).to(REAL)
    return tl.where(classes.j == chain.forbidden, float("-inf"), logits)


@triton.jit
def load_exponents(a, chain, rows, top, log_tilt, classes, REAL: tl.constexpr):
    """Return the logarithm of s of some classes plus a number a row."""
    logits = load_logits(a, chain, classes, REAL)
    tilt = tl.where(classes.j == on_tile(rows.x_t), on_tile(log_tilt), 0.0)
    return (logits - on_tile(top)) + tilt


@triton.jit
def predict(
    a, chain, rows, step, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Return what the model says; the step to s itself is one from anywhere to where s says."""
    direct = step.predicts_x0
    zero = tl.zeros([ROWS], REAL)
    u = spread_at(chain, step.base, step.to_mask, rows.x_t, REAL)
    bar_xt = spread_at(chain, step.bar_base, step.bar_to_mask, rows.x_t, REAL)
    log_tilt = zero
    if model.posterior_mean:
        log_tilt = log(posterior_mean_tilt(step, u, bar_xt))
    u = tl.where(direct, 1.0, u)
    bar_xt = tl.where(direct, 0.0, bar_xt)
    taken = Step(
        tl.where(direct, 0.0, step.keep),
        step.base,
        step.to_mask,
        tl.where(direct, 1.0, step.bar_keep),
        tl.where(direct, 0.0, step.bar_base),
        tl.where(direct, 0.0, step.bar_to_mask),
        direct,
        step.exists,
        step.keeps,
        step.lasts,
        tl.where(direct, 0.0, step.log_bar_keep),
    )
    top = tl.full([ROWS], float("-inf"), REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        top = tl.maximum(top, row_max(load_logits(a, chain, classes, REAL)))
    sum = zero
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        sum += row_sum(exp(load_exponents(a, chain, rows, top, log_tilt, classes, REAL)))
    reads = rows.inside & rows.good
    logit_xt = tl.load(a.logits + rows.at * a.num_classes + rows.x_t, mask=reads, other=0.0)
    logit_xt = tl.where(rows.x_t == chain.forbidden, float("-inf"), logit_xt.to(REAL))
    s_xt = exp(logit_xt - top + log_tilt) / sum
    z = u + taken.keep * (taken.bar_keep * s_xt + bar_xt)
    return Predicted(taken, u, top, log_tilt, sum, s_xt, z)


@triton.jit
def p_posterior_of_tokens(
    a, chain, model,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Write log p(x_s | x_t), or with ``upstream`` its gradient with respect to the logits."""
    rows, step = load_rows(a, chain, model.direct, REAL, ROWS)
    predicted = predict(a, chain, rows, step, model, REAL, ROWS, HIGH, LOW)
    if a.upstream is None:
        write_log_p(a, chain, rows, predicted, REAL, ROWS, HIGH, LOW)
    else:
        write_gradient(a, chain, rows, predicted, REAL, ROWS, HIGH, LOW)


@triton.jit
def write_log_p(
    a, chain, rows, predicted,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Where ub_j = 0, f_j = A s_j: the level of the logits goes before anything is rounded."""
    step = predicted.step
    log_leave = on_tile(log(predicted.u / predicted.z))
    log_stay = on_tile(log((predicted.u + step.keep) / predicted.z))
    log_scale = on_tile(step.log_bar_keep - log(predicted.sum))
    scale = on_tile(step.bar_keep / predicted.sum)
    stays = on_tile((predicted.u == 0.0) & step.keeps)  # whatever the logits
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        exponents = load_exponents(a, chain, rows, predicted.top, predicted.log_tilt, classes, REAL)
        spread = bar_spread_of(chain, step, classes, REAL)
        log_f = log(scale * exp(exponents) + spread)
        log_f = tl.where(spread > tiny(REAL), log_f, exponents + log_scale)
        here = classes.j == on_tile(rows.x_t)
        reach = tl.where(here, log_stay, log_leave)
        fixed = tl.where(here, 0.0, float("-inf"))
        store(a, rows, classes, tl.where(stays, fixed, reach + log_f))


@triton.jit
def weigh(a, chain, rows, predicted, classes, REAL: tl.constexpr):
    """Return s, w and G of some classes."""
    exponents = load_exponents(a, chain, rows, predicted.top, predicted.log_tilt, classes, REAL)
    s = exp(exponents) / on_tile(predicted.sum)
    upstream = load_tile(a.upstream, classes, classes.there, 0.0).to(REAL)
    spread = bar_spread_of(chain, predicted.step, classes, REAL)
    kept = on_tile(predicted.step.bar_keep) * s
    w = tl.where(spread > tiny(REAL), kept / (kept + spread), 1.0)
    return s, tl.where(classes.j == chain.forbidden, 0.0, w), upstream


@triton.jit
def write_gradient(
    a, chain, rows, predicted,
    REAL: tl.constexpr, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Read the rows twice, the second time out of the cache."""
    step = predicted.step
    sum = tl.zeros([ROWS], REAL)
    weighted = tl.zeros([ROWS], REAL)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        _, w, upstream = weigh(a, chain, rows, predicted, classes, REAL)
        sum += row_sum(upstream)
        weighted += row_sum(w * upstream)
    pull = step.bar_keep / predicted.z * sum
    level = weighted - pull * (predicted.u + step.keep * predicted.s_xt)
    stays = on_tile((predicted.u == 0.0) & step.keeps)
    for start in range(0, a.num_classes, HIGH * LOW):
        classes = classes_from(a, start, ROWS, HIGH, LOW)
        s, w, upstream = weigh(a, chain, rows, predicted, classes, REAL)
        here = classes.j == on_tile(rows.x_t)
        reach = on_tile(predicted.u) + tl.where(here, on_tile(step.keep), 0.0)
        gradient = w * upstream - s * (reach * on_tile(pull) + on_tile(level))
        store(a, rows, classes, tl.where(stays, 0.0, gradient))


def q_posterior(x0: Tensor, x_t: Tensor, step: RankOneStep, dtype: torch.dtype) -> Tensor:
    """Return log q(x_s | x_t, x_0)."""
    num_classes = step.num_classes
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device=x0.device)
    arguments = PosteriorCall(None, None, x0, x_t, out, x0.numel(), num_classes)
    _run(q_posterior_of_tokens, arguments, step)
    return out


def p_posterior(
    logits: Tensor, x_t: Tensor, step: RankOneStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    """Return log p(x_s | x_t), or with a gradient of it that of the logits."""
    out = torch.empty_like(logits)
    arguments = PosteriorCall(logits, upstream, None, x_t, out, x_t.numel(), logits.shape[-1])
    _run(p_posterior_of_tokens, arguments, step, constant(model))
    return out


def _run(kernel: Any, a: PosteriorCall, step: RankOneStep, *model: Any) -> None:
    real = torch.float64 if a.out.dtype == torch.float64 else torch.float32
    chain = chain_of(a.num_tokens, step, real)
    tile = tile_of(a.num_classes, a.out.dtype, copies=1 if chain.pi is None else 2)
    launch(
        kernel, triton.cdiv(a.num_tokens, tile.rows), a.out, a, chain, *model, triton_type(real),
        tile.rows, tile.high, tile.low, num_warps=tile.num_warps,
    )  # fmt: skip
