"""The loss of chains of matrices and its gradient.

Few classes: one program a tile of tokens, from the logits to their gradient, with both products in
it. Many, or a posterior mean, whose float64 leaves no registers for that: the products are kernels
of their own, see ``split.py``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import MatrixStep
from ...chains.tables import StepTables, step_tables
from ...records import Loss, Model
from ...reductions import reduced
from ..common.launch import launch
from ..common.math import phi
from .call import DenseCall, Weights, has_bound, store_results, weights_of
from .divergence import (
    Totals,
    divergence_of,
    entries_of,
    is_sure,
    mean_pull_of_loss,
    own_pull_of,
    totals_of,
)
from .entries import value_of
from .exact import (
    carry_row,
    cross_entropy_of,
    fill,
    load_log_joint,
    log_z_of,
    matrix_of,
    recompute_inexact,
    rows_of,
    state_of,
    write_gradient,
)
from .multiply import load_parts, multiply, sum_of
from .predict import probabilities, reach_of_anchor, softmax_of, value_at_anchor
from .pull import store_anchor, store_row
from .shape import MOST_FUSED, PRECISION, fused_shape
from .split import carry_by, load_between, load_known, pull_by, split_of, store_between
from .tiles import load_rows, tiles_of


@triton.jit
def store_loss(a, steps, rows, w, cross_entropy, divergence, sure):
    """Write each row's loss, and whether it is to be recomputed, an impossible pair too."""
    sure &= reach_of_anchor(a, steps, rows) != 0.0
    other = tl.where(rows.counts, float("nan"), 0.0)
    store_results(a, rows.at, rows.inside, w, cross_entropy, divergence, rows.live, other)
    inexact = rows.live & (sure == 0)
    tl.store(a.inexact + rows.at, inexact.to(tl.int8), mask=rows.inside)


