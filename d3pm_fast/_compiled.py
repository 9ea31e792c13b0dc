"""The compiled kernels, where they are installed."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any


def _module(name: str, remedy: str) -> tuple[Any, str]:
    """Return a compiled module and "", or None and why there is none."""
    try:
        return importlib.import_module(f"d3pm_fast.{name}"), ""
    except ModuleNotFoundError:
        return None, _hidden(name) or f"not built: {remedy}"
    except ImportError as error:
        return None, f"built, but it does not load: {error}"


def _hidden(name: str) -> str:
    """Return that this package hides an installed one which has the module, "" where none is."""
    here = Path(__file__).parent.resolve()
    folders = (Path(entry or ".", here.name).resolve() for entry in sys.path)
    installed = next((f for f in folders if f != here and any(f.glob(f"{name}.*"))), None)
    if installed is None:
        return ""
    return (
        f"d3pm_fast is imported from the sources in {here}, which hide the one that is installed "
        f"in {installed.parent}; work in another folder, or pip install -e ."
    )


cpu, why_no_cpu = _module("_cpu", "install d3pm_fast with a C++17 compiler")
cuda, why_no_cuda = _module("_cuda", "D3PM_FAST_CUDA=1 pip install . builds it with nvcc")
if cpu is None and not why_no_cpu.startswith("not built"):
    warnings.warn(f"the compiled kernels are not found: {why_no_cpu}", stacklevel=1)
