"""Fixtures of all tests. ``impl`` runs a test once for each implementation of this machine."""

import importlib.util
import os

import numpy
import pytest
import torch
from hypothesis import HealthCheck, settings

# Without a GPU, Triton's kernels are run by its interpreter. Both read this when imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from helpers import compare

import d3pm_fast
from d3pm_fast import _environment

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

CPU_REQUIRED = os.environ.get("D3PM_FAST_REQUIRE_CPU", "0") not in ("", "0")


def has_cpu_kernels():
    try:
        d3pm_fast.implementation("cpu")
    except RuntimeError:
        return CPU_REQUIRED  # then the tests of it fail instead of being left out
    return True


IMPLEMENTATIONS = ["reference", "cpu"] if has_cpu_kernels() else ["reference"]


RANK_ONE_TESTS = ("test_loss", "test_posterior", "test_p_sample", "test_q_sample")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def pytest_generate_tests(metafunc):
    if "impl" in metafunc.fixturenames:
        with_triton = HAS_TRITON and metafunc.module.__name__ in RANK_ONE_TESTS
        metafunc.parametrize("impl", IMPLEMENTATIONS + ["triton"] * with_triton, indirect=True)


@pytest.fixture
def impl(request, monkeypatch):
    """Each implementation that serves CPU tensors here."""
    if request.param != "triton" or not _environment.INTERPRET:
        yield request.param
        return
    # The interpreter cuts off what a GPU rounds to bfloat16, and divides by zero where a kernel's
    # `where` takes the other side.
    monkeypatch.setattr(compare, "storage_error", interpreted_storage_error)
    with numpy.errstate(all="ignore"):
        yield request.param


def interpreted_storage_error(dtype, rounded=compare.storage_error):
    return rounded(dtype) * (2 if dtype == torch.bfloat16 else 1)


@pytest.fixture
def cpu():
    """The compiled kernels, for tests of what the reference does not promise."""
    if "cpu" not in IMPLEMENTATIONS:
        pytest.skip("the compiled CPU module is not installed")
    return "cpu"


@pytest.fixture(autouse=True)
def fixed_surroundings(monkeypatch):
    """The same seed, no settings of the caller's, and nothing left behind for the next test."""
    monkeypatch.setattr(_environment, "IMPL", "")
    monkeypatch.setattr(_environment, "CHECK", False)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
