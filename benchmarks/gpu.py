"""The kernels on a GPU: ``python -m benchmarks.gpu --out DIR`` installs, measures and tests.

Needs torch, triton, setuptools and pybind11, for the CUDA kernels nvcc and ninja too, and no
network; takes ten minutes at most. Writes ``machine.txt``, ``times.csv``, ``preferred.csv`` (to be
copied to ``d3pm_fast/ops``, where ``impl="auto"`` reads it), with matplotlib ``roofline.png``, and
the logs of the tests, of compute-sanitizer too where it is there.
"""

import argparse
import copy
import csv
import importlib.util
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
DEVICE = "cuda"
TESTS = ["triton", "loss", "posterior", "p_sample", "q_sample", "dense_triton", "products"]
SIZES = [27, 256, 1024, 8192, 131072]
COMPILED = [27, 256, 8192]  # sizes that torch.compile is given
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LOGITS_DTYPES = ["float32", "bfloat16"]
DENSE_SHAPE = 8, 1024, 256
PRODUCTS_STEPS, PRODUCTS_SIZES, PRODUCTS_DTYPES = 1000, [27, 64], ["float32", "float64"]
BYTES_OF_LOGITS = 1 << 28  # past every second-level cache
WARM_UP, ROUNDS = 3, 30
MEASURE_SECONDS, TEST_SECONDS, SANITIZER_SECONDS = 200, 210, 40
BY = {"triton": "ours, Triton", "cuda": "ours, CUDA C++"}
FLOOR = "counted floor"

Run = Callable[[], Any]


class Problem(NamedTuple):
    """What is measured at a time: the providers, and what their numbers are divided by."""

    operation: str
    family: str
    count: int
    num_classes: int
    dtype: str
    runs: dict[str, Run]
    bytes_moved: int
    gradient_bytes: int
    floor_us: float | None = None  # where it is counted for this chip


class Row(NamedTuple):
    """One provider's times of one problem."""

    operation: str
    family: str
    count: int  # of tokens, or steps
    num_classes: int
    dtype: str
    provider: str
    median_us: float
    lower_us: float
    upper_us: float
    gb_per_s: float  # of the bytes that must be moved
    of_copy: float
    peak_gradients: float  # memory beyond the inputs, in gradients


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, test and measure; the tests' exit status."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("d3pm_fast.kernels") is None:
        install()
    (options.out / "machine.txt").write_text(describe())
    if not torch.cuda.is_available():
        sys.exit("no GPU")
    write(list(measure(problems(options.sizes))), options.out)
    return 0 if options.skip_tests else run_tests(options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="of the rank-one loss")
    return parser.parse_args(arguments)


def install() -> None:
    """Install the package from this folder with what is there, and start again."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    environment = os.environ | {"D3PM_FAST_CUDA": "1" if shutil.which("nvcc") else "0"}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        environment["D3PM_FAST_CUDA_ARCHS"] = f"{major}{minor}"
    command = [*pip, "--no-build-isolation", "--editable", ROOT]
    subprocess.run(command, check=True, env=environment)
    importlib.invalidate_caches()
    sys.exit(subprocess.run([sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]]).returncode)


def describe() -> str:
    """Return what the numbers depend on."""
    import triton

    lines = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    lines.append(f"triton {triton.__version__}")
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        lines.append(f"device {found.name}, {found.multi_processor_count} multiprocessors")
        lines.append(f"memory {found.total_memory >> 20} MiB, L2 {found.L2_cache_size >> 20} MiB")
    return "\n".join(lines) + "\n"


def run_tests(out: Path) -> int:
    """Run the tests on the device, and some of them under compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-q"]
    files = [f"tests/test_{name}.py" for name in TESTS]
    on_gpu = "(triton or cuda) and not table_says"  # that one compiles, and needs no GPU
    status = log_of([*pytest, "-k", on_gpu, *files], out / "tests.txt", TEST_SECONDS)
    sanitizer = shutil.which("compute-sanitizer")
    few = [*pytest, "-k", "draw_the_same and cuda", "tests/test_p_sample.py"]
    for tool in ["memcheck", "racecheck"] if sanitizer else []:
        log_of([sanitizer, "--tool", tool, *few], out / f"{tool}.txt", SANITIZER_SECONDS)
    return status


