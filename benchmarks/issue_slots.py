"""What a GPU's issue slots allow its kernels, counted in their programs: no GPU is needed for that.

``python -m benchmarks.issue_slots`` writes ``benchmarks/results/issue_slots.csv``. It compiles each
Triton kernel of rank-one chains, and with nvcc each CUDA C++ one, disassembles it, follows a warp
through it (``sass.py`` has the rules), and counts by pipes (``pipes.py`` has their rates). Rows
that are not asked for, or need an nvcc that is not there, stay in the table as they are.

An element is a logit. Counts are a warp's, times 32, over the elements that it serves, so that they
include what is done once for a row. The share of a copy's bandwidth is the least of what the
busiest pipe allows, what the reads in flight allow (Little's law, the most that a warp waits for at
a time by the warps that registers and shared memory let a multiprocessor hold), and 1: an upper
bound, which waits and an uneven schedule lower.

CUDA C++ is counted for calls of so many rows that the same threads take four in turn.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence

import triton

from .arguments import new_file
from .chips import CHIPS
from .floors import bytes_of_token
from .pipes import busy, resident_warps, seconds_of, share_of_copy
from .sass import Path, most_in_flight, walk
from .slot_calls import every_key, has_nvcc, kernels
from .slot_table import TABLE, Key, Row, read, write
from .triton_calls import DTYPES

# The share of the moved bytes that is read.
READS = {"p_posterior_grad": 2 / 3, "p_sample": 1.0, "predict": 1.0}
ROWS_OF_ANCHORS = 2  # read and written


def count(key: Key) -> Row:
    """Compile and count; of more than one kernel, the one that takes longest is described."""
    path = Path(key.path)
    parts = []
    for kernel in kernels(key):
        of_warp = busy(walk(kernel.program, path, kernel.trips), key.target)
        share = kernel.warps_per_element
        parts.append((of_warp.clocks * share, of_warp.slots * share, of_warp.pipe, kernel))
    clocks, slots = sum(part[0] for part in parts), sum(part[1] for part in parts)
    *_, pipe, main = max(parts, key=lambda part: part[0])
    warps = resident_warps(main.registers, main.warps, main.shared, key.target)
    in_flight = 32 * warps * most_in_flight(main.program, path, main.trips)
    moved = moved_by_element(key)
    shares = {
        name: round(share_of_copy(seconds_of(clocks, *moved, in_flight, chip)), 2)
        for name, chip in CHIPS.items()
        if chip.target == key.target
    }
    numbers = round(32 * slots, 1), pipe, round(1000 * clocks, 1), main.registers, warps, in_flight
    return Row(*key, *numbers, shares)


def moved_by_element(key: Key) -> tuple[float, float]:
    """Return the bytes that must be read and written for an element, and the share of reads."""
    moved, reads = bytes_of_element(key), READS.get(key.operation, 0.5)
    if key.path == Path.SETTLED.value:  # rows are not read
        return moved * (1 - reads), 0.0
    return moved, reads


def bytes_of_element(key: Key) -> float:
    """Return what must be read and written for an element where rows are."""
    if key.operation == "q_sample":
        return bytes_of_token(key.operation, 1, key.dtype)
    if key.implementation == "anchor":
        return ROWS_OF_ANCHORS * DTYPES[key.dtype].itemsize
    return bytes_of_token(key.operation, key.num_classes, key.dtype) / key.num_classes


def counted(keys: Iterable[Key]) -> Iterator[Row]:
    """Yield rows, and print each."""
    for key in keys:
        row = count(key)
        print(*key[:7], f"{row.slots} slots, {row.copy}", flush=True)
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.issue_slots", description=__doc__.splitlines()[0]
    )
    every = list(every_key())
    parser.add_argument("--out", type=new_file, default=TABLE, help="the table (%(default)s)")
    for field in Key._fields:
        kind = int if field == "num_classes" else str
        known = list(dict.fromkeys(getattr(key, field) for key in every if getattr(key, field)))
        parser.add_argument(f"--{field}", nargs="+", type=kind, choices=known, help="these alone")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    asked = [
        key
        for key in every
        if all(getattr(key, field) in among for field, among in options.items() if among)
    ]
    if not has_nvcc() and any(key.implementation == "cuda" for key in asked):
        print("nvcc is not installed: CUDA C++ is not counted", flush=True)
        asked = [key for key in asked if key.implementation != "cuda"]
    there = read(out) if out.exists() else {}
    there |= {row.key: row for row in counted(asked)}
    write((there[key] for key in every if key in there), out)
    print(f"Triton {triton.__version__}, {out}", flush=True)


if __name__ == "__main__":
    main()
