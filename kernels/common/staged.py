"""Tiles of short rows of which no number is aligned: a row a thread, by way of shared memory.

Rows of 27 numbers of 16 bits would be read number by number. The rows of a program follow one
another, so that together they are read 16 bytes at a time. They are written row by row: a gather
that would have each of 16 bytes again finds every number's row by arithmetic.
"""

import torch
import triton
import triton.language as tl

from .tile import Tile, is_aligned

LONGEST = 32
WARPS = 4


def staged_tile_of(num_classes: int, dtype: torch.dtype) -> Tile | None:
    """Return the tile for such rows; None for others."""
    if is_aligned(num_classes) or num_classes > LONGEST or dtype == torch.float64:
        return None
    return Tile(32 * WARPS, triton.next_power_of_2(num_classes), 1, WARPS)


@triton.jit
def load_staged(a, pointer, classes):
    """Return the numbers of a tile (HIGH, ROWS, 1); any numbers for what is no class or token.

    ``a.num_classes`` is a constant.
    """
    HIGH: tl.constexpr = classes.j.shape[0]
    ROWS: tl.constexpr = classes.j.shape[1]
    at = tl.arange(0, HIGH * ROWS)
    place = at % ROWS * a.num_classes + tl.minimum(at // ROWS, a.num_classes - 1)
    left = a.num_tokens - tl.program_id(0).to(tl.int64) * ROWS
    # Only the last program has fewer rows, whose end is not aligned.
    if left >= ROWS:
        flat = tl.load(pointer + classes.first + at, mask=at < ROWS * a.num_classes, other=0.0)
        x = tl.gather(flat, place, 0)
    else:
        flat = tl.load(pointer + classes.first + at, mask=at < left * a.num_classes, other=0.0)
        x = tl.gather(flat, place, 0)
    return tl.reshape(x, [HIGH, ROWS, 1])


@triton.jit
def store_staged(a, pointer, classes, values):
    """Write the numbers of a tile, a row at a time by the lanes of a warp."""
    HIGH: tl.constexpr = classes.j.shape[0]
    ROWS: tl.constexpr = classes.j.shape[1]
    values = tl.permute(values.to(pointer.dtype.element_ty), [1, 2, 0])
    row, j = tl.arange(0, ROWS)[:, None], tl.arange(0, HIGH)[None, :]
    left = a.num_tokens - tl.program_id(0).to(tl.int64) * ROWS
    there = (row < tl.minimum(left, ROWS).to(tl.int32)) & (j < a.num_classes)
    at = pointer + classes.first + row * a.num_classes + j
    tl.store(at, tl.reshape(values, [ROWS, HIGH]), mask=there)
