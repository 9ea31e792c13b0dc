"""The choice among implementations."""

from typing import NamedTuple, overload

import torch

from .. import _compiled, _environment, _triton
from .._checks import check_choice
from ..chains import Transition
from ..chains.structures import RANK_ONE
from ..choices import IMPLS, Impl
from .available import Implementations, available
from .register import OPERATIONS, Operation


class Implementation(NamedTuple):
    """Which code serves a call, and why."""

    name: str
    reason: str


_ON_CPU = (
    Implementation("cpu", f"CPU tensors; vector instructions: {_compiled.cpu.instruction_set()}")
    if _compiled.cpu
    else Implementation("reference", f"no compiled CPU module; {_compiled.why_no_cpu}")
)


_WHY_NO_TRITON = _triton.why_not()


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
    if impl == "auto" and kind == "cpu":
        return _ON_CPU
    structure = RANK_ONE.name if transition is None else transition.structure
    served = OPERATIONS[check_choice("operation", operation or "loss", tuple(OPERATIONS))]
    if impl == "auto":
        return _best_on_gpu(kind, served, structure)
    error = None if impl == "reference" else _why_not(impl, kind, served, structure)
    if error is not None:
        raise error
    return Implementation(impl, asked)


def _best_on_gpu(kind: str, operation: Operation, structure: str) -> Implementation:
    if kind != "cuda":
        return Implementation("reference", f"no kernel is built for {kind} tensors")
    if not _WHY_NO_TRITON:
        return Implementation("triton", "GPU tensors; the default")
    if not operation.is_served("cuda", structure):
        return Implementation("reference", f"{_WHY_NO_TRITON}; nothing else serves such a chain")
    if _compiled.cuda is not None:
        return Implementation("cuda", f"GPU tensors; {_WHY_NO_TRITON}")
    return Implementation("reference", f"{_WHY_NO_TRITON}, nor is the CUDA module installed")


def _why_not(name: str, kind: str, operation: Operation, structure: str) -> Exception | None:
    """Return what keeps an implementation from serving an operation, None for nothing."""
    if name == "cpu":
        if kind != "cpu":
            return ValueError(f"impl='cpu' needs CPU tensors, got {kind}")
        if _compiled.cpu is None:
            why = _compiled.why_no_cpu
            return RuntimeError(f"impl='cpu' needs the compiled CPU module; {why}")
    elif not operation.is_served(name, structure):
        chains = " and ".join(operation.structures(name))
        return RuntimeError(f"impl={name!r} serves {chains} chains; use 'auto' or 'triton'")
    elif name == "triton":
        if _WHY_NO_TRITON:
            return RuntimeError(f"{_WHY_NO_TRITON}; impl='reference' works without it")
        if kind != "cuda" and not (kind == "cpu" and _environment.INTERPRET):
            return ValueError(f"impl='triton' needs tensors on a GPU, got {kind}")
    elif _compiled.cuda is None:
        why = _compiled.why_no_cuda
        return RuntimeError(f"impl='cuda' needs the compiled CUDA module; {why}")
    elif kind != _compiled.cuda.device:
        return ValueError(f"impl='cuda' needs tensors on a GPU, got {kind}")
    return None