def log_of(command: list[str], log: Path, seconds: int) -> int:
    """Run a command for so long at most, print its last lines and return its exit status."""
    with log.open("w") as file:
        try:
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            status = subprocess.run(command, cwd=ROOT, timeout=seconds, **streams).returncode
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {seconds} seconds\n")
            status = 0
    print(log.name, *log.read_text().splitlines()[-8:], sep="\n", flush=True)
    return status


def problems(sizes: list[int]) -> Iterator[Problem]:
    """Yield what is to be measured, each made when it is its turn."""
    yield dense_loss()
    for num_classes in PRODUCTS_SIZES:
        for dtype in PRODUCTS_DTYPES:
            yield products(num_classes, dtype)
    for make in (rank_one_loss, log_probabilities, draws):
        for num_classes in sizes:
            for dtype in LOGITS_DTYPES:
                for family in ("uniform", "absorbing"):
                    yield make(rank_one_inputs(family, num_classes, dtype), dtype)


def inputs_of(case: Any, dtype: str) -> Any:
    """Return a case's tensors on the device; the chain is a copy, which nothing else moves."""
    from .cases import Inputs, make_inputs

    made = make_inputs.__wrapped__(case)
    return Inputs(
        case,
        copy.deepcopy(made.transition).to(DEVICE),
        made.logits.to(DEVICE, DTYPES[dtype]),
        *(tokens.to(DEVICE) for tokens in (made.x0, made.x_t, made.t)),
    )


