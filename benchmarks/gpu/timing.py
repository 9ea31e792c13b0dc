"""Times of all providers, in interleaved rounds, a copy of the bytes beside them."""

import random
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from . import device
from .device import Run
from .problems import Problem, Task, make
from .table import Table

WARM_UP, ROUNDS = 3, 30
FLOOR = "counted floor"
ALL = "all"


class Row(NamedTuple):
    """One provider's times of one task."""

    operation: str
    family: str
    num_classes: int
    dtype: str
    count: int  # of tokens, or steps
    provider: str
    median_us: float
    lower_us: float
    upper_us: float
    gb_per_s: float  # of the bytes that must be moved
    of_copy: float
    peak_gradients: float  # memory beyond the inputs, in gradients


class Failure(NamedTuple):
    """Why a provider, or all of a task's, have no times."""

    operation: str
    family: str
    num_classes: int
    dtype: str
    provider: str
    error: str


def times(out: Path) -> Table:
    """Return the table of times."""
    return Table(out / "times.csv", Row)


def failures(out: Path) -> Table:
    """Return the table of what could not be timed."""
    return Table(out / "errors.csv", Failure)


def measure(tasks: Iterable[Task], out: Path, until: float) -> None:
    """Time those tasks that have no times yet, until ``time.monotonic()`` says so.

    Raises:
        SystemExit: the device was lost; another process can go on behind what did it.
    """
    done = {row[:4] for row in times(out).read()}
    for task in tasks:
        if task in done:
            continue
        if time.monotonic() > until:
            print("\nno time for more", flush=True)
            return
        print(f"\n{task.operation} {task.family} K = {task.num_classes} {task.dtype}", flush=True)
        rows = attempt(task, out)
        for row in rows:
            times(out).append(row)
        print(text_of(rows), flush=True)


def attempt(task: Task, out: Path) -> list[Row]:
    """Return a task's rows, of those providers that work."""
    failed = {row.provider for row in failures(out).read() if row[:4] == task}
    rows: list[Row] = []
    if ALL in failed:
        return rows
    with noted(task, ALL, out):
        problem, runs = make(task), {}
        for name in problem.runs.keys() - failed:
            with noted(task, name, out):
                problem.runs[name]()
                runs[name] = problem.runs[name]
        ordered = {name: runs[name] for name in problem.runs if name in runs}
        rows = rows_of(task, problem, ordered)
    return rows


@contextmanager
def noted(task: Task, provider: str, out: Path) -> Iterator[None]:
    """Write down what fails inside, and go on where the device still does."""
    try:
        yield
        if not device.is_alive():
            raise RuntimeError("the device was lost")
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        failures(out).append(Failure(*task, provider, line))
        print(f"{provider}: {line}", flush=True)
        if not device.is_alive():
            raise SystemExit(device.LOST) from error


def rows_of(task: Task, problem: Problem, runs: dict[str, Run]) -> list[Row]:
    """Time providers in interleaved rounds, a copy of the problem's bytes beside them."""
    half = torch.empty(problem.bytes_moved // 2, dtype=torch.uint8, device=device.DEVICE)
    source, target = half.random_(), torch.empty_like(half)
    runs = runs | {"copy": lambda: target.copy_(source)}
    peaks = {name: device.peak_bytes(run) / problem.gradient_bytes for name, run in runs.items()}
    found = interleave(runs)
    if problem.floor_us is not None:
        found[FLOOR], peaks[FLOOR] = [problem.floor_us / 1e6] * 2, 0.0
    copied = problem.bytes_moved / statistics.median(found["copy"])
    rows = []
    for name, seconds in found.items():
        lower, median, upper = statistics.quantiles(seconds, n=4)
        rate = problem.bytes_moved / median
        numbers = (median * 1e6, lower * 1e6, upper * 1e6, rate / 1e9, rate / copied, peaks[name])
        rounded = (float(f"{number:.4g}") for number in numbers)
        rows.append(Row(*task, problem.count, name, *rounded))
    return rows


def interleave(runs: dict[str, Run]) -> dict[str, list[float]]:
    """Return the seconds of every call; each runs once a round."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    shuffled, found = random.Random(0), {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in shuffled.sample(list(runs), len(runs)):
            found[name].append(device.seconds(runs[name]))
    return found


def text_of(rows: list[Row]) -> str:
    """Return a task's table; the first row is ours."""
    return "\n".join(
        f"{row.provider:22} {row.median_us:10.1f} us "
        f"{row.median_us / rows[0].median_us:7.2f} x ours {row.gb_per_s:7.0f} GB/s "
        f"{row.of_copy:5.2f} of copy {row.peak_gradients:6.2f} gradients"
        for row in rows
    )
