"""What every Triton kernel takes of a GPU, read from its program: none is needed for that.

``python -m benchmarks.triton_resources`` writes ``benchmarks/results/triton.csv``, what a review
looks at. With ``--check`` it compiles all kernels for all targets and only tells what does not
compile or keeps anything outside of registers; ``make triton-versions`` does so with each Triton.
What a program is compiled for is what the library's own calls ask for.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from d3pm_fast._files import replaced

from .arguments import new_file, whole
from .sass import tool
from .triton_calls import DTYPES, REVIEWED, SIZES, Call, every_call, reviewed_calls

TABLE = Path(__file__).parent / "results" / "triton.csv"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    """What a kernel takes in the last call of it; ``spilled`` counts the bytes of a thread."""

    kernel: str
    dtype: str
    num_classes: int
    warps: int
    registers: int
    spilled: int
    shared: int
    widest_load: int  # bits

    @property
    def key(self) -> tuple[str, str]:
        """What tells it apart from the others."""
        return self[:2]


class NoDevice:
    """Stands for Triton's driver of a target; a device is the target's number."""

    def __init__(self, name: str) -> None:
        self._device, self._target = list(TARGETS).index(name), TARGETS[name]

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


class Started(NamedTuple):
    """A compiled kernel, and how many programs of it a call would start."""

    program: Any
    count: int


def compiled(target: str, run: Callable[[], Any]) -> dict[str, Any]:
    """Return the compiled kernels that a call would start, by their names."""
    return {name: of.program for name, of in started(target, run).items()}


def started(target: str, run: Callable[[], Any]) -> dict[str, Started]:
    """Return what a call would start, by the names of the kernels."""
    programs = {}
    start = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if TARGETS[target].backend == "hip":
            del options["maxnreg"]
            args = tuple("ieee" if isinstance(value, str) else value for value in args)
        program = start(self, *args, grid=grid, warmup=True, **options)
        programs[self.fn.__name__] = Started(program, grid[0])

    driver.set_active(NoDevice(target))
    JITFunction.run = compile_only
    try:
        run()
    finally:
        JITFunction.run = start
    return programs


def usage(program: Any) -> tuple[int, int]:
    """Return a program's registers, and the bytes that a thread keeps outside of them."""
    if "cubin" in program.asm:
        told = tool("cuobjdump", "-res-usage", program.asm["cubin"])
        names = r"REG:(\d+)", r"STACK:(\d+)", r"LOCAL:(\d+)"
    else:
        told = program.asm["amdgcn"]
        names = r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)"
    registers, *outside = (int(re.search(name, told)[1]) for name in names)
    return registers, sum(outside)


def widest_load(program: Any) -> int:
    """Return how many bits a thread reads at most at a time."""
    ptx = program.asm["ptx"]
    loads = re.findall(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)", ptx)
    copies = re.findall(r"\bcp\.async\.\w+\.shared\.global \[.*?\], \[.*?\], (\w+)", ptx)
    widths = [int(count or 1) * int(bits) for count, bits in loads]
    return max(widths + [8 * int(size, 0) for size in copies], default=0)


def programs(
    asked: Iterable[Call], on_error: Callable[[Call, Exception], None]
) -> Iterator[tuple[Call, str, Any]]:
    """Compile the kernels of calls and yield them, each with its name.

    What does not compile goes to ``on_error``.
    """
    for call in asked:
        try:
            made = compiled(call.target, call.run)
        except Exception as error:
            on_error(call, error)
            continue
        for kernel, program in made.items():
            yield call, kernel, program


def resources(call: Call, kernel: str, program: Any) -> Resources:
    """Return what a program takes."""
    warps, shared = program.metadata.num_warps, program.metadata.shared
    taken = warps, *usage(program), shared, widest_load(program)
    return Resources(kernel, call.dtype, call.num_classes, *taken)


def read_table(path: Path = TABLE) -> dict[tuple[str, str], Resources]:
    """Return a table by kernels and dtypes."""
    with path.open(newline="") as file:
        rows = [
            Resources(*(int(value) if value.isdigit() else value for value in row))
            for row in list(csv.reader(file))[1:]
        ]
    return {row.key: row for row in rows}


def write(found: Iterable[tuple[Call, str, Any]], path: Path) -> None:
    """Write a table."""
    rows = [resources(*each) for each in found]
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Resources._fields)
        writer.writerows({row.key: row for row in rows}.values())


def check(found: Iterable[tuple[Call, str, Any]]) -> tuple[int, int]:
    """Return how many programs there are, and of how many the registers do not suffice."""
    count = spills = 0
    for call, kernel, program in found:
        count += 1
        _, spilled = usage(program)
        if spilled > 0:
            spills += 1
            print(f"{spilled} bytes outside of registers: {kernel} of {call[:4]}", flush=True)
    return count, spills


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table, or check the programs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_resources", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="of the logits")
    parser.add_argument("--out", type=new_file, default=TABLE, help="the table (%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing")
    narrow = parser.add_argument_group("with --check")
    narrow.add_argument("--targets", nargs="+", choices=TARGETS, help="compile for these")
    narrow.add_argument("--sizes", nargs="+", type=whole(2), metavar="K", help="numbers of classes")
    options = parser.parse_args(arguments)
    if not options.check and (options.targets or options.sizes):
        parser.error("--targets and --sizes are for --check")
    failures, spills = [], 0

    def on_error(call: Call, error: Exception) -> None:
        failures.append(call)
        print(f"not compiled: {call[:4]}: {type(error).__name__}: {error}", flush=True)

    if options.check:
        targets, sizes = options.targets or list(TARGETS), options.sizes or SIZES
        asked = every_call(targets, sizes, options.dtypes or list(DTYPES))
        count, spills = check(programs(asked, on_error))
        made = f"{' '.join(targets)}: {count} programs, {spills} of them spill"
    else:
        write(programs(reviewed_calls(options.dtypes or REVIEWED), on_error), options.out)
        made = str(options.out)
    told = f"Triton {triton.__version__}, {made}, {len(failures)} calls do not compile"
    print(told, flush=True)
    if spills or failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
