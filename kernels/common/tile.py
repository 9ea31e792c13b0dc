"""Tiles of rows: which classes of which tokens a program holds, and which thread has which.

A tile is ``(HIGH, rows, LOW)``, its class ``high * LOW + low``. Threads are given out along LOW
first, in vectors of 16 bytes, and along the rows next: a row of few classes is spread over few
threads, since all of them repeat the mathematics of its token. Tritons differ in how they share
out three dimensions; of two, ``(HIGH * rows, LOW)``, in which memory is read and written, all make
this.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Tile(NamedTuple):
    """The shape of a tile, and the warps that share it."""

    rows: int
    high: int
    low: int
    num_warps: int

    @property
    def num_classes(self) -> int:
        """How many classes of a row it holds."""
        return self.high * self.low


# A thread's numbers, and the longest rows that are held whole; longer ones are read in blocks.
# No program spills a register with them, see benchmarks/results/triton.csv.
NUMBERS = {torch.float32: 32, torch.float64: 8}
LONGEST = {torch.float32: 8192, torch.float64: 512}
LONG_ROW_WARPS = {torch.float32: 8, torch.float64: 4}
ANYHOW = tl.constexpr("")  # how the cache keeps what is read or written


def is_aligned(num_classes: int) -> bool:
    """Return whether rows are read 16 bytes at a time: what Triton knows are multiples of 16."""
    return num_classes % 16 == 0


def tile_of(
    num_classes: int, dtype: torch.dtype, copies: int = 1, in_vectors: int | None = None
) -> Tile:
    """Return the tile for rows of so many numbers of a floating point type.

    ``copies`` says how much a program keeps beside them, 1 for nothing; ``in_vectors`` how many
    numbers a thread has at most where it reads them in vectors, None for what any program may.
    """
    real = torch.float64 if dtype == torch.float64 else torch.float32
    vector = 16 // dtype.itemsize
    whole = triton.next_power_of_2(num_classes)
    if whole > LONGEST[real] // copies:
        num_warps = LONG_ROW_WARPS[real]
        return Tile(1, 1, num_warps * 32 * vector, num_warps)
    numbers = NUMBERS[real] // copies
    if is_aligned(num_classes):
        high = max(min(in_vectors or numbers, whole) // vector, 1)
        threads = max(whole // (high * vector), 1)
    else:  # read number by number
        high = min(numbers, max(whole // 2, 1))
        threads = whole // high
    num_warps = max(threads // 32, 4)
    return Tile(num_warps * 32 // threads, high, whole // high, num_warps)


class Classes(NamedTuple):
    """The classes of a tile, the same in all rows, and where they are in a tensor (N, K)."""

    start: Any  # the first
    j: Any  # (HIGH, ROWS, LOW), the sum of the next two
    high: Any  # (HIGH, 1, 1)
    low: Any  # (1, 1, LOW)
    flat: Any  # j as (HIGH * ROWS, LOW)
    first: Any  # where the program's rows begin
    at: Any  # (HIGH * ROWS, LOW), int32: where the classes with high = 0 are from there on
    on: Any  # (HIGH * ROWS, 1), and how much further those of the line are
    there: Any  # (HIGH * ROWS, LOW), whether they are, or one for all of a line


@triton.jit
def classes_from(
    a, start, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr,
    FILLED: tl.constexpr = False,
):  # fmt: skip
    """Return the classes of a tile of the program's rows that begins at one of them.

    FILLED says that none is beyond the last.
    """
    line = tl.arange(0, HIGH * ROWS)
    row = line % ROWS
    flat = start + (line // ROWS * LOW)[:, None] + tl.arange(0, LOW)[None, :]
    before = tl.program_id(0).to(tl.int64) * ROWS
    left = tl.minimum(a.num_tokens - before, ROWS).to(tl.int32)
    there = (row < left)[:, None]
    if not FILLED:
        there &= flat < a.num_classes
    at = (tl.minimum(row, left - 1) * a.num_classes)[:, None] + tl.arange(0, LOW)[None, :]
    on = start + (line // ROWS * LOW)[:, None]
    high = start + tl.arange(0, HIGH)[:, None, None] * LOW
    low = tl.arange(0, LOW)[None, None, :]
    j = tl.reshape(flat, [HIGH, ROWS, LOW])
    return Classes(start, j, high, low, flat, before * a.num_classes, at, on, there)


@triton.jit
def on_flat(x, HIGH: tl.constexpr):
    """Return what each row has, (HIGH * ROWS, 1)."""
    ROWS: tl.constexpr = x.shape[0]
    return tl.reshape(tl.broadcast_to(x[None, :], [HIGH, ROWS]), [HIGH * ROWS])[:, None]


@triton.jit
def load_tile(pointer, classes, mask=None, other=None, KEEP: tl.constexpr = ANYHOW):
    """Return the numbers of a tile; where the mask is false, ``other`` or anything.

    Those of a row beyond the last are those of the last. KEEP is the cache's policy.
    """
    at = pointer + classes.first + classes.at + classes.on
    x = tl.load(at, mask=mask, other=other, eviction_policy=KEEP)
    return tl.reshape(x, classes.j.shape)


@triton.jit
def load_classes(pointer, classes, FILLED: tl.constexpr = False):
    """Return what each class of a tile has, the same in all rows; 0 where there is none.

    FILLED says that there are all.
    """
    if FILLED:
        return tl.reshape(tl.load(pointer + classes.flat), classes.j.shape)
    else:
        x = tl.load(pointer + classes.flat, mask=classes.there, other=0.0)
        return tl.reshape(x, classes.j.shape)


@triton.jit
def store_tile(pointer, classes, values, KEEP: tl.constexpr = ANYHOW):
    """Write the numbers of a tile."""
    store_flat(pointer, classes, tl.reshape(values, classes.flat.shape), KEEP)


@triton.jit
def store_flat(pointer, classes, values, KEEP: tl.constexpr = ANYHOW):
    """Write numbers as they are in memory, (HIGH * ROWS, LOW) or broadcast to it."""
    values = tl.broadcast_to(values.to(pointer.dtype.element_ty), classes.flat.shape)
    at = pointer + classes.first + classes.at + classes.on
    tl.store(at, values, mask=classes.there, eviction_policy=KEEP)


@triton.jit
def fill_rows(a, pointer, classes, value):
    """Write a number (1,) to the program's rows, as they follow one another in memory."""
    SIZE: tl.constexpr = classes.flat.shape[0] * classes.flat.shape[1]
    ROWS: tl.constexpr = classes.j.shape[1]
    left = tl.minimum(a.num_tokens - tl.program_id(0).to(tl.int64) * ROWS, ROWS).to(tl.int32)
    at = tl.arange(0, SIZE)
    values = tl.broadcast_to(value.to(pointer.dtype.element_ty), [SIZE])
    tl.store(pointer + classes.first + at, values, mask=at < left * a.num_classes)


@triton.jit
def on_tile(x):
    """Return what each row has, for all of its classes: in the layout that ``row_sum`` returns."""
    return x[:, None][None, :, :]


@triton.jit
def row_sum(x):
    """Return the sum of each row."""
    return tl.sum(tl.sum(x, axis=0), axis=1)


@triton.jit
def row_max(x):
    """Return the largest number of each row."""
    return tl.max(tl.max(x, axis=0), axis=1)
