"""The compiled kernels, where they are installed."""

import importlib
from typing import Any

try:
    cpu: Any = importlib.import_module("d3pm_fast._cpu")
except ImportError:
    cpu = None
