"""Fixtures of all tests. ``impl`` runs a test once for each implementation of this machine."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    """Each implementation that serves CPU tensors here."""
    return request.param


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
