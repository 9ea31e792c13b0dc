"""A run without a GPU: what acts one, and every Triton program compiled ahead of time."""

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from d3pm_fast import _compiled, _environment, kernels

from .. import cases, providers
from ..slot_table import Key
from ..triton_resources import compiled, usage
from . import checks, counted, device, problems, rates, timing
from .device import Run
from .problems import BY, Task, make
from .table import Table

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers import simulated

TARGET, CHIP = "sm_90", "NVIDIA H200"
SIZES = [27, 5]
COMPILED = "compiled"
TINY = {
    "COMPILED": [27],
    "BATCH": 2,
    "BYTES_OF_LOGITS": 1 << 8,
    "DENSE_SHAPE": (2, 3, 16),
    "PRODUCTS_STEPS": 3,
    "PRODUCTS_SIZES": [5],
}


class Program(NamedTuple):
    """A compiled Triton program."""

    operation: str
    family: str
    num_classes: int
    dtype: str
    kernel: str
    registers: int
    local: int  # bytes a thread keeps outside of registers
    outcome: str  # COMPILED, or what went wrong

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it apart from the others."""
        return self[:5]


def act(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let the CPU act the device, with tiny tensors: kernels in the interpreter and as fibers."""
    put(_compiled, "cuda", simulated.module())
    put(device, "DEVICE", "cpu")
    put(device, "describe", lambda: ["no device"])
    put(device, "name", lambda: CHIP)
    put(device, "is_alive", lambda: True)
    put(device, "peak_bytes", no_bytes)
    put(device, "seconds", wall_seconds)
    put(device, "kernel_seconds", lambda run, calls: wall_seconds(run))
    for name in ("CALLS", "PROGRAMS", "TIMES", "UNROLLED", "RESIDENT"):
        put(rates, name, 1)
    put(timing, "WARM_UP", 0)
    put(timing, "ROUNDS", 3)
    put(checks, "NUMBERS", 1 << 9)
    put(providers, "BACKEND", "aot_eager")
    put(cases, "GAUSSIAN_STEPS", 20)
    for name, value in TINY.items():
        put(problems, name, value)
    numpy.seterr(all="ignore")  # the interpreter divides where a kernel's `where` does not


def no_bytes(run: Run) -> int:
    """Call and measure nothing."""
    run()
    return 0


def wall_seconds(run: Run) -> float:
    """Return the time of a call by the wall clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def programs(out: Path) -> Table:
    """Return the table of programs."""
    return Table(out / "programs.csv", Program)


def import_cuda(out: Path) -> None:
    """Import the CUDA module that was built, without a driver; where none was, print so."""
    built = list(out.glob("lib/**/_cuda*.so"))
    module = simulated.load(built[0]) if built else _compiled.cuda
    print(f"CUDA module: {module}", flush=True)
    assert module is None or module.device == "cuda"


def compile_all(
    timed: Iterable[Task], checked: Iterable[Task], keys: Iterable[Key], out: Path
) -> int:
    """Compile all that a run would start, and write down what each takes of the device.

    The library's own calls are made, with CPU tensors; a kernel is compiled where it would be
    started.

    Returns:
        1 where one is not compiled, or keeps anything outside of registers.
    """
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        importlib.import_module(module.name)  # while INTERPRET is False, which they read
    device.DEVICE, device.name, _environment.INTERPRET = "cpu", lambda: CHIP, True
    problems.BYTES_OF_LOGITS, problems.MOST_DENSE_CLASSES = 1 << 20, 0
    problems.DENSE_SHAPE = 2, 16, problems.DENSE_SHAPE[-1]
    for task in timed:
        compile_one(task, lambda task=task: make(task).runs[BY["triton"]](), out)
    for task in checked:
        compile_one(task, partial(run_check, task), out)
    for key in keys:
        task = Task(key.operation, key.chain, key.num_classes, key.dtype)
        compile_one(task, lambda key=key: counted.call_of(key)[0](), out)
    found = programs(out).read()
    bad = [row for row in found if row.outcome != COMPILED or row.local]
    print(f"\n{len(found) - len(bad)} of {len(found)} programs are compiled and spill nothing")
    for row in bad:
        print(*row)
    return int(bool(bad))


def run_check(task: Task) -> None:
    """Make the calls of a check."""
    compute, arguments = checks.prepare(task)
    compute(*arguments, "triton")


def compile_one(task: Task, run: Run, out: Path) -> None:
    """Compile the programs of a call, those that are new."""
    print(*task, flush=True)
    known = {row.key for row in programs(out).read()}
    try:
        found = {
            name: (*usage(program), COMPILED) for name, program in compiled(TARGET, run).items()
        }
    except Exception as error:
        found = {"": (0, 0, " ".join(f"{type(error).__name__}: {error}".split())[:300])}
    for name, outcome in found.items():
        row = Program(*task, name, *outcome)
        if row.key not in known:
            programs(out).append(row)
