"""Peak memory of a call: the bytes that it holds at once above what was there before.

PyTorch's profiler records every allocation and release of its allocator, with its size, in
order; the running sum's highest value is the peak. It counts what the call asks for, not what
the process keeps, so it is exact and the same on every run. It does not see what compiled code
gets elsewhere: of our kernels, the losses of the tokens where they are reduced, and a scratch
for each thread that grows with K, not with the tokens.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # no lines about its start and stop

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak of one call, its results counted in, after a first call to warm up."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    held = peak = 0
    for change in _changes(profiler):
        held += change
        peak = max(peak, held)
    return peak


def _changes(profiler: profile) -> list[int]:
    """Return the sizes of the allocations, negative for releases, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in memory]
    return [size for _, size in sorted(changes, key=lambda change: change[0])]
