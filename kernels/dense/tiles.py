"""Tiles: runs of tokens that take the same step, a program each, without a look at the times."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.logspace import spread
from .call import factor_of


class Tiles(NamedTuple):
    """Which tokens a program has, and which step they take.

    Where the tokens of an item take the same step they are cut into tiles in their order; else
    ``order`` sorts all tokens by step, and ``first`` and ``end`` say what of it is whose.
    """

    steps: Any  # of an item, or of a tile
    per_item: Any  # how many tokens an item has; unused where there is an order
    order: Any
    first: Any
    end: Any


def tokens_per_step(which: Tensor, num_steps: int, num_tokens: int) -> int:
    """Return how many tokens take the same step, on average; of an item where it has one step."""
    return num_tokens // max(min(which.numel(), num_steps), 1)


def tiles_of(which: Tensor, num_steps: int, num_tokens: int, rows: int) -> tuple[Tiles, int]:
    """Return the tiles of so many rows at most, and how many they are.

    ``which`` has the step of every item or of every token, num_steps for none.
    """
    per_item = num_tokens // max(which.numel(), 1)
    if 2 * per_item >= rows:
        return Tiles(which, per_item, None, None, None), which.numel() * triton.cdiv(per_item, rows)
    steps, order = spread(which.flatten(), (which.numel(), per_item)).flatten().sort()
    counts = torch.zeros(num_steps + 1, dtype=torch.int64, device=which.device)
    counts.scatter_add_(0, steps, torch.ones_like(steps))
    ends = counts.cumsum(0)
    tile_ends = ((counts + rows - 1) // rows).cumsum(0)
    num_tiles = triton.cdiv(num_tokens, rows) + min(num_steps + 1, num_tokens)
    tile = torch.arange(num_tiles, device=which.device)
    step = torch.searchsorted(tile_ends, tile, right=True).clamp_(max=num_steps)
    end = ends[step]
    before = tile_ends[step] - (counts[step] + rows - 1) // rows
    first = end - counts[step] + (tile - before) * rows
    return Tiles(step, per_item, order, first, end), num_tiles


class Rows(NamedTuple):
    """The tokens of a program."""

    at: Any  # int64 [ROWS]
    inside: Any
    step: Any  # what all of them take, a number
    x_t: Any
    anchor: Any  # x_0, x_t where there is none
    counts: Any  # whether the token does
    live: Any  # and its indices are in their ranges, and its step is one
    reads: Any  # the same, [ROWS, 1]


@triton.jit
def load_rows(a, tiles, tile, num_steps, ROWS: tl.constexpr):
    """Return the tokens of a tile."""
    if tiles.order is None:
        tiles_of_item = tl.cdiv(tiles.per_item, ROWS)
        item = tile // tiles_of_item
        place = (tile % tiles_of_item) * ROWS + tl.arange(0, ROWS)
        inside = place < tiles.per_item
        at = item.to(tl.int64) * tiles.per_item + place
        step = tl.load(tiles.steps + item)
    else:
        place = tl.load(tiles.first + tile) + tl.arange(0, ROWS)
        inside = place < tl.load(tiles.end + tile)
        at = tl.load(tiles.order + place, mask=inside, other=0)
        step = tl.load(tiles.steps + tile)
    x_t, xt_is_class = load_class(a.x_t, at, inside, a.num_classes)
    anchor, anchor_is_class = load_class(a.anchor, at, inside, a.num_classes)
    exists = step + tl.zeros([ROWS], tl.int64) < num_steps
    counts = inside
    if a.mask is not None:
        counts &= tl.load(a.mask + at, mask=inside, other=0) != 0
    counts &= factor_of(a, at, inside, tl.float32) != 0.0
    live = counts & xt_is_class & anchor_is_class & exists
    step = tl.minimum(step, num_steps - 1)
    return Rows(at, inside, step, x_t, anchor, counts, live, live[:, None])


@triton.jit
def load_class(tokens, at, inside, num_classes):
    """Return each token's class and whether it is one; 0 where it is not."""
    value = tl.load(tokens + at, mask=inside, other=0)
    is_class = (value >= 0) & (value < num_classes)
    return tl.where(is_class, value, 0), is_class
