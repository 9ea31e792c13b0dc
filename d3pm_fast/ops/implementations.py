"""The choice among implementations."""

from typing import NamedTuple

import torch

from .. import _environment
from .._checks import check_choice
from .._compiled import cpu

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")


class Implementation(NamedTuple):
    """Which code serves a call, and why."""

    name: str
    reason: str


_ON_CPU = (
    Implementation("cpu", f"CPU tensors; vector instructions: {cpu.instruction_set()}")
    if cpu
    else Implementation("reference", "the compiled CPU module is not installed")
)


def implementation(impl: str = "auto", device: torch.device | str = "cpu") -> Implementation:
    """Return which implementation would serve a call, and why.

    Args:
        impl: what the call asks for: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or
            ``"cuda"``. ``"auto"`` gives way to what ``D3PM_FAST_IMPL`` was in the environment when
            the library was imported.
        device: where the call's tensors are.

    Returns:
        ``Implementation(name, reason)``.

    Raises:
        ValueError: an unknown name, or one that cannot serve this device.
        RuntimeError: the implementation asked for is not installed.
    """
    check_choice("impl", impl, IMPLEMENTATIONS)
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    asked = "the call asks for it"
    if impl == "auto" and _environment.IMPL:
        impl = check_choice("D3PM_FAST_IMPL", _environment.IMPL, IMPLEMENTATIONS)
        asked = "D3PM_FAST_IMPL asks for it"
    if impl == "reference":
        return Implementation("reference", asked)
    if impl == "auto":
        if kind != "cpu":
            return Implementation("reference", f"no kernel is built for {kind} tensors")
        return _ON_CPU
    if impl == "cpu":
        if kind != "cpu":
            raise ValueError(f"impl='cpu' needs CPU tensors, got {kind}")
        if cpu is None:
            raise RuntimeError(
                "impl='cpu' needs the compiled CPU module: install d3pm_fast with a C++ compiler"
            )
        return Implementation("cpu", asked)
    raise RuntimeError(f"impl={impl!r} is not built yet; use 'auto', 'reference' or 'cpu'")
