"""How kernels are started: on which device, with which tiles. Nothing here is timed at run time."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """A program's part: rows, classes at a time, warps."""

    rows: int
    block: int
    num_warps: int


# By the largest number of classes, for float32 and for float64; longer rows are read in blocks.
# No program of any kernel spills registers with them, see benchmarks/results/triton.csv.
TILES = {
    torch.float32: [
        Tile(8, 32, 4),
        Tile(8, 64, 4),
        Tile(8, 128, 4),
        Tile(4, 256, 4),
        Tile(2, 512, 4),
        Tile(1, 1024, 4),
        Tile(1, 2048, 8),
        Tile(1, 4096, 8),
        Tile(1, 8192, 16),
    ],
    torch.float64: [
        Tile(4, 32, 4),
        Tile(4, 64, 4),
        Tile(2, 128, 4),
        Tile(1, 256, 4),
        Tile(1, 512, 4),
        Tile(1, 1024, 8),
    ],
}
LONG_ROWS = Tile(1, 2048, 8)


def tile_of(num_classes: int, real: torch.dtype) -> Tile:
    """Return the tile for rows of so many classes."""
    return next((tile for tile in TILES[real] if num_classes <= tile.block), LONG_ROWS)


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of float32 or float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def launch(kernel: Any, num_programs: int, on: Tensor, *args: Any, **options: Any) -> None:
    """Start a kernel on a tensor's device, on PyTorch's current stream there."""
    if num_programs == 0:
        return
    with torch.cuda.device_of(on) if on.is_cuda else nullcontext():
        kernel[(num_programs,)](*args, enable_fp_fusion=True, **options)
