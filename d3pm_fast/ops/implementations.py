"""The choice among implementations."""

from typing import NamedTuple, overload

import torch

from .. import _environment
from .._checks import check_choice
from ..chains import Transition
from ..chains.structures import RANK_ONE
from ..choices import IMPLS, Impl
from .available import Implementations, available, tensors_on
from .register import IMPLEMENTATIONS, OPERATIONS, Operation


class Implementation(NamedTuple):
    """Which code serves a call, and why."""

    name: str
    reason: str


_ON_CPU = (
    Implementation("reference", f"no compiled CPU module; {IMPLEMENTATIONS['cpu'].missing()}")
    if IMPLEMENTATIONS["cpu"].missing()
    else Implementation("cpu", f"CPU tensors; {IMPLEMENTATIONS['cpu'].found()}")
)


@overload
def implementation() -> Implementations: ...
@overload
def implementation(
    impl: Impl = "auto",
    device: torch.device | str = "cpu",
    transition: Transition | None = None,
    *,
    operation: str = "loss",
) -> Implementation: ...
def implementation(
    impl: Impl | None = None,
    device: torch.device | str | None = None,
    transition: Transition | None = None,
    *,
    operation: str | None = None,
) -> Implementation | Implementations:
    """Return which implementation would serve a call, and why; without arguments, what there is.

    ``print(d3pm_fast.implementation())`` shows for each implementation which tensors it serves
    here, or what is missing. With any argument the answer is that for a call: on a CPU ``"auto"``
    takes the C++ kernels, on a GPU Triton's, or CUDA C++ where there is no Triton; the reference
    where nothing else is installed.

    Args:
        impl: what the call asks for: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or
            ``"cuda"``. ``"auto"`` gives way to what ``D3PM_FAST_IMPL`` was in the environment when
            the library was imported.
        device: where the call's tensors are.
        transition: the chain; None for a rank-one chain.
        operation: its name, such as ``"loss"`` or ``"q_sample"``.

    Returns:
        ``Implementation(name, reason)``; without arguments ``Implementations``, an
        ``Available(serves, reason)`` for each name.

    Raises:
        ValueError: an unknown name, or an implementation that cannot serve this device.
        RuntimeError: the implementation asked for is not installed, or has no kernels for the
            operation on such a chain.
    """
    if (impl, device, transition, operation) == (None, None, None, None):
        return available()
    impl = check_choice("impl", "auto" if impl is None else impl, IMPLS)
    device = "cpu" if device is None else device
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    asked = "the call asks for it"
    if impl == "auto" and _environment.IMPL:
        impl = check_choice("D3PM_FAST_IMPL", _environment.IMPL, IMPLS)
        asked = "D3PM_FAST_IMPL asks for it"
    structure = RANK_ONE.name if transition is None else transition.structure
    served = OPERATIONS[check_choice("operation", operation or "loss", tuple(OPERATIONS))]
    if impl == "auto" and kind == "cpu" and served.is_served(_ON_CPU.name, structure):
        return _ON_CPU
    if impl == "auto":
        return _first_that_serves(kind, served, structure)
    if impl != "reference":
        entry = IMPLEMENTATIONS[impl]
        if reason := entry.supports(kind, served, structure):
            serves_others = not entry.supports(entry.devices()[0], served, structure)
            raise ValueError(reason) if serves_others else RuntimeError(reason)
    return Implementation(impl, asked)


def _first_that_serves(kind: str, operation: Operation, structure: str) -> Implementation:
    offered = [entry for entry in IMPLEMENTATIONS.values() if entry.devices()[0] == kind]
    if not offered:
        return Implementation("reference", f"no kernel is built for {kind} tensors")
    first, *others = offered
    refusal = first.supports(kind, operation, structure)
    if not refusal:
        return Implementation(first.name, f"{tensors_on(kind)}; the default")
    why = first.missing() or refusal
    for entry in others:
        if not entry.supports(kind, operation, structure):
            return Implementation(entry.name, f"{tensors_on(kind)}; {why}")
    if all(operation.is_served(entry.name, structure) for entry in others):
        why += "".join(f", nor is the {entry.name.upper()} module installed" for entry in others)
    else:
        why += "; nothing else serves such a chain"
    return Implementation("reference", why)
