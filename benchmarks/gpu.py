"""The kernels on a GPU: ``python -m benchmarks.gpu --out DIR`` installs, measures and tests.

Needs torch, triton, setuptools and pybind11, for the CUDA kernels nvcc and ninja too, and no
network. Writes ``machine.txt``, ``loss.csv``, with matplotlib ``roofline.png``, and the logs of the
tests, of compute-sanitizer too where it is there.
"""

import argparse
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
TESTS = ["test_triton", "test_loss", "test_posterior", "test_p_sample", "test_q_sample"]
SIZES = [27, 256, 1024, 8192, 131072]
COMPILED = [27, 256, 8192]  # sizes that torch.compile is given
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BYTES_OF_LOGITS = 1 << 28  # past every second-level cache
WARM_UP, ROUNDS = 3, 30
TEST_SECONDS, SANITIZER_SECONDS = 240, 60


class Row(NamedTuple):
    """One provider's times of one case."""

    operation: str
    family: str
    num_tokens: int
    num_classes: int
    dtype: str
    provider: str
    median_us: float
    lower_us: float
    upper_us: float
    gb_per_s: float  # of the bytes that must be moved
    of_copy: float
    peak_gradients: float  # memory beyond the inputs, in gradients


def main() -> int:
    """Install, test and measure; the tests' exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("d3pm_fast.kernels") is None:
        install()
    (options.out / "machine.txt").write_text(describe())
    if not torch.cuda.is_available():
        sys.exit("no GPU")
    rows = list(measure(options.sizes))
    with (options.out / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    if importlib.util.find_spec("matplotlib"):
        draw(rows, options.out / "roofline.png")
    return 0 if options.skip_tests else run_tests(options.out)


def install() -> None:
    """Install the package from this folder with what is there, and start again."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    environment = os.environ | {"D3PM_FAST_CUDA": "1" if shutil.which("nvcc") else "0"}
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
    files = [f"tests/{name}.py" for name in TESTS]
    status = log_of([*pytest, "-k", "triton or cuda", *files], out / "tests.txt", TEST_SECONDS)
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


def measure(sizes: list[int]) -> Iterator[Row]:
    """Yield every provider's times, of one case after the other."""
    for num_classes in sizes:
        for dtype in DTYPES:
            for family in ("uniform", "absorbing"):
                rows = measure_case(family, num_classes, dtype)
                print(text_of(rows), flush=True)
                yield from rows


def measure_case(family: str, num_classes: int, dtype: str) -> list[Row]:
    """Time forward and backward of the mean loss by all providers, in interleaved rounds."""
    from d3pm_fast import functional

    from .bench_loss import LOSS, bytes_moved
    from .cases import OURS, Case, Inputs, make_inputs
    from .providers import loss_and_gradient

    positions = max(BYTES_OF_LOGITS // (8 * num_classes * DTYPES[dtype].itemsize), 1)
    made = make_inputs.__wrapped__(Case("loss", family, 8, positions, num_classes))
    inputs = Inputs(
        made.case,
        made.transition.cuda(),
        made.logits.to("cuda", DTYPES[dtype]),
        *(tokens.cuda() for tokens in (made.x0, made.x_t, made.t)),
    )
    moved = bytes_moved(inputs)
    runs: dict[str, Callable[[], Any]] = {}
    for name, provider in LOSS.providers.items():
        if "compiled" in name and num_classes not in COMPILED:
            continue
        if "dense" in name and (num_classes > 8192 or dtype != "float32"):
            continue
        run = provider.make(inputs)
        if run is not None and name != "copy":
            runs[name] = run
    if implementation_is_there("cuda"):

        def by_cuda(logits: torch.Tensor) -> torch.Tensor:
            tokens = inputs.x0, inputs.x_t, inputs.t
            return functional.loss(inputs.transition, logits, *tokens, impl="cuda")

        runs["ours, CUDA C++"] = lambda: loss_and_gradient(by_cuda, inputs.logits)
    half = torch.empty(moved // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(half)
    runs["copy"] = lambda: target.copy_(half)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerCrossEntropyLoss

        liger = LigerCrossEntropyLoss()
        flat = inputs.x0.flatten()
        runs["Liger cross-entropy"] = lambda: loss_and_gradient(
            lambda x: liger(x.flatten(0, 1), flat), inputs.logits.clone()
        )
    assert OURS in runs
    gradient = inputs.logits.nbytes
    runs = {name: run for name, run in runs.items() if fits(run)}
    peaks = {name: peak_bytes(run) / gradient for name, run in runs.items()}
    times = interleave(runs)
    copied = moved / statistics.median(times["copy"])
    rows = []
    for name, found in times.items():
        lower, median, upper = statistics.quantiles(found, n=4)
        rate = moved / median
        shape = made.case.num_tokens, num_classes, dtype
        numbers = (median * 1e6, lower * 1e6, upper * 1e6, rate / 1e9, rate / copied, peaks[name])
        rounded = (float(f"{number:.4g}") for number in numbers)
        rows.append(Row("loss", family, *shape, name, *rounded))
    return rows


def implementation_is_there(name: str) -> bool:
    """Return whether an implementation is installed."""
    import d3pm_fast

    try:
        d3pm_fast.implementation(name, "cuda")
    except RuntimeError:
        return False
    return True


def fits(run: Callable[[], Any]) -> bool:
    """Return whether a provider fits the device's memory."""
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the memory that a call takes at most, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def interleave(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
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
    """Return a case's table."""
    ours = next(row for row in rows if row.provider == "ours")
    first = rows[0]
    lines = [f"\n{first.num_tokens} x {first.num_classes} {first.dtype} {first.family}"]
    for row in rows:
        lines.append(
            f"{row.provider:22} {row.median_us:10.1f} us "
            f"{row.median_us / ours.median_us:7.2f} x ours {row.gb_per_s:7.0f} GB/s "
            f"{row.of_copy:5.2f} of copy {row.peak_gradients:6.2f} gradients"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the share of a copy's speed that each provider reaches, by the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(family, dtype) for family in ("uniform", "absorbing") for dtype in DTYPES]
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
