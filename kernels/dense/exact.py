"""Rows whose digits float32 does not keep, one a program, in float64 and in log space.

With ``w_ij = s_i Qbar_s[i, j] / f_j`` from logarithms, ``dL/dlogit_i = sum_j w_ij delta_j``, where
``delta_j`` is ``p_j - q_j`` for the divergence and ``G_j - p_j sum(G)`` for log-probabilities.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.tables import StepTables
from ..common.launch import launch
from ..common.math import phi, rounded_to
from .call import DenseCall
from .entries import log_of, value_of

BLOCK = 32
MOST_PROGRAMS = 2048
NUM_WARPS = 4


class Recompute(NamedTuple):
    """Which rows there are to recompute, and where."""

    which: Any  # the step of every run of tokens
    run_length: Any
    num_steps: Any
    work: Any  # (programs, 2, K) float64


class Row(NamedTuple):
    """One token, what it is predicted to be, and where a program keeps rows of K numbers."""

    at: Any
    step: Any
    x_t: Any
    anchor: Any
    top: Any  # s = exp(logit - top) / sum
    log_sum: Any
    others: Any  # s of all but the anchor
    tilts: Any  # [1], whether ``reach`` divides s
    log_f: Any  # pointers
    delta: Any


@triton.jit
def state_of(a, recompute, at):
    """Return a token's step, whether it is to be done, and what stands for one that is not."""
    step = tl.load(recompute.which + at // recompute.run_length)
    if a.inexact is not None:
        return step, tl.load(a.inexact + at) != 0, float("nan")
    else:
        x_t, anchor = tl.load(a.x_t + at), tl.load(a.anchor + at)
        good = (x_t >= 0) & (x_t < a.num_classes) & (anchor >= 0) & (anchor < a.num_classes)
        good &= step < recompute.num_steps
        counts = good | True
        if a.mask is not None:
            counts = tl.load(a.mask + at) != 0
        if a.factors is not None:
            counts &= tl.load(a.factors + at) != 0.0
        return step, good & counts, tl.where(counts, float("nan"), 0.0)


@triton.jit
def fill(a, at, value, BLOCK: tl.constexpr):
    """Write the same number to a whole row."""
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        kind = a.out.dtype.element_ty
        filled = rounded_to(tl.zeros([BLOCK], tl.float64) + value, kind)
        tl.store(a.out + at * a.num_classes + j, filled, mask=j < a.num_classes)


@triton.jit
def matrix_of(table, a, step):
    """Return where a step's matrix is."""
    return table + step * a.num_classes * a.num_classes


@triton.jit
def load_logits(a, steps, row, classes):
    """Return logits of classes, float64, tilted where the row is; NaN and inf of any class stay."""
    reads = classes < a.num_classes
    logits = tl.load(
        a.logits + row.at * a.num_classes + classes, mask=reads, other=float("-inf")
    ).to(tl.float64)
    matrix = matrix_of(steps.q_bar_t, a, row.step)
    tilts = reads & row.tilts
    reach = tl.load(matrix + classes * a.num_classes + row.x_t, mask=tilts, other=1.0)
    stays = (reach != 0.0) | ((logits < float("inf")) == 0)
    return tl.where(stays, logits - log_of(reach), float("-inf"))


@triton.jit
def row_of(a, steps, at, step, work, TILTED: tl.constexpr, BLOCK: tl.constexpr):
    """Return a token's row; one that the tilt leaves nothing of goes without."""
    x_t, anchor = tl.load(a.x_t + at), tl.load(a.anchor + at)
    program = tl.program_id(0).to(tl.int64)
    log_f = work + 2 * program * a.num_classes
    tilts = tl.full([1], TILTED, tl.int1)
    row = Row(at, step, x_t, anchor, 0.0, 0.0, 0.0, tilts, log_f, log_f + a.num_classes)
    top = tl.full([1], float("-inf"), tl.float64)
    for start in range(0, a.num_classes, BLOCK):
        logits = load_logits(a, steps, row, start + tl.arange(0, BLOCK))
        top = tl.maximum(top, tl.max(logits, axis=0))
    if TILTED:
        tilts = top > float("-inf")
        row = Row(at, step, x_t, anchor, 0.0, 0.0, 0.0, tilts, log_f, log_f + a.num_classes)
        for start in range(0, a.num_classes, BLOCK):
            logits = load_logits(a, steps, row, start + tl.arange(0, BLOCK))
            top = tl.maximum(top, tl.where(tilts, top, tl.max(logits, axis=0)))
    sum = tl.zeros([1], tl.float64)
    others = tl.zeros([1], tl.float64)
    for start in range(0, a.num_classes, BLOCK):
        classes = start + tl.arange(0, BLOCK)
        e = tl.exp(load_logits(a, steps, row, classes) - top)
        sum += tl.sum(e, axis=0)
        others += tl.sum(tl.where(classes == anchor, 0.0, e), axis=0)
    return Row(
        at, step, x_t, anchor, top, tl.log(sum), others / sum, tilts, log_f, log_f + a.num_classes
    )


@triton.jit
def rows_of(a, steps, at, step, work, TILTED: tl.constexpr, BLOCK: tl.constexpr):
    """Return a token's row without the tilt, and with it where there is one."""
    plain = row_of(a, steps, at, step, work, False, BLOCK)
    row = plain
    if TILTED:
        row = row_of(a, steps, at, step, work, True, BLOCK)
    return plain, row


@triton.jit
def log_s_of(a, steps, row, classes):
    """Return log s of classes."""
    return (load_logits(a, steps, row, classes) - row.top) - row.log_sum


@triton.jit
def cross_entropy_of(a, steps, row):
    """Return -log s of the anchor."""
    anchor = row.anchor + tl.zeros([1], tl.int64)
    log_s = log_s_of(a, steps, row, anchor)
    is_likely = row.others < 0.5
    near = tl.where(is_likely, row.others, 0.0)
    return tl.where(is_likely, near + phi(-near, 1.0 - near), -log_s)


@triton.jit
def load_block(a, steps, row, i, j):
    """Return the entries ``Qbar_s[i, j]``."""
    inside = (i < a.num_classes) & (j < a.num_classes)
    at = matrix_of(steps.q_bar, a, row.step) + i * a.num_classes + j
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def carry_row(a, steps, row, BLOCK: tl.constexpr):
    """Keep ``log f``, and ``f - d`` in delta's place."""
    for first in range(0, a.num_classes, BLOCK):
        j = first + tl.arange(0, BLOCK)
        top = tl.full([BLOCK], float("-inf"), tl.float64)
        sum = tl.zeros([BLOCK], tl.float64)
        change = tl.zeros([BLOCK], tl.float64)
        for start in range(0, a.num_classes, BLOCK):
            i = start + tl.arange(0, BLOCK)
            log_s = log_s_of(a, steps, row, i)
            block = load_block(a, steps, row, i[:, None], j[None, :])
            terms = log_s[:, None] + log_of(block)
            higher = tl.maximum(top, tl.max(terms, axis=0))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            sum = sum * tl.exp(top - level) + tl.sum(tl.exp(terms - level[None, :]), axis=0)
            top = higher
            v = tl.where(i == row.anchor, -row.others, tl.exp(log_s))
            change += tl.sum(v[:, None] * value_of(block), axis=0)
        inside = j < a.num_classes
        tl.store(row.log_f + j, top + tl.log(sum), mask=inside)
        tl.store(row.delta + j, change, mask=inside)
    tl.debug_barrier()


@triton.jit
def load_log_joint(a, steps, row, j):
    """Return ``log c_j`` and ``log f_j``."""
    inside = j < a.num_classes
    column = matrix_of(steps.q, a, row.step) + row.x_t * a.num_classes
    c = tl.load(column + j, mask=inside, other=0.0)
    log_f = tl.load(row.log_f + j, mask=inside, other=float("-inf"))
    return log_of(c), log_f


@triton.jit
def log_z_of(a, steps, row, BLOCK: tl.constexpr):
    """Return ``log sum_j c_j f_j``, and how many classes lead to x_t."""
    top = tl.full([1], float("-inf"), tl.float64)
    sum = tl.zeros([1], tl.float64)
    leading = tl.zeros([1], tl.int32)
    for start in range(0, a.num_classes, BLOCK):
        log_c, log_f = load_log_joint(a, steps, row, start + tl.arange(0, BLOCK))
        higher = tl.maximum(top, tl.max(log_c + log_f, axis=0))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        sum = sum * tl.exp(top - level) + tl.sum(tl.exp(log_c + log_f - level), axis=0)
        leading += tl.sum((log_c > float("-inf")).to(tl.int32), axis=0)
        top = higher
    return top + tl.log(sum), leading


@triton.jit
def write_gradient(
    a, steps, row, plain, weight, ce_weight, factor, is_finite, BLOCK: tl.constexpr
):  # fmt: skip
    """Write ``weight sum_j w_ij delta_j`` and the cross-entropy's part; minus all others at a."""
    tl.debug_barrier()
    others = tl.zeros([1], tl.float64)
    kind = a.out.dtype.element_ty
    for start in range(0, a.num_classes, BLOCK):
        i = start + tl.arange(0, BLOCK)
        log_s = log_s_of(a, steps, row, i)
        pulled = tl.zeros([BLOCK], tl.float64)
        if tl.max((weight != 0.0).to(tl.int32)) > 0:
            for first in range(0, a.num_classes, BLOCK):
                j = first + tl.arange(0, BLOCK)
                inside = j < a.num_classes
                log_f = tl.load(row.log_f + j, mask=inside, other=float("-inf"))
                delta = tl.load(row.delta + j, mask=inside, other=0.0)
                block = load_block(a, steps, row, i[:, None], j[None, :])
                log_w = log_s[:, None] + log_of(block) - log_f[None, :]
                w = tl.where((log_f > float("-inf"))[None, :], tl.exp(log_w), 0.0)
                pulled += tl.sum(w * delta[None, :], axis=1)
        gradient = weight * pulled + ce_weight * tl.exp(log_s_of(a, steps, plain, i))
        gradient = tl.where(i == row.anchor, 0.0, gradient * factor)
        gradient = tl.where(is_finite, gradient, float("nan"))
        others += tl.sum(gradient, axis=0)
        at = a.out + row.at * a.num_classes + i
        tl.store(at, rounded_to(gradient, kind), mask=i < a.num_classes)
    tl.debug_barrier()
    at = a.out + row.at * a.num_classes + row.anchor + tl.zeros([1], tl.int64)
    tl.store(at, rounded_to(-others, kind))
    tl.debug_barrier()


def recompute_inexact(
    kernel: Any, a: DenseCall, steps: StepTables, which: Tensor, *args: Any
) -> None:  # fmt: skip
    """Start a kernel on the inexact rows, each program on one after the other."""
    programs = min(a.num_tokens, MOST_PROGRAMS)
    work = torch.empty(programs, 2, a.num_classes, dtype=torch.float64, device=a.x_t.device)
    run_length = a.num_tokens // max(which.numel(), 1)
    recompute = Recompute(which, run_length, len(steps.s), work)
    launch(kernel, programs, a.x_t, a, steps, recompute, *args, BLOCK, num_warps=NUM_WARPS)
