"""The loss in four strokes, ``d3pm_fast/ops/loss_strokes.py`` says which: a row a program.

A kernel has the chain of whole rows, and as a shard sees it, whose logits it has.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneStep
from ...records import Loss, Shard
from ..common.launch import constant, launch, triton_type
from .loss_long import (
    holds,
    is_curved,
    statistics_of_row,
    store_curved_gradient,
    store_settled_gradient,
    store_straight_gradient,
    sums_of_row,
    tile_of_long_row,
)
from .loss_rest import Line, line_of
from .loss_row import finish, row_of, solve
from .loss_tokens import LossCall, Tokens, load_special, load_tokens, store_loss
from .step import chain_of


class Strokes(NamedTuple):
    """Where a shard begins, and what the strokes hand on; None for what one has no use for."""

    first: Any
    statistics: Any  # (N, 5)
    line: Any = None  # (N, 3)
    sums: Any = None  # (N, 2)


@triton.jit
def in_shard(tokens, first):
    """Return tokens whose classes are places in a shard, or beside it."""
    x0, x_t = tokens.x0 - first, tokens.x_t - first
    return Tokens(tokens.at, x0, x_t, tokens.inside, tokens.settled, tokens.value, tokens.read)


@triton.jit
def load_statistics(tokens, strokes):
    """Return the largest logit, the sum of the rest, and the logits of the special classes.

    Of a settled row, logits -inf below a largest 0.
    """
    at = strokes.statistics + tokens.at * 5
    return tl.load(at), tl.load(at + 1), (tl.load(at + 2), tl.load(at + 3), tl.load(at + 4))


@triton.jit
def statistics_stroke(
    a, chain, shard, strokes, vb_weight: tl.float64, ce_weight: tl.float64,
    model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The first stroke."""
    tokens, _ = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, 1)
    tokens = in_shard(tokens, strokes.first)
    special = load_special(a, shard, tokens, REAL)
    top, e_rest = tl.zeros([1], REAL), tl.zeros([1], REAL)
    if holds(tokens.settled == 0):
        top, e_rest = statistics_of_row(a, shard, tokens, special, REAL, HIGH, LOW, THREADS)
    logit_x0, logit_xt, logit_mask = special
    to = strokes.statistics + tokens.at * 5
    tl.store(to, top)
    tl.store(to + 1, e_rest)
    tl.store(to + 2, logit_x0)
    tl.store(to + 3, logit_xt)
    tl.store(to + 4, logit_mask)


