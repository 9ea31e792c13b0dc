"""What a GPU alone can say: its name, its memory and its clock. ``dry.py`` acts it."""

from collections.abc import Callable
from typing import Any

import torch

DEVICE = "cuda"
AHEAD_CYCLES = 2_000_000  # about a millisecond
OF_PYTORCH = "at::native", "Memcpy", "Memset", "cudaDeviceSynchronize"
LOST = 75  # exit status of a process that lost it: another one can go on

Run = Callable[[], Any]


def describe() -> list[str]:
    """Return lines about the GPU."""
    found = torch.cuda.get_device_properties(0)
    return [
        f"device {found.name}, {found.multi_processor_count} multiprocessors",
        f"memory {found.total_memory >> 20} MiB, L2 {found.L2_cache_size >> 20} MiB",
    ]


def name() -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name()


def is_alive() -> bool:
    """Return whether the device still answers: after an illegal access it does not."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def peak_bytes(run: Run) -> int:
    """Return the memory that a call takes at most, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def kernel_seconds(run: Run, calls: int) -> float:
    """Return the time of a call's kernels but PyTorch's own, the mean of some calls.

    Raises:
        RuntimeError: there were none, or the profiler did not see them.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    total = sum(
        event.self_device_time_total
        for event in profile.key_averages()
        if not any(name in event.key for name in OF_PYTORCH)
    )
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    return total / 1e6 / calls


def seconds(run: Run) -> float:
    """Return the time of a call by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Work ahead of the clock, so that starting the call is not what is timed.
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
