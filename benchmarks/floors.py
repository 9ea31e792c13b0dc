"""The least time of every operation on a GPU: ``python -m benchmarks.floors`` writes the table.

Bytes are those of every input read once and every output written once, as the operation is
defined. The floor is the larger of the two times at the chip's datasheet rates, and says nothing of
what a launch, or a step that waits for the one before, takes. Operations, a multiply-add as two:

- of rank-one chains: clocks that the Triton kernel keeps the busiest pipe of a multiprocessor, from
  ``issue_slots.csv``. It is what this way of computing takes, not what the mathematics would need
  at least. Floating-point operations alone, at their datasheet rate, would give a fifth to a third
  of this time: loads, comparisons, selections and conversions take issue slots just as well;
- of chains of matrices: those of products of rows with ``Qbar_s`` alone, ``2 K^2`` each and three
  times that at the rate of tf32: three products of tf32, or six of bfloat16 at twice the rate.
  Matrices are not among the bytes: those that one distinct step reads, in float64 or three parts of
  bfloat16, and once however many its tokens are, stream from the second-level cache and are a
  column beside, ``matrix_bytes_per_step``;
- of cumulative products: ``2 K^3`` each, at the rate of float64.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d3pm_fast._files import replaced

from .arguments import new_file
from .chips import CHIPS
from .sass import Path as Way
from .slot_table import Row, read
from .triton_calls import DTYPES

TABLE = Path(__file__).parent / "results" / "floors.csv"
DENSE_SIZES = [32, 256]
PRODUCTS_SIZES = [32, 64]
TOKENS, STEPS = 1_000_000, 1000


# Rows of numbers and tokens of 8 bytes that an operation reads or writes.
TRAFFIC = {
    "loss": (1, 2),
    "loss and gradient": (2, 2),
    "q_posterior": (1, 2),
    "p_posterior": (2, 1),
    "p_posterior_grad": (3, 1),
    "p_sample": (1, 2),
    "q_sample": (0, 2),
    "predict": (1, 8),
}
# Products of a row with Qbar_s, and how many of Q, Qbar_s and Qbar_t are looked up in float64.
CHAIN = {
    "loss": (1, 3),
    "loss and gradient": (2, 3),
    "q_posterior": (0, 3),
    "p_posterior": (1, 1),
    "p_posterior_grad": (2, 1),
    "p_sample": (1, 1),
    "q_sample": (0, 1),
}
# Tables (T, K, K) that are read or written, and products of two matrices for each of their steps.
SCAN = {"products": (2, 1), "products gradient": (4, 2)}
TF32_PRODUCTS = 3
PARTS = 3 * 2  # bytes of an entry of Qbar_s that is multiplied with
COUNTED = "sm_90"  # for this target; on A100 and B200 the counts are within a few percent


class Work(NamedTuple):
    """What a number of tokens or steps takes, each."""

    operation: str
    num_classes: int
    dtype: str
    count: int
    bytes_each: int
    operations_each: float
    rate: str  # which of the chip's it is done at
    matrix_bytes_per_step: int = 0


class Floor(NamedTuple):
    """The least time of a work, in microseconds, and which of the two it is."""

    work: Work
    chip: str
    floor_us: float
    bound_by: str

    @property
    def row(self) -> tuple[Any, ...]:
        """Its row of the table."""
        return *self.work, *self[1:]


HEAD = (*Work._fields, *Floor._fields[1:])


def floor_of(work: Work, chip: str) -> Floor:
    """Divide by the chip's rates."""
    rates = CHIPS[chip]
    times = {
        "memory": work.count * work.bytes_each / rates.bandwidth,
        "arithmetic": work.count * work.operations_each / getattr(rates, work.rate),
    }
    bound = max(times, key=times.__getitem__)
    return Floor(work, chip, float(f"{times[bound] * 1e6:.4g}"), bound)


def bytes_of_token(operation: str, num_classes: int, dtype: str) -> int:
    """Return what is read and written of memory for one token."""
    rows, tokens = TRAFFIC[operation]
    return rows * num_classes * DTYPES[dtype].itemsize + 8 * tokens


def work_of_chain(operation: str, num_classes: int, dtype: str, count: int = TOKENS) -> Work:
    """Return the work of tokens of a chain of matrices."""
    products, matrices = CHAIN[operation]
    moved = bytes_of_token(operation, num_classes, dtype)
    work = TF32_PRODUCTS * products * 2 * num_classes**2
    looked_up = (matrices * 8 + (PARTS if products else 0)) * num_classes**2
    return Work(f"dense {operation}", num_classes, dtype, count, moved, work, "tf32", looked_up)


def work_of_products(operation: str, num_classes: int, dtype: str, count: int = STEPS) -> Work:
    """Return the work of steps of cumulative products, or of their gradient."""
    tables, products = SCAN[operation]
    moved = tables * num_classes**2 * DTYPES[dtype].itemsize
    return Work(
        operation, num_classes, dtype, count, moved, products * 2 * num_classes**3, "float64"
    )


def rank_one() -> Iterator[Work]:
    """Yield the works that are counted in programs, for the targets of the table."""
    for row in read().values():
        if row.implementation != "triton" or row.target != COUNTED or row.chain == "dense":
            continue
        if row.operation in TRAFFIC:
            yield work_of_rank_one(row)


def work_of_rank_one(row: Row) -> Work:
    """Return the work of tokens of a rank-one chain."""
    name = f"{row.operation}, {row.chain}"
    elements = 1 if row.operation == "q_sample" else row.num_classes
    moved = bytes_of_token(row.operation, row.num_classes, row.dtype)
    if row.path == Way.SETTLED.value:  # rows are written alone
        name, moved = f"{name}, settled", moved - row.num_classes * DTYPES[row.dtype].itemsize
    clocks = round(row.clocks * elements / 1000, 2)
    return Work(name, row.num_classes, row.dtype, TOKENS, moved, clocks, "clocks")


def written_down() -> Iterator[Work]:
    """Yield the works that are counted in the mathematics."""
    for operation in CHAIN:
        for size in DENSE_SIZES:
            for dtype in ("float32", "bfloat16"):
                yield work_of_chain(operation, size, dtype)
    for operation in SCAN:
        for size in PRODUCTS_SIZES:
            for dtype in ("float32", "float64"):
                yield work_of_products(operation, size, dtype)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.floors",
        description="Write the least time of every operation on a GPU, from the counted slots.",
    )
    parser.add_argument("--out", type=new_file, default=TABLE, help="the table (%(default)s)")
    options = parser.parse_args(arguments)
    with replaced(options.out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        for work in (*rank_one(), *written_down()):
            writer.writerows(floor_of(work, chip).row for chip in CHIPS)


if __name__ == "__main__":
    main()