@triton.jit
def solve_stroke(
    a, chain, shard, strokes, vb_weight: tl.float64, ce_weight: tl.float64,
    model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The second stroke."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, 1)
    solved = solve(token, row_of(a, *load_statistics(tokens, strokes)), REAL)
    to = strokes.line + tokens.at * 3
    tl.store(to, tl.where(solved.curved, solved.ratio, 1.0))
    tl.store(to + 1, tl.where(solved.curved, solved.shift, 1.0))
    tl.store(to + 2, tl.where(solved.curved, solved.slope, 0.0))


@triton.jit
def sums_stroke(
    a, chain, shard, strokes, vb_weight: tl.float64, ce_weight: tl.float64,
    model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The third stroke."""
    tokens, _ = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, 1)
    tokens = in_shard(tokens, strokes.first)
    at = strokes.line + tokens.at * 3
    ratio, shift, slope = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    sum_phi, sum_h = tl.zeros([1], REAL), tl.zeros([1], REAL)
    if chain.pi is None:
        slope *= chain.num_classes.to(REAL)
    line = Line(ratio, shift, slope)
    if is_curved(line):
        top = tl.load(strokes.statistics + tokens.at * 5)
        sum_phi, sum_h = sums_of_row(a, shard, tokens, line, top, None, REAL, HIGH, LOW)
    to = strokes.sums + tokens.at * 2
    tl.store(to, sum_phi)
    tl.store(to + 1, sum_h)


@triton.jit
def gradient_stroke(
    a, chain, shard, strokes, vb_weight: tl.float64, ce_weight: tl.float64,
    model, REAL: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """The fourth stroke, and the loss."""
    tokens, token = load_tokens(a, chain, vb_weight, ce_weight, model, REAL, 1)
    statistics = load_statistics(tokens, strokes)
    row = row_of(a, *statistics)
    solved = solve(token, row, REAL)
    line = line_of(chain, solved)
    at = strokes.sums + tokens.at * 2
    result = finish(a, token, row, solved, tl.load(at), tl.load(at + 1), REAL)
    store_loss(a, tokens, token, solved, result)
    tokens = in_shard(tokens, strokes.first)
    factor = tl.full([1], 1.0, REAL)
    if holds(tokens.settled):
        store_settled_gradient(a, tokens, HIGH, LOW)
    elif is_curved(line):
        top = statistics[0]
        store_curved_gradient(a, shard, tokens, line, top, result, factor, REAL, HIGH, LOW)
    else:
        top = statistics[0]
        store_straight_gradient(a, shard, tokens, top, result, factor, REAL, HIGH, LOW)


def loss_statistics(of: Loss[RankOneStep], shard: Shard) -> Tensor:
    """Return the statistics of the shard's part of each row."""
    statistics = _numbers(of, 5)
    _run(statistics_stroke, of, shard, Strokes(shard.first, statistics))
    return statistics


def loss_solve(of: Loss[RankOneStep], shard: Shard, statistics: Tensor) -> Tensor:
    """Return the line of each whole row's rest."""
    line = _numbers(of, 3)
    _run(solve_stroke, of, shard, Strokes(shard.first, statistics, line))
    return line


def loss_sums(of: Loss[RankOneStep], shard: Shard, statistics: Tensor, line: Tensor) -> Tensor:
    """Return the sums over the shard's part of each row's rest."""
    sums = _numbers(of, 2)
    _run(sums_stroke, of, shard, Strokes(shard.first, statistics, line, sums))
    return sums


def loss_gradient(
    of: Loss[RankOneStep], shard: Shard, statistics: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each token's loss, and the gradient of the shard's logits."""
    loss = _numbers(of, 3) if of.with_terms else _numbers(of, 1).squeeze(-1)
    grad = torch.empty_like(of.logits)
    strokes = Strokes(shard.first, statistics, sums=sums)
    _run(gradient_stroke, of, shard, strokes, loss, grad)
    return loss, grad


def _numbers(of: Loss[RankOneStep], count: int) -> Tensor:
    real = torch.float64 if of.logits.dtype == torch.float64 else torch.float32
    return of.logits.new_empty(*of.x0.shape, count, dtype=real)


def _run(
    kernel: Any,
    of: Loss[RankOneStep],
    shard: Shard,
    strokes: Strokes,
    loss: Tensor | None = None,
    grad: Tensor | None = None,
) -> None:
    logits, x0, mask, x_t, step, model, weights, is_density, with_terms = of
    real, num_tokens, num_logits = strokes.statistics.dtype, x0.numel(), logits.shape[-1]
    a = LossCall(
        logits, x0, x_t, mask, weights.tokens, loss, grad, None, num_tokens, num_logits,
        int(is_density), tl.constexpr(with_terms), tl.constexpr(step.mask_id >= 0),
        tl.constexpr(True),
    )  # fmt: skip
    chain = chain_of(num_tokens, step, real)
    pi = None if chain.pi is None else chain.pi[shard.first : shard.first + num_logits]
    mask_id, forbidden = chain.mask_id - shard.first, chain.forbidden - shard.first
    of_shard = chain._replace(pi=pi, mask_id=mask_id, forbidden=forbidden)
    tile, threads = tile_of_long_row(num_logits, logits.dtype)
    launch(
        kernel, num_tokens, logits, a, chain, of_shard, strokes, weights.vb, weights.ce,
        constant(model), triton_type(real), tile.high, tile.low, threads,
        num_warps=tile.num_warps,
    )  # fmt: skip
