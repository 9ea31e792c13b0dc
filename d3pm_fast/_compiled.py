"""The compiled kernels, where they are installed."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"d3pm_fast.{name}")
    except ImportError:
        return None


def _hidden() -> Path | None:
    """Return the folder of an installed package with compiled modules that this one hides."""
    here = Path(__file__).parent.resolve()
    folders = (Path(entry or ".", here.name).resolve() for entry in sys.path)
    return next((f for f in folders if f != here and any(f.glob("_cpu.*"))), None)


cpu: Any = _module("_cpu")
cuda: Any = _module("_cuda")

# What a message says of a missing module that is installed elsewhere.
remedy = ""
if cpu is None and (installed := _hidden()):
    remedy = (
        f": d3pm_fast is imported from the sources in {Path(__file__).parent}, which hide the one "
        f"that is installed in {installed.parent}; work in another folder, or pip install -e ."
    )
    warnings.warn(f"the compiled kernels are not found{remedy}", stacklevel=1)
