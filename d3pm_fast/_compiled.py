"""The compiled kernels, where they are installed."""

import importlib
from typing import Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"d3pm_fast.{name}")
    except ImportError:
        return None


cpu: Any = _module("_cpu")
cuda: Any = _module("_cuda")