@triton.jit
def loss_of_tiles(
    a, steps, tiles, weights, num_steps, DIRECT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A block of ``v Qbar_s`` becomes one of r, and that a part of ``r Qbar_s^T``."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    w = weights_of(a, steps, rows.step, rows.at, rows.inside, weights, DIRECT, tl.float32)
    softmax = softmax_of(a, steps, rows, False, ROWS, BLOCK)
    divergence, sure = tl.zeros([ROWS], tl.float32), rows.inside
    i = tl.arange(0, SIZE)[None, :]
    pull = tl.zeros([ROWS, SIZE], tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    if has_bound(w):
        totals = totals_of(a, steps, rows, softmax, False, ROWS, BLOCK)
        at_anchor = value_at_anchor(a, steps, rows, softmax.others)
        grows = tl.zeros([ROWS], tl.float32)
        moved = tl.zeros([ROWS], tl.float32)
        for start in range(0, a.num_classes, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            carried = tl.zeros([ROWS, COLUMNS], tl.float32)
            for first in range(0, a.num_classes, BLOCK):
                k = first + tl.arange(0, BLOCK)
                s = probabilities(a, steps, rows, softmax, k[None, :], False)
                v = tl.where(k[None, :] == rows.anchor[:, None], at_anchor[:, None], s)
                parts = load_parts(a, steps, rows, k[:, None], j[None, :])
                carried = multiply(v, parts, carried, PRECISION)
            entries = entries_of(
                a, steps, rows, softmax.anchor, softmax.others, carried, j[None, :]
            )
            term, r, more, part = divergence_of(entries, totals)
            divergence += term
            grows += more
            moved += part
            mean += mean_pull_of_loss(a, steps, rows, carried, r, j[None, :])
            if a.out is not None:
                pull = multiply(r, load_parts(a, steps, rows, i, j[:, None]), pull, PRECISION)
        if a.IS_DENSITY:
            own, share = own_pull_of(a, steps, rows, totals, moved)
            mean += share
            pull += own[:, None] * sum_of(load_parts(a, steps, rows, i, rows.x_t[:, None]))
        sure = is_sure(divergence, grows, totals, a.num_classes)
    store_loss(a, steps, rows, w, softmax.cross_entropy, divergence, sure)
    if a.out is not None:
        s = probabilities(a, steps, rows, softmax, i, False)
        pulled = w.vb[:, None] * s * (pull - mean[:, None]) + w.ce[:, None] * s
        gradient = tl.where(i == rows.anchor[:, None], 0.0, w.grad * pulled)
        store_row(a, rows, i, gradient)
        store_anchor(a, rows, tl.sum(gradient, axis=1))


@triton.jit
def loss_of_rows(
    a, steps, tiles, between, weights, num_steps,
    DIRECT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the loss, and r in the place of f."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    w = weights_of(a, steps, rows.step, rows.at, rows.inside, weights, DIRECT, tl.float32)
    divergence, sure = tl.zeros([ROWS], tl.float32), rows.inside
    if has_bound(w):
        anchor, others = load_known(a, between, rows, 0), load_known(a, between, rows, 1)
        zq = value_of(reach_of_anchor(a, steps, rows)).to(tl.float32)
        totals = Totals(load_known(a, between, rows, 5), zq, load_known(a, between, rows, 6))
        grows = tl.zeros([ROWS], tl.float32)
        mean = tl.zeros([ROWS], tl.float32)
        moved = tl.zeros([ROWS], tl.float32)
        for start in range(0, a.num_classes, COLUMNS):
            j = start + tl.arange(0, COLUMNS)[None, :]
            carried = load_between(a, between.rows, rows, j)
            entries = entries_of(a, steps, rows, anchor, others, carried, j)
            term, r, more, part = divergence_of(entries, totals)
            store_between(a, between.rows, rows, j, r)
            divergence += term
            grows += more
            moved += part
            mean += mean_pull_of_loss(a, steps, rows, carried, r, j)
        if a.IS_DENSITY:
            own, share = own_pull_of(a, steps, rows, totals, moved)
            mean += share
            tl.debug_barrier()
            at = between.rows + rows.at * a.num_classes + rows.x_t
            tl.store(at, own, mask=rows.live)
        tl.store(between.mean + rows.at, mean, mask=rows.inside)
        sure = is_sure(divergence, grows, totals, a.num_classes)
    store_loss(a, steps, rows, w, load_known(a, between, rows, 2), divergence, sure)


@triton.jit
def recompute_loss(
    a, steps, recompute, vb_weight: tl.float64, ce_weight: tl.float64, grad_scale: tl.float64,
    count, TILTED: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The inexact rows."""
    for at in range(tl.program_id(0).to(tl.int64), a.num_tokens, tl.num_programs(0)):
        step, wanted, other = state_of(a, recompute, at)
        if wanted:
            weights = Weights(vb_weight, ce_weight, grad_scale, count)
            here = at + tl.zeros([1], tl.int64)
            w = weights_of(a, steps, step, here, here >= 0, weights, DIRECT, tl.float64)
            loss_of_row(a, steps, at, step, recompute.work, w, TILTED, BLOCK)
        elif a.inexact is None:
            fill_results(a, at, other)
            if a.out is not None:
                fill(a, at, other, BLOCK)


@triton.jit
def loss_of_row(a, steps, at, step, work, w, TILTED: tl.constexpr, BLOCK: tl.constexpr):
    """Write a row's loss and gradient."""
    plain, row = rows_of(a, steps, at, step, work, TILTED, BLOCK)
    divergence = tl.zeros([1], tl.float64)
    if has_bound(w):
        carry_row(a, steps, row, BLOCK)
        divergence = diverge_exactly(a, steps, row, BLOCK)
    here, reach = at + tl.zeros([1], tl.int64), load_reach(a, steps, row)
    cross_entropy = cross_entropy_of(a, steps, plain)
    value = store_results(
        a, here, here >= 0, w, cross_entropy, divergence, reach > 0.0, float("nan")
    )
    if a.out is not None:
        is_finite = tl.abs(value) < float("inf")
        write_gradient(a, steps, row, plain, w.vb, w.ce, w.grad, is_finite, BLOCK)


@triton.jit
def fill_results(a, at, value):
    """Write the same number for the loss of a token and its terms."""
    width: tl.constexpr = 3 if a.WITH_TERMS else 1
    for i in tl.static_range(width):
        tl.store(a.loss + at * width + i, value.to(a.loss.dtype.element_ty))


@triton.jit
def load_reach(a, steps, row):
    """Return ``Qbar_t[x_0, x_t]``."""
    at = matrix_of(steps.q_bar_t, a, row.step) + row.anchor * a.num_classes + row.x_t
    return tl.load(at + tl.zeros([1], tl.int64))


@triton.jit
def diverge_exactly(a, steps, row, BLOCK: tl.constexpr):
    """Return a row's divergence; ``f - d`` gives way to ``p_j - q_j``.

    Where p is within a factor of q, by the difference; else by the logarithms. A density's q and p
    are rates, of the other classes, and x_t has what takes their differences to 0.
    """
    log_z, leading = log_z_of(a, steps, row, BLOCK)
    own = row.delta + row.x_t + tl.zeros([1], tl.int64)
    if a.IS_DENSITY:
        log_z = tl.load(row.log_f + row.x_t + tl.zeros([1], tl.int64))
    zq = load_reach(a, steps, row)
    log_zq = tl.log(zq)
    per_zq = 1.0 / zq
    ratio = tl.exp(log_zq - log_z)
    change = tl.zeros([1], tl.float64)
    if a.IS_DENSITY:
        change = tl.load(own)
    else:
        for start in range(0, a.num_classes, BLOCK):
            j = start + tl.arange(0, BLOCK)
            log_c, _ = load_log_joint(a, steps, row, j)
            moved = tl.load(row.delta + j, mask=j < a.num_classes, other=0.0)
            change += tl.sum(tl.exp(log_c) * moved, axis=0)
    w = change * per_zq
    truth = matrix_of(steps.q_bar, a, row.step) + row.anchor * a.num_classes
    total = tl.zeros([1], tl.float64)
    balance = tl.zeros([1], tl.float64)
    alone = leading == 1  # nothing but x_t leads to it: the step stayed there
    if a.IS_DENSITY:
        alone = leading < 0
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < a.num_classes
        log_c, log_f = load_log_joint(a, steps, row, j)
        d = tl.load(truth + j, mask=inside, other=0.0)
        moved = tl.load(row.delta + j, mask=inside, other=0.0)
        possible = (log_c > float("-inf")) & (alone == 0)
        had = possible & (d > 0.0)
        log_q = log_c + tl.log(tl.where(had, d, 1.0)) - log_zq
        log_p = tl.where(possible, log_c + log_f - log_z, 0.0)
        q, p = tl.exp(log_q), tl.exp(log_p)
        apart = log_p - log_q
        near = had & (d > 1e-290) & (tl.abs(apart) < 0.5) & (ratio < 2.0)
        g = tl.where(near, (moved / tl.where(near, d, 1.0) - w) * ratio, 0.0)
        phi_near = phi(g, 1.0 + g)
        far = p - q - q * tl.where(near, 0.0, apart)
        term = tl.where(had, tl.where(near, q * phi_near, far), p)
        delta = tl.where(had, tl.where(near, q * g, p - q), p)
        total += tl.sum(tl.where(possible, term, 0.0), axis=0)
        delta = tl.where(possible, delta, 0.0)
        balance -= tl.sum(delta, axis=0)
        tl.store(row.delta + j, delta, mask=inside)
    if a.IS_DENSITY:
        tl.debug_barrier()
        tl.store(own, balance)
    return total


def loss(of: Loss[MatrixStep], reduction: str, late: bool | None = None) -> Any:
    """Return the loss, and with ``late`` its gradient, which a mean leaves undivided where True."""
    grad = None if late is None else torch.empty_like(of.logits)
    logits, x0, mask, x_t, step, model, terms, is_density, with_terms = of
    steps, which = step_tables(step)
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = *x0.shape, *((3,) if with_terms else ())
    token_loss = torch.empty(shape, dtype=real, device=logits.device)
    inexact = torch.empty(x0.shape, dtype=torch.int8, device=logits.device)
    mean = reduction == "mean"
    count = mask.sum().to(real) if mask is not None and mean else None
    early = mean and not late
    a = DenseCall(
        logits, x0, x_t, mask, None, token_loss, grad,
        inexact if real == torch.float32 else None, x0.numel(), logits.shape[-1],
        terms.tokens, tl.constexpr(with_terms), tl.constexpr(is_density),
    )  # fmt: skip
    scale = 1 / max(x0.numel(), 1) if early and count is None else 1.0
    weights = Weights(terms.vb, terms.ce, scale, count if early else None)
    if real == torch.float32:
        _run_tiles(a, steps, which, weights, model)
    recompute_inexact(recompute_loss, a, steps, which, *weights, *model)
    value = reduced(token_loss, reduction, count, with_terms)
    return value if grad is None else (value, grad)


def _run_tiles(
    a: DenseCall, steps: StepTables, which: Tensor, weights: Weights, model: Model
) -> None:
    num_steps = len(steps.s)
    if a.num_classes <= MOST_FUSED and not model.posterior_mean:
        shape, size = fused_shape(a.num_classes)
        tiles, num_tiles = tiles_of(which, num_steps, a.num_tokens, shape.rows)
        launch(
            loss_of_tiles, num_tiles, a.x_t, a, steps, tiles, weights, num_steps, model.direct,
            PRECISION, *shape[:3], size, num_warps=shape.num_warps,
        )  # fmt: skip
        return
    split = split_of(a, steps, which)
    between = carry_by(a, steps, split, weights, *model)
    rows, columns = split.row_shape
    launch(
        loss_of_rows, split.num_tiles, a.x_t, a, steps, split.tiles, between, weights, num_steps,
        model.direct, rows, columns // 2, num_warps=split.shape.num_warps,
    )  # fmt: skip
    if a.out is not None:
        pull_by(a, steps, split, between, weights, model.direct)
