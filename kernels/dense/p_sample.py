"""Draws ``x_s ~ p(x_s | x_t)`` of chains of matrices, by inverse CDF of ``c_j f_j``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import MatrixStep
from ...chains.tables import StepTables, step_tables
from ...records import Model, Random
from ..common.launch import launch
from ..common.random import NONE, Counter, random_of, uniforms
from .call import DenseCall, Weights, is_direct, of_prediction
from .divergence import UNDERFLOW
from .entries import value_of
from .exact import (
    carry_row,
    log_s_of,
    log_z_of,
    recompute_inexact,
    rows_of,
    state_of,
)
from .posterior import load_f, log_p_of, store_inexact
from .predict import load_column
from .split import carry_by, split_of
from .tiles import load_rows


@triton.jit
def load_mass(a, steps, rows, between, start, COLUMNS: tl.constexpr):
    """Return ``c_j f_j`` of some classes, and ``c_j``."""
    j = start + tl.arange(0, COLUMNS)[None, :]
    column = value_of(load_column(a, steps, rows, j))
    f, _ = load_f(a, steps, between, rows, j)
    return (column.to(tl.float32) * f).to(tl.float64), column


@triton.jit
def p_sample_of_rows(
    a, steps, tiles, between, random, out, num_steps, DIRECT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums are in float64, so that a class of probability 1e-9 keeps its share beside one of 1."""
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    _, draw = uniforms(random, rows.at, rows.inside)
    total = tl.zeros([ROWS], tl.float64)
    reach = tl.zeros([ROWS], tl.float64)
    for start in range(0, a.num_classes, COLUMNS):
        mass, column = load_mass(a, steps, rows, between, start, COLUMNS)
        total += tl.sum(mass, axis=1)
        reach += tl.sum(column, axis=1)
    target = draw * total
    before = tl.zeros([ROWS], tl.float64)
    found = tl.full([ROWS], a.num_classes, tl.int32)
    last = tl.zeros([ROWS], tl.int32)
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        mass, column = load_mass(a, steps, rows, between, start, COLUMNS)
        running = before[:, None] + tl.cumsum(mass, axis=1)
        passes = (mass > 0.0) & (running > target[:, None])
        found = tl.minimum(found, tl.min(tl.where(passes, j, a.num_classes), axis=1))
        last = tl.maximum(last, tl.max(tl.where(mass > 0.0, j, 0), axis=1))
        before += tl.sum(mass, axis=1)
    drawn = tl.where(found < a.num_classes, found, last).to(tl.int64)
    tl.store(out + rows.at, tl.where(rows.live, drawn, NONE), mask=rows.inside)
    least = a.num_classes * (UNDERFLOW * 8388608.0)
    store_inexact(a, steps, rows, (reach * least <= total) & (total > 0.0), DIRECT)


@triton.jit
def recompute_p_sample(
    a, steps, recompute, random, out,
    TILTED: tl.constexpr, DIRECT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The inexact rows."""
    for at in range(tl.program_id(0).to(tl.int64), a.num_tokens, tl.num_programs(0)):
        step, wanted, _other = state_of(a, recompute, at)
        if wanted:
            direct = is_direct(steps, step, DIRECT)
            plain, row = rows_of(a, steps, at, step, recompute.work, TILTED, BLOCK)
            log_z, leading = tl.zeros([1], tl.float64), tl.zeros([1], tl.int32)
            if direct == 0:
                carry_row(a, steps, row, BLOCK)
                log_z, leading = log_z_of(a, steps, row, BLOCK)
            one = at + tl.zeros([1], tl.int64)
            _, draw = uniforms(random, one, one >= 0)
            before = tl.zeros([1], tl.float64)
            found, last = tl.full([1], a.num_classes, tl.int32), tl.zeros([1], tl.int32)
            for start in range(0, a.num_classes, BLOCK):
                j = start + tl.arange(0, BLOCK)
                log_p = log_p_of(a, steps, row, log_z, leading == 1, j)
                log_p = tl.where(direct, log_s_of(a, steps, plain, j), log_p)
                p = tl.where(j < a.num_classes, tl.exp(log_p), 0.0)
                running = before + tl.cumsum(p, axis=0)
                passes = (p > 0.0) & (running > draw)
                found = tl.minimum(found, tl.min(tl.where(passes, j, a.num_classes), axis=0))
                last = tl.maximum(last, tl.max(tl.where(p > 0.0, j, 0), axis=0))
                before += tl.sum(p, axis=0)
            drawn = tl.where(found < a.num_classes, found, last).to(tl.int64)
            drawn = tl.where(before > 0.0, drawn, NONE)
            # An x_t that the chain itself leads nothing to stays.
            led_to = direct | (leading > 0)
            tl.store(out + one, tl.where(led_to, drawn, row.x_t))
        elif a.inexact is None:
            tl.store(out + at, NONE)


def p_sample(logits: Tensor, x_t: Tensor, step: MatrixStep, model: Model, random: Random) -> Tensor:
    """Return a draw for each token; NONE where an index is bad, or there is no law."""
    steps, which = step_tables(step)
    out = torch.empty_like(x_t)
    a = of_prediction(logits, x_t, None, None)
    counter = random_of(random, a.num_tokens)
    if a.inexact is not None:
        _run(a, steps, which, counter, out, model)
    recompute_inexact(recompute_p_sample, a, steps, which, counter, out, *model)
    return out


def _run(
    a: DenseCall, steps: StepTables, which: Tensor, counter: Counter, out: Tensor, model: Model
) -> None:
    split = split_of(a, steps, which)
    weights = Weights(1.0, 0.0, 1.0, None)
    between = carry_by(a, steps, split, weights, model.posterior_mean, False)
    launch(
        p_sample_of_rows, split.num_tiles, a.x_t, a, steps, split.tiles, between, counter, out,
        split.num_steps, model.direct, *split.row_shape, num_warps=split.shape.num_warps,
    )  # fmt: skip
