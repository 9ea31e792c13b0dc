"""The rates that the count of issue slots assumes, beside what this device does.

A kernel each that is limited by one of them: a copy, multiplications that do not depend on one
another, powers of two, and reads of which each waits for the one before.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from d3pm_fast.kernels.common.launch import launch

from .. import pipes
from ..chips import Chip
from . import device, problems
from .device import Run
from .table import Table

CALLS = 10
WARPS, NUMBERS = 4, 8  # of a program; numbers of a thread, which do not depend on one another
UNROLLED = 16
PROGRAMS, TIMES = 1 << 13, 1 << 8  # times of a loop
RESIDENT = 4  # programs of a multiprocessor that read


class Rate(NamedTuple):
    """One of them, of the whole device."""

    name: str
    unit: str
    assumed: float
    measured: float

    @property
    def ratio(self) -> float:
        """1 where the assumption is right."""
        return self.measured / self.assumed


def rates(out: Path) -> Table:
    """Return the table of rates."""
    return Table(out / "rates.csv", Rate)


@triton.jit
def repeat(target, times, POWERS: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = at.to(tl.float32)
    for _ in range(times):
        for _ in tl.static_range(UNROLLED):
            if POWERS:
                x = tl.exp2(-x)
            else:
                x = tl.fma(x, 0.5, 1.0)
    tl.store(target + at, x)


@triton.jit
def read_in_turn(source, target, times, step, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = first.to(tl.int64)
    for _ in range(times):
        at += step + tl.load(source + at)  # zeros, which only the device can know
    tl.store(target + first, at)


def measure(chip: Chip, out: Path) -> None:
    """Write down all rates."""
    for rate in measured(chip):
        rates(out).append(Rate(*rate[:2], *(float(f"{x:.4g}") for x in rate[2:])))
        print(f"{rate.name:30} {rate.ratio:5.2f} of what is assumed", flush=True)


def measured(chip: Chip) -> Iterator[Rate]:
    """Yield the rates of this device beside those of a datasheet."""
    programs = RESIDENT * chip.multiprocessors
    step = 32 * WARPS * programs
    count = max(problems.BYTES_OF_LOGITS // 8, 2 * step)
    numbers = torch.zeros(count, dtype=torch.int64, device=device.DEVICE)
    target = torch.empty_like(numbers)
    seconds = least(lambda: target.copy_(numbers))
    assumed = pipes.COPY * chip.bandwidth
    yield Rate("bandwidth of a copy", "B/s", assumed, 2 * numbers.nbytes / seconds)

    block = 32 * WARPS * NUMBERS
    few = torch.empty(block, device=device.DEVICE)
    instructions = PROGRAMS * WARPS * NUMBERS * UNROLLED * TIMES
    for name, powers, a_clock in (
        ("multiplications", False, float(pipes.ISSUE)),
        ("powers of two", True, 1 / 2),
    ):
        args = few, few, TIMES, powers, UNROLLED, block
        seconds = least(lambda args=args: launch(repeat, PROGRAMS, *args, num_warps=WARPS))
        unit = "instructions of a warp/s"
        yield Rate(name, unit, a_clock * chip.clocks, instructions / seconds)

    times = count // step - 1
    args = numbers, numbers, target, times, step, 32 * WARPS
    seconds = least(lambda: launch(read_in_turn, programs, *args, num_warps=WARPS))
    yield Rate("a read's latency", "s", pipes.LATENCY, seconds / times)


def least(run: Run) -> float:
    """Return the seconds of a call, the least of some."""
    run()
    return min((device.seconds(run) for _ in range(CALLS)), default=math.nan)
