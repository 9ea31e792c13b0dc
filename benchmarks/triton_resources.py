"""What every Triton kernel takes of a GPU, read from its binary: none is needed for that.

``python -m benchmarks.triton_resources`` writes ``benchmarks/results/triton.csv``, what a review
looks at. With ``--check`` it compiles all kernels for all targets and only tells what does not
compile or keeps anything outside of registers; ``make triton-versions`` does so with each Triton.
What a program is compiled for is what the library's own calls ask for; tensors without memory
stand for real ones.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from d3pm_fast._files import replaced
from d3pm_fast.chains import handles, tables
from d3pm_fast.chains.structures import DenseMarginal, MatrixStep, RankOneMarginal, RankOneStep
from d3pm_fast.records import Loss, Model, Random, Shaping, Shard, Weights
from d3pm_fast.reference.logspace import compute_dtype

from .arguments import new_file, whole

TABLE = Path(__file__).parent / "results" / "triton.csv"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SIZES = [27, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768]
DENSE_SIZES = [27, 64, 128, 256, 1024]  # of chains of matrices; float64 has no kernels of its own
DENSE_DTYPES = ["float32", "bfloat16"]
PRODUCTS_SIZES = [27, 32, 64]  # more classes are multiplied by PyTorch
PRODUCTS_DTYPES = ["float32", "float64"]
# What the committed table has: targets, numbers of classes, dtypes.
REVIEWED = [
    (["sm_90"], [27, 256, 8192], ["float32", "bfloat16"]),
    (["sm_80", "sm_100", "gfx942"], [256], ["bfloat16"]),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TOKENS = 1 << 20

Key = tuple[str, str, int, str]  # kernel, target, number of classes, dtype


class Resources(NamedTuple):
    """One program; ``local`` counts the bytes a thread keeps outside of registers."""

    kernel: str
    target: str
    num_classes: int
    dtype: str
    warps: int
    registers: int
    local: int
    shared: int
    instructions: int
    widest_load: int  # bits
    triton: str  # the version that compiled it

    @property
    def key(self) -> Key:
        """What tells it apart from the others."""
        return self[:4]


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


class Chain:
    """Stands for a transition whose steps are at hand."""

    def __init__(self, steps: Any, num_classes: int) -> None:
        self.num_classes, self.num_steps, self.memory_budget = num_classes, len(steps.s), 1 << 62
        self.handle = handles.new_handle(self)
        tables._all_steps[self] = {torch.device("meta"): steps}


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(num_classes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Return a call of every kernel, by name."""
    from d3pm_fast.kernels.common import scale
    from d3pm_fast.kernels.predictions import logistic, shaped
    from d3pm_fast.kernels.rank_one import loss, loss_strokes, p_sample, posterior, q_sample

    logits, tokens = empty(TOKENS, num_classes, dtype=dtype), empty(TOKENS)
    double = torch.float64
    table, rows = empty(1001, 7, dtype=double), empty(TOKENS // 1024)
    pi = empty(num_classes, dtype=double)
    uniform, marginal = (
        RankOneStep(rows, table, None, None, -1),
        RankOneStep(rows, table, pi, pi, 0),
    )
    weights = Weights(1.0, 0.01)
    loc, made = empty(TOKENS, dtype=dtype), empty(TOKENS, num_classes, dtype=compute_dtype(dtype))
    draw, shaping = Random(empty(TOKENS // 1024), 3), Shaping(logits, 3.0, 0.5, 5, 0.9)
    model, mean = Model(False, True), Model(True, True)
    plain = Loss(logits, tokens, None, tokens, uniform, model, weights)
    of_mean = Loss(logits, tokens, None, tokens, marginal, mean, weights)
    base = RankOneMarginal(rows, table, pi, 0, num_classes)
    shard = Shard(0, num_classes)
    statistics, line, sums = (empty(TOKENS, n, dtype=compute_dtype(dtype)) for n in (5, 3, 2))
    return {
        "loss": lambda: loss.loss(plain, "sum"),
        "loss and gradient": lambda: loss.loss_and_grad(plain, "sum", False),
        "loss and gradient, pi, posterior mean": lambda: loss.loss_and_grad(of_mean, "sum", False),
        "statistics stroke": lambda: loss_strokes.loss_statistics(of_mean, shard),
        "solve stroke": lambda: loss_strokes.loss_solve(of_mean, shard, statistics),
        "sums stroke": lambda: loss_strokes.loss_sums(of_mean, shard, statistics, line),
        "gradient stroke": lambda: loss_strokes.loss_gradient(of_mean, shard, statistics, sums),
        "q_posterior": lambda: posterior.q_posterior(tokens, tokens, marginal, num_classes, dtype),
        "p_posterior": lambda: posterior.p_posterior(logits, tokens, marginal, mean),
        "p_posterior_grad": lambda: posterior.p_posterior_grad(
            logits, logits, tokens, marginal, mean
        ),
        "p_sample": lambda: p_sample.p_sample(logits, tokens, marginal, mean, draw),
        "p_sample, shaped": lambda: p_sample.p_sample(
            logits, tokens, marginal, mean, draw, shaping
        ),
        "logistic logits": lambda: logistic.logits(loc, loc, num_classes, True),
        "logistic gradient": lambda: logistic.gradient(loc, loc, made, True),
        "shaped logits": lambda: shaped.shaped_logits(logits, shaping),
        "q_sample": lambda: q_sample.q_sample(tokens, base, draw),
        "scale": lambda: scale.scale_(logits, made[0, 0]),
        "scale by token": lambda: scale.scale_(logits, made[:, 0]),
    }


def dense_calls(num_classes: int, dtype: torch.dtype) -> list[Callable[[], Any]]:
    """Return calls that start every kernel for chains of matrices."""
    from d3pm_fast.kernels.dense import jumps, loss, p_sample, posterior, q_sample

    matrices = empty(1000, num_classes, num_classes, dtype=torch.float64)
    common = empty(1000, num_classes, dtype=torch.float64)
    steps = tables.StepTables(matrices, matrices, matrices, common, empty(1000))
    chain = Chain(steps, num_classes)
    shape = TOKENS // 1024, 1024
    logits, tokens = empty(*shape, num_classes, dtype=dtype), empty(*shape)
    step, draw = MatrixStep(empty(shape[0]), None, chain.handle), Random(empty(shape[0]), 3)
    joint, mean, weights = Model(False, True), Model(True, True), Weights(1.0, 0.01)
    of_loss = logits, tokens, None, tokens, step
    counts = jumps.Counts(step.t, 1024, empty(1000, 100, dtype=torch.float64), 100)
    rows = jumps.Jumps(tokens, tokens, empty(TOKENS, dtype=torch.float64), num_classes)
    return [
        lambda: loss.loss_and_grad(Loss(*of_loss, joint, weights), "sum", False),
        lambda: loss.loss_and_grad(Loss(*of_loss, mean, weights), "sum", False),
        lambda: posterior.q_posterior(tokens, tokens, step, num_classes, dtype),
        lambda: posterior.p_posterior(logits, tokens, step, mean),
        lambda: posterior.p_posterior_grad(logits, logits, tokens, step, mean),
        lambda: q_sample.by_matrix(tokens, DenseMarginal(step.t, chain.handle), draw),
        lambda: p_sample.p_sample(logits, tokens, step, mean, draw),
        lambda: jumps.draw_by(tokens, counts, rows, 32, draw),
    ]


def products_calls(num_classes: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Return both calls of the cumulative products' kernel, by name."""
    from d3pm_fast.kernels.dense.products import scan

    matrices = empty(1000, num_classes, num_classes, dtype=dtype)
    return {
        "products": lambda: scan(matrices, None),
        "products gradient": lambda: scan(matrices, matrices),
    }


def compiled(target: str, run: Callable[[], Any]) -> dict[str, Any]:
    """Return the programs that a call would start, by their kernels' names."""
    programs = {}
    start = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if TARGETS[target].backend == "hip":
            del options["maxnreg"]
            args = tuple("ieee" if isinstance(value, str) else value for value in args)
        programs[self.fn.__name__] = start(self, *args, grid=grid, warmup=True, **options)

    driver.set_active(NoDevice(target))
    JITFunction.run = compile_only
    try:
        run()
    finally:
        JITFunction.run = start
    return programs


def inspect(program: Any) -> tuple[int, int, int, int, int, int]:
    """Return a program's warps, registers, local bytes, shared bytes, instructions and load."""
    read = _listed_cubin if "cubin" in program.asm else _listed_amdgcn
    return program.metadata.num_warps, *usage(program), program.metadata.shared, *read(program)


def usage(program: Any) -> tuple[int, int]:
    """Return a program's registers, and the bytes that a thread keeps outside of them."""
    if "cubin" in program.asm:
        told = _output("cuobjdump", "-res-usage", program.asm["cubin"])
        names = r"REG:(\d+)", r"STACK:(\d+)", r"LOCAL:(\d+)"
    else:
        told = program.asm["amdgcn"]
        names = r"\.vgpr_count:\s+(\d+)", r"\.private_segment_fixed_size:\s+(\d+)"
    registers, *outside = (int(re.search(name, told)[1]) for name in names)
    return registers, sum(outside)


def _listed_cubin(program: Any) -> tuple[int, int]:
    listing = _output("nvdisasm", "-c", program.asm["cubin"])
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", listing)
    loads = [name for name in instructions if name.startswith("LDG")]
    widest = max((128 if ".128" in n else 64 if ".64" in n else 32 for n in loads), default=0)
    return len(instructions), widest


def _listed_amdgcn(program: Any) -> tuple[int, int]:
    listing = program.asm["amdgcn"]
    instructions = re.findall(r"^\t([vs]_\w+|global_\w+|buffer_\w+|ds_\w+)", listing, re.MULTILINE)
    loads = [re.search(r"_load_dword(?:x(\d))?", name) for name in instructions]
    widest = max((32 * int(load[1] or 1) for load in loads if load), default=0)
    return len(instructions), widest


def _output(tool: str, option: str, cubin: bytes) -> str:
    """Return what a tool that Triton brings tells of a binary."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def calls_for(size: int, dtype: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield all calls with rows of such numbers; those of chains of matrices are "dense"."""
    yield from calls(size, DTYPES[dtype]).items()
    if size in PRODUCTS_SIZES and dtype in PRODUCTS_DTYPES:
        yield from products_calls(size, DTYPES[dtype]).items()
    if size in DENSE_SIZES and dtype in DENSE_DTYPES:
        yield from (("dense", run) for run in dense_calls(size, DTYPES[dtype]))


def programs(
    targets: list[str],
    sizes: list[int],
    dtypes: list[str],
    on_error: Callable[[str, Exception], None],
) -> Iterator[tuple[Key, Any]]:
    """Compile all kernels and yield them by key; what does not compile goes to ``on_error``."""
    for target, dtype, size in product(targets, dtypes, sizes):
        found = {}
        for name, run in calls_for(size, dtype):
            try:
                made = compiled(target, run)
            except Exception as error:
                on_error(f"{name}, {target}, {size} classes, {dtype}", error)
                continue
            for kernel, program in made.items():
                found[f"dense {kernel}" if name == "dense" else name] = program
        for name, program in found.items():
            yield (name, target, size, dtype), program


def read_table(path: Path = TABLE) -> dict[Key, Resources]:
    """Return a table by its programs."""
    with path.open(newline="") as file:
        rows = [
            Resources(*(int(value) if value.isdigit() else value for value in row))
            for row in list(csv.reader(file))[1:]
        ]
    return {row.key: row for row in rows}


def write(found: Iterable[tuple[Key, Any]], path: Path) -> None:
    """Write a table."""
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Resources._fields)
        for key, program in found:
            writer.writerow(Resources(*key, *inspect(program), triton.__version__))


def check(found: Iterable[tuple[Key, Any]]) -> tuple[int, int]:
    """Return how many programs there are, and of how many the registers do not suffice."""
    count = spills = 0
    for key, program in found:
        count += 1
        _, outside = usage(program)
        if outside > 0:
            spills += 1
            print(f"{outside} bytes outside of registers: {key}", flush=True)
    return count, spills


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table, or check the programs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton_resources", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="compile for these")
    parser.add_argument("--sizes", nargs="+", type=whole(2), metavar="K", help="numbers of classes")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="of the logits")
    parser.add_argument("--out", type=new_file, default=TABLE, help="the table (%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    failures = []

    def on_error(call: str, error: Exception) -> None:
        failures.append(call)
        print(f"not compiled: {call}: {type(error).__name__}: {error}", flush=True)

    asked = options.targets, options.sizes, options.dtypes
    if any(asked) or options.check:
        everything = list(TARGETS), SIZES, list(DTYPES)
        parts = [tuple(one or every for one, every in zip(asked, everything, strict=True))]
    else:
        parts = REVIEWED
    found = (program for part in parts for program in programs(*part, on_error))
    if options.check:
        count, spills = check(found)
        made = f"{count} programs, {spills} of them spill, {len(failures)} calls do not compile"
    else:
        spills = 0
        write(found, options.out)
        made = f"{options.out}, {len(failures)} calls do not compile"
    targets = sorted({target for part in parts for target in part[0]})
    print(f"Triton {triton.__version__}, {' '.join(targets)}: {made}", flush=True)
    if spills or failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
