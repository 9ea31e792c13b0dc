"""How large the tiles are; no program spills a register with them, see triton.csv."""

from typing import NamedTuple

import torch
import triton
from triton.runtime import driver

from ..._environment import DOT, INTERPRET

MOST_FUSED = 128  # classes up to which one program takes a tile through both products

# Six products of bfloat16 parts keep float32's digits, and so do three of tf32; one does not.
PRECISION = "ieee" if torch.version.hip else DOT


class Shape(NamedTuple):
    """A tile's rows, the columns of a product, how much of its sum at a time, and the warps."""

    rows: int
    columns: int
    block: int
    num_warps: int


SPLIT = Shape(32, 64, 32, 8)
WIDE = Shape(128, 64, 16, 8)
WIDEST = Shape(128, 128, 32, 8)  # for instructions by which four warps multiply together
AT_A_TIME = 2048  # numbers that a program with no product has of its rows


def split_shape(num_classes: int, tokens_per_step: int) -> Shape:
    """Return the tile of a program with one product, not twice as wide as there are classes."""
    shape = SPLIT
    on_cores = torch.version.hip is None and DOT == "ieee"  # where a wide tile would spill
    if tokens_per_step >= WIDE.rows and not on_cores:
        shape = WIDEST if _multiplies_by_four_warps() else WIDE
    columns = max(triton.next_power_of_2(num_classes), 32)
    return shape._replace(columns=min(shape.columns, columns))


def row_shape(num_classes: int, rows: int) -> tuple[int, int]:
    """Return the rows and columns that a program with no product has at a time."""
    return rows, min(AT_A_TIME // rows, max(triton.next_power_of_2(num_classes), 16))


def _multiplies_by_four_warps() -> bool:
    """Whether the GPU does: by wgmma on Hopper, by tcgen05 on data centers' Blackwell."""
    if INTERPRET:
        return True
    target = driver.active.get_current_target()
    return target.backend == "cuda" and 90 <= target.arch < 120


def fused_shape(num_classes: int) -> tuple[Shape, int]:
    """Return the tile of a program with both products, and how many classes are whole in it."""
    size = max(triton.next_power_of_2(num_classes), 16)
    return Shape(16, 16, 16, 8), size
