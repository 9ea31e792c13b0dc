"""Fixtures of all tests. ``impl`` runs a test once for each implementation of this machine."""

import contextlib
import copy
import importlib.util
import os
import signal

import numpy
import pytest
import torch
from hypothesis import HealthCheck, settings

# Without a GPU, Triton's kernels are run by its interpreter. Both read this when imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from helpers import covering, simulated

import d3pm_fast
from d3pm_fast import _compiled, _environment, functional, transitions

# HYPOTHESIS_PROFILE=explore looks for new examples; by default every run tries the same.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "explore", settings.get_profile("repeatable"), derandomize=False, max_examples=500
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# A shell's background jobs ignore them, and what a program ignores, those that it starts ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CPU_REQUIRED = os.environ.get("D3PM_FAST_REQUIRE_CPU", "0") not in ("", "0")


def has_cpu_kernels():
    try:
        d3pm_fast.implementation("cpu")
    except RuntimeError:
        return CPU_REQUIRED  # then the tests of it fail instead of being left out
    return True


IMPLEMENTATIONS = ["reference", "cpu"] if has_cpu_kernels() else ["reference"]


INSTRUCTIONS = ["baseline", "avx2", "avx512"]
HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = _compiled.cuda is not None or not torch.cuda.is_available()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run every test, the exhaustive ones too")


def pytest_collection_modifyitems(config, items):
    """Leave out what ``make test-all`` is for, unless a test is asked for by its name."""
    if config.option.all or any("::" in argument for argument in config.args):
        return
    quick = [item for item in items if not is_exhaustive(item) and why_unserved(item) is None]
    chosen = covering.part(quick)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = chosen


def pytest_runtest_setup(item):
    if reason := why_unserved(item):
        pytest.skip(reason)


def is_exhaustive(item):
    """Whether the mark ``exhaustive`` is on the test, or where it says so of its parameters."""
    return any(
        "where" not in mark.kwargs or mark.kwargs["where"](**item.callspec.params)
        for mark in item.iter_markers("exhaustive")
    )


def why_unserved(item):
    """The reason of the mark ``unserved`` where it says so of the test's parameters, or None.

    Told before the tests run, so that no such case stands for a pair of values in a part of a grid.
    """
    for mark in item.iter_markers("unserved"):
        if mark.kwargs["where"](**item.callspec.params):
            return mark.kwargs["reason"]
    return None


def pytest_generate_tests(metafunc):
    triton, cuda = ["triton"] * HAS_TRITON, ["cuda"] * HAS_CUDA
    if "impl" in metafunc.fixturenames:
        also = getattr(metafunc.module, "ALSO_BY", ())
        more = [name for name in triton + cuda if name in also]
        metafunc.parametrize("impl", IMPLEMENTATIONS + more, indirect=True)
    if "kernels" in metafunc.fixturenames:
        metafunc.parametrize("kernels", IMPLEMENTATIONS[1:] + triton + cuda, indirect=True)
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", IMPLEMENTATIONS[1:] + cuda, indirect=True)


@pytest.fixture
def impl(request, monkeypatch):
    """Each implementation that there is here; tests give it CPU tensors, see ``serve``.

    Those for GPUs only in a module whose ALSO_BY names them.
    """
    with serve(request.param, monkeypatch):
        yield request.param


@pytest.fixture
def kernels(request, monkeypatch):
    """Each of them but the reference."""
    with serve(request.param, monkeypatch):
        yield request.param


@pytest.fixture
def compiled(request, monkeypatch):
    """Those of them that are compiled from C++."""
    with serve(request.param, monkeypatch):
        yield request.param


def serve(name, monkeypatch):
    """Let an implementation for GPUs serve CPU tensors: by copies, or by acting a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr(_compiled, "cuda", simulated.module())
        return contextlib.nullcontext()
    if name == "triton" and _environment.INTERPRET:
        monkeypatch.setattr("triton.runtime.interpreter._convert_float", convert_float)
        # The interpreter divides by zero where a kernel's `where` takes the other side.
        return numpy.errstate(all="ignore")
    if name in ("triton", "cuda"):
        for function in ("loss", "q_posterior", "p_posterior", "q_sample", "p_sample"):
            original = getattr(functional, function)
            monkeypatch.setattr(functional, function, on_gpu(original))
    return contextlib.nullcontext()


def on_gpu(function):
    """The function on copies of its tensors on a GPU, where the call asks for its kernels."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        if isinstance(value, transitions.Transition):
            return copy.deepcopy(value).cuda()
        if isinstance(value, functional.Shaped):
            return functional.Shaped(*map(move, value))
        return value

    def call(*args, impl="auto", **options):
        if impl not in ("triton", "cuda"):
            return function(*args, impl=impl, **options)
        moved = {name: move(value) for name, value in options.items()}
        return function(*map(move, args), impl=impl, **moved).cpu()

    return call


def convert_float(values, from_type, to_type, rounding):
    """Convert between float32 and bfloat16 bits; the interpreter's own cuts off, a GPU rounds."""
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    source, target = types[from_type.name], types[to_type.name]
    bits = torch.from_numpy(numpy.ascontiguousarray(values).view(f"int{source.itemsize * 8}"))
    made = bits.view(source).to(target).view(getattr(torch, f"int{target.itemsize * 8}"))
    return made.numpy().view(f"uint{target.itemsize * 8}")


@pytest.fixture
def cpu():
    """The compiled kernels, for tests of what the reference does not promise."""
    if "cpu" not in IMPLEMENTATIONS:
        pytest.skip("the compiled CPU module is not installed")
    return "cpu"


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request, cpu):
    """The number of each set of vector instructions that there is here."""
    number = INSTRUCTIONS.index(request.param)
    if number > INSTRUCTIONS.index(_compiled.cpu.instruction_set()):
        pytest.skip(f"the processor has no {request.param}")
    return number


@pytest.fixture
def triton(monkeypatch):
    """Triton's kernels, in its interpreter where there is no GPU."""
    pytest.importorskip("triton")
    with serve("triton", monkeypatch):
        yield "triton"


@pytest.fixture(autouse=True)
def fixed_surroundings(monkeypatch):
    """The same seed, no settings of the caller's, and nothing left behind for the next test."""
    monkeypatch.setattr(_environment, "IMPL", "")
    monkeypatch.setattr(_environment, "CHECK", False)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
