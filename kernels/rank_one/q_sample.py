"""Draws ``x_t ~ q(x_t | x_0)`` of rank-one chains: no row of K numbers is ever read or made."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...chains.structures import RankOneMarginal
from ...records import Random
from ..common.launch import launch
from ..common.random import NONE, draw_base, random_of, uniforms

BLOCK = 256


@triton.jit
def q_sample_of_tokens(
    x_at, out, rows, run_length, table, table_size, cdf, mask_id, random, num_tokens, num_classes,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One number chooses among keeping x, pi and the mask; the other draws from pi."""
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    x = tl.load(x_at + tokens, mask=inside, other=0)
    row = tl.load(rows + tokens // run_length, mask=inside, other=-1)
    good = (row >= 0) & (row < table_size) & (x >= 0) & (x < num_classes)
    keep = tl.load(table + 3 * row, mask=good, other=1.0)
    base = tl.load(table + 3 * row + 1, mask=good, other=0.0)
    choice, draw = uniforms(random, tokens, inside)
    has_no_mask = tl.full([1], mask_id, tl.int64) < 0
    redrawn = draw_base(draw, cdf, num_classes, STEPS)
    changed = tl.where((choice < keep + base) | has_no_mask, redrawn, mask_id)
    drawn = tl.where(choice < keep, x, changed)
    tl.store(out + tokens, tl.where(good, drawn, NONE), mask=inside)


def q_sample(x0: Tensor, marginal: RankOneMarginal, random: Random) -> Tensor:
    """Return a draw for each token; NONE where an index is bad."""
    out, num_tokens = torch.empty_like(x0), x0.numel()
    rows, table, base_cdf, mask_id, num_classes = marginal
    run_length = num_tokens // max(rows.numel(), 1)
    args: tuple[Any, ...] = x0, out, rows, run_length, table, len(table), base_cdf, mask_id
    launch(
        q_sample_of_tokens, triton.cdiv(num_tokens, BLOCK), x0, *args,
        random_of(random, num_tokens), num_tokens, num_classes,
        num_classes.bit_length(), BLOCK, num_warps=4,
    )  # fmt: skip
    return out
