"""Log-probabilities of a step of chains of matrices, and their gradient.

log q_j = log c_j + log d_j - log Zq and log p_j = log c_j + log f_j - log Z, as in
``divergence.py``. For G = dL/dlog p, ``r_j = G_j / f_j - c_j / Z sum(G)``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import MatrixStep
from ...chains.tables import StepTables, step_tables
from ...records import Model
from ..common.launch import launch
from ..common.math import log, rounded_to
from .call import DenseCall, Weights, is_direct, of_prediction
from .divergence import UNDERFLOW, mean_pull_of
from .entries import log_of, value_of
from .exact import (
    carry_row,
    fill,
    load_log_joint,
    log_s_of,
    log_z_of,
    recompute_inexact,
    rows_of,
    state_of,
    write_gradient,
)
from .predict import load_column, load_common, load_truth, reach_of_anchor
from .pull import store_row
from .shape import SPLIT
from .split import carry_by, load_between, pull_by, split_of, store_between
from .tiles import load_rows, tiles_of


@triton.jit
def q_posterior_of_rows(
    a, steps, tiles, num_steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Write log q(x_s | x_t, x_0), in float64 to the last step."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    reach = reach_of_anchor(a, steps, rows)[:, None]
    leading = leading_of(a, steps, rows, ROWS, COLUMNS)
    stays = (leading == 1)[:, None] & (reach != 0.0)
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        c = load_column(a, steps, rows, j)
        log_q = log_of(c) + log_of(load_truth(a, steps, rows, j)) - log_of(reach)
        store_row(a, rows, j, tl.where(stays, tl.where(c != 0.0, 0.0, log_q), log_q))


@triton.jit
def leading_of(a, steps, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return how many classes lead to x_t."""
    leading = tl.zeros([ROWS], tl.int32)
    for start in range(0, a.num_classes, COLUMNS):
        c = load_column(a, steps, rows, start + tl.arange(0, COLUMNS)[None, :])
        leading += tl.sum((c != 0.0).to(tl.int32), axis=1)
    return leading


@triton.jit
def load_f(a, steps, between, rows, j):
    """Return f of some classes, and f less what the rows of ``Qbar_s`` have in common."""
    rest = load_between(a, between.rows, rows, j)
    return rest + load_common(a, steps, rows, j).to(tl.float32), rest


