"""Draws ``x_t ~ q(x_t | x_0)`` of rank-one chains: no row of K numbers is ever read or made."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneMarginal
from ...records import Random
from ..common.launch import launch
from ..common.random import NONE, draw_base, random_of, uniforms
from ..common.runs import run_of, runs_of

BLOCK = 256


class Marginal(NamedTuple):
    """The rows of a table of times that runs of tokens have, and the chain's vector."""

    rows: Any  # of each run
    runs: Any
    table: Any  # (table_size, 3) float64, see RankOneTransition.product_coefficients
    table_size: Any
    cdf: Any  # of pi; None where all are 1/K
    num_classes: Any
    STEPS: Any  # that halve num_classes to nothing
    mask_id: Any  # -1 where there is none


@triton.jit
def q_sample_of_tokens(x_at, out, num_tokens, marginal, random, BLOCK: tl.constexpr):
    """One number chooses among keeping x, pi and the mask; the other draws from pi."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    x = tl.load(x_at + tokens, mask=inside, other=0)
    row = tl.load(marginal.rows + run_of(tokens, marginal.runs), mask=inside, other=-1)
    good = (row >= 0) & (row < marginal.table_size) & (x >= 0) & (x < marginal.num_classes)
    at = marginal.table + 3 * row
    keep = tl.load(at, mask=good, other=1.0)
    from_pi = tl.load(at + 1, mask=good, other=0.0)
    choice, draw = uniforms(random, tokens, inside)
    mask_id = tl.full([1], marginal.mask_id, tl.int64)
    redrawn = (choice < keep + from_pi) | (mask_id < 0)
    changed = tl.where(redrawn, draw_base(draw, marginal), mask_id)
    drawn = tl.where(choice < keep, x, changed)
    tl.store(out + tokens, tl.where(good, drawn, NONE), mask=inside)


def q_sample(x0: Tensor, marginal: RankOneMarginal, random: Random) -> Tensor:
    """Return a draw for each token; NONE where an index is bad."""
    out, num_tokens = torch.empty_like(x0), x0.numel()
    rows, table, cdf, mask_id, num_classes = marginal
    runs = runs_of(num_tokens, rows.numel())
    steps = tl.constexpr(num_classes.bit_length())
    launch(
        q_sample_of_tokens, triton.cdiv(num_tokens, BLOCK), x0, x0, out, num_tokens,
        Marginal(rows, runs, table, len(table), cdf, num_classes, steps, mask_id),
        random_of(random, num_tokens), BLOCK, num_warps=4,
    )  # fmt: skip
    return out