def rank_one_inputs(family: str, num_classes: int, dtype: str) -> Any:
    """Return tensors whose logits fill no cache."""
    from .cases import Case

    positions = max(BYTES_OF_LOGITS // (8 * num_classes * DTYPES[dtype].itemsize), 1)
    return inputs_of(Case("loss", family, 8, positions, num_classes), dtype)


def by_each(make: Callable[[str], Run], implementations: Iterable[str] = BY) -> dict[str, Run]:
    """Return what is made for each of our implementations that is installed."""
    return {BY[impl]: make(impl) for impl in implementations if is_installed(impl)}


def loss_by(inputs: Any, impl: str) -> Run:
    """Return forward and backward of the mean loss."""
    from d3pm_fast import functional

    from .providers import loss_and_gradient

    def loss(logits: Tensor) -> Tensor:
        tokens = inputs.x0, inputs.x_t, inputs.t
        return functional.loss(inputs.transition, logits, *tokens, first_step="logits", impl=impl)

    return lambda: loss_and_gradient(loss, inputs.logits)


def of_rank_one(
    operation: str, inputs: Any, dtype: str, runs: dict[str, Run], moved: int
) -> Problem:
    """Return the problem of an operation on these inputs."""
    case = inputs.case
    shape = case.num_tokens, case.num_classes, dtype
    return Problem(operation, case.family, *shape, runs, moved, inputs.logits.nbytes)


def rank_one_loss(inputs: Any, dtype: str) -> Problem:
    """Return the mean loss of a rank-one chain, forward and backward."""
    from .bench_loss import LOSS, bytes_moved
    from .cases import OURS
    from .providers import loss_and_gradient

    num_classes = inputs.case.num_classes
    runs = by_each(partial(loss_by, inputs))
    for name, provider in LOSS.providers.items():
        if name in (OURS, "copy") or ("compiled" in name and num_classes not in COMPILED):
            continue
        if "dense" in name and (num_classes > 8192 or dtype != "float32"):
            continue
        run = provider.make(inputs)
        if run is not None:
            runs[name] = run
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        liger = LigerCrossEntropyLoss()
        flat = inputs.x0.flatten()
        runs["Liger cross-entropy"] = lambda: loss_and_gradient(
            lambda x: liger(x.flatten(0, 1), flat), inputs.logits.clone()
        )
    return of_rank_one("loss", inputs, dtype, runs, bytes_moved(inputs))


def log_probabilities(inputs: Any, dtype: str) -> Problem:
    """Return log p(x_{t-1} | x_t) of a rank-one chain."""
    from d3pm_fast import functional

    from .bench_posterior import bytes_moved

    arguments = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    runs = by_each(lambda impl: partial(functional.p_posterior, *arguments, impl=impl))
    return of_rank_one("p_posterior", inputs, dtype, runs, bytes_moved(inputs))


def draws(inputs: Any, dtype: str) -> Problem:
    """Return draws from p(x_{t-1} | x_t) of a rank-one chain."""
    from d3pm_fast import functional

    from .bench_p_sample import bytes_moved

    arguments = inputs.transition, inputs.logits, inputs.x_t, inputs.t
    seeds = torch.arange(inputs.case.batch, device=DEVICE)  # no time for sending them there
    runs = by_each(lambda impl: partial(functional.p_sample, *arguments, seeds=seeds, impl=impl))
    return of_rank_one("p_sample", inputs, dtype, runs, bytes_moved(inputs))


def dense_loss() -> Problem:
    """Return the mean loss of a Gaussian chain, forward and backward."""
    from .bench_dense import DENSE, bytes_moved
    from .cases import GAUSSIAN, OURS, Case
    from .floors import work_of_chain

    inputs = inputs_of(Case("dense loss", GAUSSIAN, *DENSE_SHAPE), "float32")
    runs = by_each(partial(loss_by, inputs), ["triton"])
    others = DENSE.providers.keys() - {OURS, "copy"}
    runs |= {name: DENSE.providers[name].make(inputs) for name in sorted(others)}
    shape = inputs.case.num_tokens, inputs.case.num_classes, "float32"
    work = work_of_chain("loss and gradient", *shape[1:], count=shape[0])
    moved, gradient = bytes_moved(inputs), inputs.logits.nbytes
    return Problem("dense loss", GAUSSIAN, *shape, runs, moved, gradient, floor_us(work))


def products(num_classes: int, dtype: str) -> Problem:
    """Return cumulative products, forward and backward."""
    import d3pm_fast as d3
    from d3pm_fast import reference
    from d3pm_fast.ops import products_torch
    from d3pm_fast.products import CumulativeProducts

    from .floors import work_of_products

    shape = PRODUCTS_STEPS, num_classes, num_classes
    logits, upstream = torch.randn(2, *shape, device=DEVICE, dtype=DTYPES[dtype])
    matrices = logits.softmax(-1)

    def both_ways(function: Callable[[Tensor], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            leaf = matrices.detach().requires_grad_()
            return torch.autograd.grad(function(leaf), leaf, upstream)

        return run

    runs = by_each(lambda impl: both_ways(partial(d3.cumulative_products, impl=impl)))
    runs["in blocks, PyTorch"] = both_ways(
        lambda x: CumulativeProducts.apply(x, products_torch.scan)
    )
    runs["loop, PyTorch"] = both_ways(reference.cumulative_products)
    works = [
        work_of_products(operation, num_classes, dtype, PRODUCTS_STEPS)
        for operation in ("products", "products gradient")
    ]
    moved = sum(work.count * work.bytes_each for work in works)
    count = PRODUCTS_STEPS, num_classes, dtype
    return Problem("products", "any", *count, runs, moved, matrices.nbytes, floor_us(*works))


def floor_us(*works: Any) -> float | None:
    """Return the least time of works in a row on this chip, None for one that is not known."""
    from .floors import CHIPS, floor_of

    name = device_name()
    chip = next((chip for chip in CHIPS if chip.split()[0] in name), None)
    return None if chip is None else sum(floor_of(work, chip).floor_us for work in works)


def device_name() -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name()


def is_installed(impl: str) -> bool:
    """Return whether an implementation is installed."""
    import d3pm_fast

    try:
        d3pm_fast.implementation(impl, DEVICE)
    except RuntimeError:
        return False
    return True


def measure(made: Iterator[Problem]) -> Iterator[Row]:
    """Yield every provider's times, of one problem after the other until time is up."""
    end = time.monotonic() + MEASURE_SECONDS
    for problem in made:
        rows = rows_of(problem)
        print(text_of(rows), flush=True)
        yield from rows
        if time.monotonic() > end:
            print(f"\nno more problems after {MEASURE_SECONDS} seconds", flush=True)
            return


def rows_of(problem: Problem) -> list[Row]:
    """Time a problem's providers in interleaved rounds, a copy of its bytes beside them."""
    half = torch.empty(problem.bytes_moved // 2, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(half)
    runs = {name: run for name, run in problem.runs.items() if fits(run)}
    runs["copy"] = lambda: target.copy_(half)
    peaks = {name: peak_bytes(run) / problem.gradient_bytes for name, run in runs.items()}
    times = interleave(runs)
    if problem.floor_us is not None:
        times[FLOOR], peaks[FLOOR] = [problem.floor_us / 1e6] * 2, 0.0
    copied = problem.bytes_moved / statistics.median(times["copy"])
    rows = []
    for name, found in times.items():
        lower, median, upper = statistics.quantiles(found, n=4)
        rate = problem.bytes_moved / median
        numbers = (median * 1e6, lower * 1e6, upper * 1e6, rate / 1e9, rate / copied, peaks[name])
        rows.append(Row(*problem[:5], name, *(float(f"{number:.4g}") for number in numbers)))
    return rows


def fits(run: Run) -> bool:
    """Return whether a provider fits the device's memory."""
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def peak_bytes(run: Run) -> int:
    """Return the memory that a call takes at most, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def interleave(runs: dict[str, Run]) -> dict[str, list[float]]:
    """Return the seconds of every call by the device's clock; each runs once a round."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    shuffled, times = random.Random(0), {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name in shuffled.sample(list(runs), len(runs)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # Work ahead of the clock, so that starting the call is not what is timed.
            torch.cuda._sleep(2_000_000)
            start.record()
            runs[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3)
    return times


def text_of(rows: list[Row]) -> str:
    """Return a problem's table; the first row is ours."""
    ours = rows[0]
    lines = [f"\n{ours.operation} {ours.count} x {ours.num_classes} {ours.dtype} {ours.family}"]
    for row in rows:
        lines.append(
            f"{row.provider:22} {row.median_us:10.1f} us "
            f"{row.median_us / ours.median_us:7.2f} x ours {row.gb_per_s:7.0f} GB/s "
            f"{row.of_copy:5.2f} of copy {row.peak_gradients:6.2f} gradients"
        )
    return "\n".join(lines)


def write(rows: list[Row], out: Path) -> None:
    """Write the tables and the picture."""
    from d3pm_fast.ops import preferred

    with (out / "times.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    preferred.write(preferences(rows), out / "preferred.csv")
    if importlib.util.find_spec("matplotlib"):
        draw([row for row in rows if row.operation == "loss"], out / "roofline.png")


def preferences(rows: list[Row]) -> list[Any]:
    """Return the faster implementation where both were timed, over all families of chains."""
    from d3pm_fast.ops.preferred import Preference

    advantages: dict[tuple[str, str, int], float] = {}  # of CUDA C++, in logarithms
    for _, group in groupby(rows, key=lambda row: row[:5]):
        found = {row.provider: row for row in group}
        if found.keys() >= set(BY.values()):
            triton, cuda = (found[BY[impl]] for impl in ("triton", "cuda"))
            key = cuda.operation, cuda.dtype, cuda.num_classes
            advantage = math.log(triton.median_us / cuda.median_us)
            advantages[key] = advantages.get(key, 0.0) + advantage
    return [Preference(*key, "cuda" if x > 0 else "triton") for key, x in advantages.items()]


def draw(rows: list[Row], path: Path) -> None:
    """Draw the share of a copy's speed that each provider reaches, by the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(family, dtype) for family in ("uniform", "absorbing") for dtype in LOGITS_DTYPES]
    figure, axes = plt.subplots(2, math.ceil(len(panels) / 2), figsize=(10, 7), sharey=True)
    for (family, dtype), axis in zip(panels, axes.flat, strict=True):
        of_panel = [row for row in rows if (row.family, row.dtype) == (family, dtype)]
        for name in dict.fromkeys(row.provider for row in of_panel):
            points = [(row.num_classes, row.of_copy) for row in of_panel if row.provider == name]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=f"{family}, {dtype}", xscale="log", yscale="log", xlabel="classes")
        axis.set_ylabel("of a copy's speed")
    axes.flat[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
