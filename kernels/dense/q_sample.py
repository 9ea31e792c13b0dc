"""Draws ``x_t ~ q(x_t | x_0)`` of chains of matrices, by inverse CDF of rows of ``Qbar_t``.

A sparse chain has no such rows at hand and goes jump by jump, as everywhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import DenseMarginal
from ...chains.tables import step_tables
from ...records import Random
from ..common.launch import launch
from ..common.random import NONE, random_of, uniforms
from .call import DenseCall
from .entries import value_of
from .jumps import by_jumps
from .shape import SPLIT
from .tiles import load_rows, tiles_of

__all__ = ["by_jumps", "by_matrix"]


@triton.jit
def q_sample_of_rows(
    a, steps, tiles, random, t, run_length, out, num_steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The first class whose running sum passes a uniform number, or the last that is possible.

    At t = 0, to which no step leads, x itself.
    """
    rows = load_rows(a, tiles, tl.program_id(0), num_steps, ROWS)
    _, draw = uniforms(random, rows.at, rows.inside)
    before = tl.zeros([ROWS], tl.float64)
    found = tl.full([ROWS], a.num_classes, tl.int32)
    last = tl.zeros([ROWS], tl.int32)
    matrix = steps.q_bar_t + rows.step.to(tl.int64) * a.num_classes * a.num_classes
    for start in range(0, a.num_classes, COLUMNS):
        j = start + tl.arange(0, COLUMNS)[None, :]
        inside = rows.reads & (j < a.num_classes)
        at = matrix + rows.anchor[:, None] * a.num_classes + j
        mass = value_of(tl.load(at, mask=inside, other=0.0))
        running = before[:, None] + tl.cumsum(mass, axis=1)
        passes = (mass > 0.0) & (running > draw[:, None])
        found = tl.minimum(found, tl.min(tl.where(passes, j, a.num_classes), axis=1))
        last = tl.maximum(last, tl.max(tl.where(mass > 0.0, j, 0), axis=1))
        before += tl.sum(mass, axis=1)
    x = tl.load(a.anchor + rows.at, mask=rows.inside, other=NONE)
    at_start = tl.load(t + rows.at // run_length, mask=rows.inside, other=NONE) == 0
    stays = at_start & (x >= 0) & (x < a.num_classes)
    drawn = tl.where(found < a.num_classes, found, last).to(tl.int64)
    tl.store(out + rows.at, tl.where(rows.live, drawn, tl.where(stays, x, NONE)), mask=rows.inside)


def by_matrix(x0: Tensor, marginal: DenseMarginal, random: Random) -> Tensor:
    """Return a draw for each token; NONE where an index is bad."""
    t, num_tokens, num_classes = marginal.t, x0.numel(), marginal.chain.num_classes
    steps, which = step_tables(marginal.chain.step_record(t))
    out = torch.empty_like(x0)
    a = DenseCall(None, x0, x0, None, None, None, None, None, num_tokens, num_classes)
    tiles, num_tiles = tiles_of(which, len(steps.s), num_tokens, SPLIT.rows)
    run_length = num_tokens // max(t.numel(), 1)
    launch(
        q_sample_of_rows, num_tiles, x0, a, steps, tiles, random_of(random, num_tokens),
        t, run_length, out, len(steps.s), SPLIT.rows, SPLIT.columns // 2, num_warps=SPLIT.num_warps,
    )  # fmt: skip
    return out
