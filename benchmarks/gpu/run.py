"""The parts of a run, each in processes of its own: what hangs or loses the device ends alone."""

import argparse
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from d3pm_fast._files import replaced

from ..arguments import duration, folder, whole
from . import device

ROOT = Path(__file__).parents[2]
SECONDS, INSTALL_SECONDS = 480, 150
MARGIN_SECONDS = 10  # between the last row that is begun and the end
SECONDS_LEFT = "{seconds}"  # in a command, filled in where it is started
MOST_PROCESSES = 8
TEST_FILES = ["triton", "loss", "posterior", "p_sample", "q_sample", "dense_triton", "products"]
ON_GPU = "(triton or cuda) and not table_says"  # that one compiles, and needs no GPU
GPU_ALONE = "uniform or gaussian"  # of test_triton.py: streams, graphs, large tensors
SANITIZED = "draw_the_same and cuda"


class Part(NamedTuple):
    """Commands that run side by side, for so many seconds at most."""

    name: str
    seconds: int
    commands: list[list[str]]
    log: Path | None = None  # for what they print


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, or the one that is asked for; 0 if nothing is found to be wrong."""
    options = parse(arguments)
    if options.part:
        return run_part(options)
    end = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.dry_run or torch.cuda.is_available()):
        sys.exit("no GPU; --dry-run needs none")
    install(options)
    wrong = []
    for part in parts(options):
        left = end - time.monotonic()
        print(f"\n== {part.name}, {left:.0f} s left", flush=True)
        if left > MARGIN_SECONDS:
            limit = left if options.dry_run else min(part.seconds, left)
            wrong += [part.name] * (run(part, limit, options.dry_run) != 0)
    print(f"\nnot right: {', '.join(wrong)}" if wrong else "\nnothing is wrong", flush=True)
    return int(bool(wrong))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="The kernels on a GPU: checks, times, tests."
    )
    parser.add_argument("--out", type=folder, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=duration, help=f"for all of it (default: {SECONDS})")
    parser.add_argument("--sizes", nargs="+", type=whole(2), help="numbers of classes, in order")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU, as far as that goes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--share", nargs=2, type=int, default=(0, 1), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    if options.seconds is None:
        options.seconds = 86400 if options.dry_run else SECONDS
    return options


def install(options: argparse.Namespace) -> None:
    """Install the package from this folder with what is there, where it is not installed yet.

    A dry run where it is builds the CUDA kernels into the folder of its results.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    major, minor = (9, 0) if options.dry_run else torch.cuda.get_device_capability()
    environment = environment_of(options.dry_run) | {"D3PM_FAST_CUDA": "1" if nvcc else "0"}
    environment["D3PM_FAST_CUDA_ARCHS"] = f"{major}{minor}"
    if nvcc:
        environment["CUDA_HOME"] = str(Path(nvcc).parents[1])
    start = time.monotonic()
    if not is_installed(sys.executable):
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
        command = [*pip, "--editable", str(ROOT)]
        limit = None if options.dry_run else INSTALL_SECONDS
        try:
            subprocess.run(command, check=True, env=environment, timeout=limit)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{error}\nnow without the CUDA kernels", flush=True)
            subprocess.run(command, check=True, env=environment | {"D3PM_FAST_CUDA": "0"})
    elif options.dry_run and nvcc:
        build = ["--build-lib", str(options.out / "lib"), "--build-temp", str(options.out / "temp")]
        command = [sys.executable, "setup.py", "--quiet", "build_ext", *build]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
    print(f"nvcc: {nvcc}; installed in {time.monotonic() - start:.0f} s", flush=True)


def is_installed(*python: str) -> bool:
    """Return whether the package is, for what is imported far from this folder's sources."""
    command = [*python, "-c", "import d3pm_fast.kernels"]
    return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL).returncode == 0


def environment_of(dry: bool) -> dict[str, str]:
    """Return the environment of all commands: the programs beside this Python are found.

    Many processes run side by side, so that each has few threads.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = {"PATH": path, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": str(int(dry))}
    found["OMP_NUM_THREADS"] = "2"
    # What tests build once for all processes of a run, a dry run does too.
    shared = {"PYTEST_XDIST_TESTRUNUID": f"dry{os.getpid()}"} if dry else {}
    return shared | os.environ | found


def parts(options: argparse.Namespace) -> list[Part]:
    """Return what is done, in order."""
    shares = 1 if options.dry_run else min(MOST_PROCESSES, os.cpu_count() or 1)
    workers = [f"--numprocesses={shares}"] if importlib.util.find_spec("xdist") else []
    workers = ["--collect-only"] if options.dry_run else ["--verbose", *workers]
    tests = [*pytest(ON_GPU), *workers, *(f"tests/test_{name}.py" for name in TEST_FILES)]
    few, out = [*pytest(GPU_ALONE), *workers, "tests/test_triton.py"], options.out
    checks = [own("checks", options, i, shares) for i in range(shares)]
    counts = [] if options.dry_run else [own("counts", options)]
    found = [
        Part("describe", 30, [own("describe", options)]),
        Part("checks and counts", 150, [*checks, *counts]),
        Part("tests of a GPU alone", 60, [few], out / "gpu_tests.txt"),
        Part("times", 120, [own("times", options)]),
        Part("kernels", 90, [own("kernels", options)]),
        Part("summary", 30, [own("summary", options)]),
        Part("tests", 120, [tests], out / "tests.txt"),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer and not options.dry_run:
        command = [sanitizer, *pytest(SANITIZED), "tests/test_p_sample.py"]
        found.append(Part("sanitizer", 60, [command], out / "sanitizer.txt"))
    return [Part("programs", 0, [own("programs", options)])] * options.dry_run + found


def own(name: str, options: argparse.Namespace, share: int = 0, shares: int = 1) -> list[str]:
    """Return the command of a part that is in this package."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(options.out)]
    command += ["--share", str(share), str(shares), "--seconds", SECONDS_LEFT]
    sizes = ["--sizes", *map(str, options.sizes)] if options.sizes else []
    return [*command, *sizes, *["--dry-run"] * options.dry_run]


