"""Which Triton is installed, without importing it."""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

OLDEST = "3.4"
_PACKAGES = "triton", "pytorch-triton", "pytorch-triton-rocm"  # PyTorch's nightlies rename it


def installed() -> str:
    """Return the version, "" where none is installed."""
    if find_spec("triton") is None:
        return ""
    return next(filter(None, map(_version_of, _PACKAGES)), OLDEST)


def why_not() -> str:
    """Return why Triton cannot serve, "" where it can."""
    found = installed()
    if not found:
        return "Triton is not installed"
    if _numbers(found) < _numbers(OLDEST):
        return f"Triton {found} is too old: {OLDEST} is the oldest that these kernels support"
    return ""


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


WHY_NOT = why_not()
