"""Interleaved timing: every provider once a round, in shuffled order; medians over rounds.

A machine's speed drifts; within a round all providers meet the same machine, and none always
runs behind the same neighbour. A provider's result lives until its clock has stopped.
"""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

WARM_UP_CALLS = 3
WARM_AFTER = 1.0  # seconds of a call that is warm-up enough
MAX_ROUNDS = 500
PRECISION = 0.005  # relative standard error of every median at which a run may stop


class Timing(NamedTuple):
    """Median and quartiles of the seconds that a call takes."""

    median: float
    lower: float
    upper: float
    rounds: int

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        return (self.upper - self.lower) / self.median

    @property
    def is_stable(self) -> bool:
        """Whether the median's standard error, for a bell curve, is below ``PRECISION``."""
        return 0.93 * self.spread / self.rounds**0.5 < PRECISION


def interleave(
    runs: Mapping[Key, Callable[[], Any]], budget: float, min_rounds: int = 7
) -> dict[Key, Timing]:
    """Time every run until all medians are stable or ``budget`` seconds are spent."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    order, rng = list(runs), random.Random(0)
    for run in runs.values():
        for _ in range(WARM_UP_CALLS):
            if time_once(run) > WARM_AFTER:
                break
    end = time.perf_counter() + budget
    with collector_off():
        for rounds in range(1, MAX_ROUNDS + 1):
            rng.shuffle(order)
            for key in order:
                seconds[key].append(time_once(runs[key]))
            late = time.perf_counter() > end
            if rounds >= min_rounds and (late or rounds % 20 == 0):
                timings = {key: summarize(values) for key, values in seconds.items()}
                if late or all(timing.is_stable for timing in timings.values()):
                    break
    return timings


def time_once(run: Callable[[], Any]) -> float:
    """Return the seconds of one call, without those that freeing its result takes."""
    start = time.perf_counter()
    result = run()
    stop = time.perf_counter()
    del result
    return stop - start


def summarize(seconds: list[float]) -> Timing:
    """Return the median and the quartiles."""
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, lower, upper, len(seconds))


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector out of the timings."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class OtherWork:
    """Measures how many cores other processes keep busy from now on; Linux only."""

    def __init__(self) -> None:
        self._start = _cpu_clocks()

    def cores(self) -> float | None:
        """Return the average number of cores since the start, None where it is not known."""
        now = _cpu_clocks()
        if now is None or self._start is None:
            return None
        wall, everyone, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max((everyone - own) / wall, 0.0)


def _cpu_clocks() -> tuple[float, float, float] | None:
    """Return seconds of wall clock, of all processes on all cores, and of this process."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system = map(int, stat.read_text().split(maxsplit=4)[1:4])
    everyone = (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), everyone, time.process_time()