def pytest(chosen: str) -> list[str]:
    """Return the command that runs chosen tests."""
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-k", chosen]


def run(part: Part, seconds: float, dry: bool) -> int:
    """Run a part's commands, again where the device was lost, until all end or time is up.

    Returns:
        0 if none failed; one that is stopped has not failed.
    """
    end, left, status = time.monotonic() + seconds, part.commands, 0
    while left:
        processes = start(part, left, end - time.monotonic(), dry)
        ended = [stop_at(end, process) for process in processes]
        if part.log:
            print(*part.log.read_text().splitlines()[-8:], sep="\n", flush=True)
        status = status or next(filter(None, ended), 0)
        left = [
            command
            for command, found in zip(left, ended, strict=True)
            if found == device.LOST and time.monotonic() < end
        ]
    return status


def start(
    part: Part, commands: list[list[str]], seconds: float, dry: bool
) -> list[subprocess.Popen[bytes]]:
    """Start commands in process groups of their own."""
    environment = environment_of(dry and part.name != "programs")
    with part.log.open("ab") if part.log else nullcontext() as log:
        return [
            subprocess.Popen(
                [word.replace(SECONDS_LEFT, f"{seconds:.0f}") for word in command],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log and subprocess.STDOUT,
                start_new_session=True,
            )
            for command in commands
        ]


def stop_at(end: float, process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, stop it at a time, and return its status, 0 for one that was stopped."""
    for number, seconds in [(None, 0), (signal.SIGINT, 5), (signal.SIGKILL, 60)]:
        if number is not None:
            print(f"time is up: {number.name} for {' '.join(process.args[:6])}", flush=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        try:
            status = process.wait(timeout=max(end - time.monotonic(), 0) + seconds)
        except subprocess.TimeoutExpired:
            continue
        return status if number is None else 0
    return 1


def run_part(options: argparse.Namespace) -> int:
    """Run a part of this package in this process."""
    until = time.monotonic() + options.seconds - MARGIN_SECONDS
    if options.dry_run and options.part != "programs":
        from .dry import act

        act()
    return PARTS[options.part](options, until)


def sizes_of(options: argparse.Namespace) -> list[int]:
    """Return the numbers of classes."""
    from . import dry, problems

    acts = options.dry_run and options.part != "programs"
    return options.sizes or (dry.SIZES if acts else problems.SIZES)


def compile_programs(options: argparse.Namespace, until: float) -> int:
    """Compile what a run would start, and import the CUDA module."""
    from . import checks, counted, dry, problems

    sizes = sizes_of(options)
    dry.import_cuda(options.out)
    kernels = counted.keys(dry.CHIP.split()[-1], sizes, ["triton"])
    return dry.compile_all(problems.tasks(sizes), checks.cases(sizes), kernels, options.out)


def describe(options: argparse.Namespace, until: float) -> int:
    """Write down what the numbers depend on."""
    import triton

    from d3pm_fast import _compiled

    modules = {"CPU": _compiled.cpu, "CUDA": _compiled.cuda}
    lines = [
        f"python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"triton {triton.__version__}",
        *(f"{name} kernels: {'' if found else 'not '}installed" for name, found in modules.items()),
        *device.describe(),
    ]
    with replaced(options.out / "machine.txt") as file:
        file.write("\n".join(lines) + "\n")
    print(*lines, sep="\n", flush=True)
    return 0


def check(options: argparse.Namespace, until: float) -> int:
    """Check this process's share of the cases."""
    from . import checks

    share, shares = options.share
    checks.check(list(checks.cases(sizes_of(options)))[share::shares], options.out, until)
    return 0


def measure(options: argparse.Namespace, until: float) -> int:
    """Time all tasks."""
    from . import problems, timing

    timing.measure(problems.tasks(sizes_of(options)), options.out, until)
    return 0


def count(options: argparse.Namespace, until: float) -> int:
    """Count the instructions of this Triton's programs."""
    from . import counted, problems

    chip = problems.chip_name()
    if chip is not None:
        counted.count(chip, sizes_of(options), options.out)
    return 0


def measure_kernels(options: argparse.Namespace, until: float) -> int:
    """Time kernels one by one, beside their count."""
    from . import counted, problems

    chip = problems.chip_name()
    if chip is None:
        print(f"nothing was counted for {device.name()}", flush=True)
    else:
        installed = [impl for impl in problems.BY if problems.is_installed(impl)]
        counted.measure(chip, sizes_of(options), installed, options.out, until)
    return 0


def summarize(options: argparse.Namespace, until: float) -> int:
    """Write what follows from the tables; 1 where a check or a time failed."""
    from . import summary

    return summary.summarize(options.out)


PARTS: dict[str, Callable[[argparse.Namespace, float], int]] = {
    "programs": compile_programs,
    "describe": describe,
    "checks": check,
    "counts": count,
    "times": measure,
    "kernels": measure_kernels,
    "summary": summarize,
}
