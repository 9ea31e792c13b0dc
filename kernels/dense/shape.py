"""How large the tiles are; no program spills a register with them, see triton.csv."""

from typing import NamedTuple

import torch
import triton

from ..._environment import DOT

MOST_FUSED = 128  # classes up to which one program takes a tile through both products

# tf32 alone keeps 11 bits of each factor; three products of halves keep float32's.
PRECISION = "ieee" if torch.version.hip else DOT


class Shape(NamedTuple):
    """A tile's rows, the columns of a product, how much of its sum at a time, and the warps."""

    rows: int
    columns: int
    block: int
    num_warps: int


SPLIT = Shape(32, 64, 16, 8)


def split_shape(num_classes: int) -> Shape:
    """Return the tile of a program with one product, not twice as wide as there are classes."""
    return SPLIT if num_classes > 32 else SPLIT._replace(columns=32)


def fused_shape(num_classes: int) -> tuple[Shape, int]:
    """Return the tile of a program with both products, and how many classes are whole in it."""
    size = max(triton.next_power_of_2(num_classes), 16)
    return Shape(16, 16, 16, 8), size