@triton.jit
def weigh(a, steps, rows, between, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return Z, and whether float32 keeps the digits of every entry that p has."""
    z = tl.zeros([ROWS], tl.float32)
    low = tl.full([ROWS], 1.0, tl.float32)
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        f, _ = load_f(a, steps, between, rows, j)
        c = load_column(a, steps, rows, j)
        z += tl.sum(value_of(c).to(tl.float32) * f, axis=1)
        low = tl.minimum(low, tl.min(tl.where(c != 0.0, f, 1.0), axis=1))
    least = a.num_classes * (UNDERFLOW * 8388608.0)
    return z, (low > least) & (z > least)


@triton.jit
def store_inexact(a, steps, rows, sure, DIRECT: tl.constexpr):
    """Write which rows are to be recomputed: inexact ones, and those whose p is s itself."""
    inexact = rows.live & ((sure == 0) | is_direct(steps, rows.step, DIRECT))
    tl.store(a.inexact + rows.at, inexact.to(tl.int8), mask=rows.inside)


@triton.jit
def p_posterior_of_rows(
    a, steps, tiles, between, num_steps, DIRECT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write log p(x_s | x_t)."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    z, sure = weigh(a, steps, rows, between, ROWS, COLUMNS)
    log_z = log(z)[:, None]
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        log_c = log_of(load_column(a, steps, rows, j))
        f, _ = load_f(a, steps, between, rows, j)
        log_p = tl.where(log_c > float("-inf"), log_c + (log(f) - log_z), float("-inf"))
        store_row(a, rows, j, log_p)
    store_inexact(a, steps, rows, sure, DIRECT)


@triton.jit
def load_upstream(a, rows, c, j):
    """Return G of some classes, 0 where p is."""
    reads = rows.reads & (j < a.num_classes)
    at = a.upstream + rows.at[:, None] * a.num_classes + j
    upstream = tl.load(at, mask=reads, other=0.0).to(tl.float32)
    return tl.where(c != 0.0, upstream, 0.0)


@triton.jit
def turn_rows(
    a, steps, tiles, between, num_steps, DIRECT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Turn f into r, and write its mean pull."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    z, sure = weigh(a, steps, rows, between, ROWS, COLUMNS)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        c = load_column(a, steps, rows, j)
        total += tl.sum(load_upstream(a, rows, c, j), axis=1)
    scale = (total / z)[:, None]
    mean = tl.zeros([ROWS], tl.float32)
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        c = load_column(a, steps, rows, j)
        f, rest = load_f(a, steps, between, rows, j)
        upstream = load_upstream(a, rows, c, j)
        r = tl.where(upstream != 0.0, upstream / f, 0.0) - scale * value_of(c).to(tl.float32)
        mean += mean_pull_of(a, steps, rows, rest, r)
        store_between(a, between.rows, rows, j, r)
    tl.store(between.mean + rows.at, mean, mask=rows.inside)
    store_inexact(a, steps, rows, sure, DIRECT)


@triton.jit
def recompute_p_posterior(
    a, steps, recompute, TILTED: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The inexact rows."""
    for at in range(tl.program_id(0).to(tl.int64), a.num_tokens, tl.num_programs(0)):
        step, wanted, other = state_of(a, recompute, at)
        if wanted:
            direct = is_direct(steps, step, DIRECT)
            plain, row = rows_of(a, steps, at, step, recompute.work, TILTED, BLOCK)
            if direct:
                if a.upstream is None:
                    write_log_s(a, steps, plain, BLOCK)
                else:
                    write_direct_gradient(a, steps, plain, BLOCK)
            else:
                carry_row(a, steps, row, BLOCK)
                log_z, leading = log_z_of(a, steps, row, BLOCK)
                if a.upstream is None:
                    write_log_p(a, steps, row, log_z, leading == 1, BLOCK)
                else:
                    turn_row(a, steps, row, log_z, leading == 1, BLOCK)
                    one = tl.full([1], 1.0, tl.float64)
                    write_gradient(a, steps, row, plain, one, 0.0 * one, one, one > 0.0, BLOCK)
        elif a.inexact is None:
            fill(a, at, other, BLOCK)


@triton.jit
def load_pull(a, row, j):
    """Return G of some classes."""
    at = a.upstream + row.at * a.num_classes + j
    return tl.load(at, mask=j < a.num_classes, other=0.0).to(tl.float64)


@triton.jit
def write_log_s(a, steps, row, BLOCK: tl.constexpr):
    """Write log s."""
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        log_s = rounded_to(log_s_of(a, steps, row, j), a.out.dtype.element_ty)
        tl.store(a.out + row.at * a.num_classes + j, log_s, mask=j < a.num_classes)


@triton.jit
def write_direct_gradient(a, steps, row, BLOCK: tl.constexpr):
    """Write the gradient of log s."""
    total = tl.zeros([1], tl.float64)
    for start in range(0, a.num_classes, BLOCK):
        total += tl.sum(load_pull(a, row, start + tl.arange(0, BLOCK)), axis=0)
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        gradient = load_pull(a, row, j) - tl.exp(log_s_of(a, steps, row, j)) * total
        at = a.out + row.at * a.num_classes + j
        tl.store(at, rounded_to(gradient, a.out.dtype.element_ty), mask=j < a.num_classes)


@triton.jit
def log_p_of(a, steps, row, log_z, alone, j):
    """Return log p of some classes; that of the only one that leads to x_t is 0.

    NaN of all classes where s is undefined, or forbids all that leads to x_t.
    """
    log_c, log_f = load_log_joint(a, steps, row, j)
    possible = log_c > float("-inf")
    log_p = tl.where(alone, 0.0, log_c + log_f - log_z)
    log_p = tl.where(possible, log_p, float("-inf"))
    return tl.where(alone | (log_z > float("-inf")), log_p, float("nan"))


@triton.jit
def write_log_p(a, steps, row, log_z, alone, BLOCK: tl.constexpr):
    """Write log p."""
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        log_p = rounded_to(log_p_of(a, steps, row, log_z, alone, j), a.out.dtype.element_ty)
        tl.store(a.out + row.at * a.num_classes + j, log_p, mask=j < a.num_classes)


@triton.jit
def turn_row(a, steps, row, log_z, alone, BLOCK: tl.constexpr):
    """Keep ``G_j - p_j sum(G)`` in delta's place; none where p does not depend on s."""
    total = tl.zeros([1], tl.float64)
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        log_p = log_p_of(a, steps, row, log_z, alone, j)
        total += tl.sum(tl.where(log_p > float("-inf"), load_pull(a, row, j), 0.0), axis=0)
    for start in range(0, a.num_classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        log_p = log_p_of(a, steps, row, log_z, alone, j)
        delta = tl.where(log_p > float("-inf"), load_pull(a, row, j), 0.0) - tl.exp(log_p) * total
        tl.store(row.delta + j, tl.where(alone, 0.0, delta), mask=j < a.num_classes)


def q_posterior(x0: Tensor, x_t: Tensor, step: MatrixStep, dtype: torch.dtype) -> Tensor:
    """Return log q(x_s | x_t, x_0)."""
    num_classes = step.num_classes
    steps, which = step_tables(step)
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device=x0.device)
    a = DenseCall(None, x0, x_t, None, None, None, out, None, x0.numel(), num_classes)
    tiles, num_tiles = tiles_of(which, len(steps.s), a.num_tokens, SPLIT.rows)
    launch(
        q_posterior_of_rows, num_tiles, out, a, steps, tiles, len(steps.s),
        SPLIT.rows, SPLIT.columns // 2, num_warps=SPLIT.num_warps,
    )  # fmt: skip
    return out


def p_posterior(
    logits: Tensor, x_t: Tensor, step: MatrixStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    """Return log p(x_s | x_t), or with a gradient of it that of the logits."""
    steps, which = step_tables(step)
    out = torch.empty_like(logits)
    a = of_prediction(logits, x_t, upstream, out)
    if a.inexact is not None:
        _run(a, steps, which, model)
    recompute_inexact(recompute_p_posterior, a, steps, which, *model)
    return out


def _run(a: DenseCall, steps: StepTables, which: Tensor, model: Model) -> None:
    split = split_of(a, steps, which)
    weights = Weights(1.0, 0.0, 1.0, None)
    between = carry_by(a, steps, split, weights, model.posterior_mean, False)
    launch(
        p_posterior_of_rows if a.upstream is None else turn_rows, split.num_tiles, a.x_t,
        a, steps, split.tiles, between, split.num_steps, model.direct, *split.row_shape,
        num_warps=split.shape.num_warps,
    )  # fmt: skip
    if a.upstream is not None:
        pull_by(a, steps, split, between, weights, False)
