"""The choice among implementations."""

from typing import NamedTuple, overload

import torch

from .. import _compiled, _environment, _triton
from .._checks import check_choice
from ..chains import RankOneTransition, Transition
from ..choices import IMPLS, Impl
from .available import Implementations, available
from .preferred import preferred


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
    operation: str = "",
    num_classes: int = 0,
    dtype: torch.dtype | None = None,
) -> Implementation: ...
def implementation(
    impl: Impl | None = None,
    device: torch.device | str | None = None,
    transition: Transition | None = None,
    *,
    operation: str = "",
    num_classes: int = 0,
    dtype: torch.dtype | None = None,
) -> Implementation | Implementations:
    """Return which implementation would serve a call, and why; without arguments, what there is.

    ``print(d3pm_fast.implementation())`` shows for each implementation which tensors it serves
    here, or what is missing. With any argument the answer is that for a call:

    On a GPU ``"auto"`` takes whichever of Triton and CUDA C++ was measured to be faster for such a
    call (``d3pm_fast/ops/preferred.csv``), and Triton where that was not measured.

    Args:
        impl: what the call asks for: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or
            ``"cuda"``. ``"auto"`` gives way to what ``D3PM_FAST_IMPL`` was in the environment when
            the library was imported.
        device: where the call's tensors are.
        transition: the chain; None for a rank-one chain.
        operation: its name, such as ``"loss"`` or ``"products"``.
        num_classes: K, where there is no chain to ask.
        dtype: of the logits or matrices; None where there are none, or a tuple in place of logits.

    Returns:
        ``Implementation(name, reason)``; without arguments ``Implementations``, an
        ``Available(serves, reason)`` for each name.

    Raises:
        ValueError: an unknown name, or one that cannot serve this device.
        RuntimeError: the implementation asked for is not installed.
    """
    if (impl, device, transition, operation, num_classes, dtype) == (None, None, None, "", 0, None):
        return available()
    impl = check_choice("impl", "auto" if impl is None else impl, IMPLS)
    device = "cpu" if device is None else device
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    asked = "the call asks for it"
    if impl == "auto" and _environment.IMPL:
        impl = check_choice("D3PM_FAST_IMPL", _environment.IMPL, IMPLS)
        asked = "D3PM_FAST_IMPL asks for it"
    if impl == "reference":
        return Implementation("reference", asked)
    is_rank_one = transition is None or isinstance(transition, RankOneTransition)
    if impl == "auto":
        if kind == "cpu":
            return _ON_CPU
        classes = num_classes if transition is None else transition.num_classes
        return _best_on_gpu(kind, is_rank_one, operation, classes, dtype)
    if impl == "cpu":
        if kind != "cpu":
            raise ValueError(f"impl='cpu' needs CPU tensors, got {kind}")
        if _compiled.cpu is None:
            raise RuntimeError(f"impl='cpu' needs the compiled CPU module; {_compiled.why_no_cpu}")
        return Implementation("cpu", asked)
    if impl == "cuda" and not is_rank_one:
        raise RuntimeError("impl='cuda' serves rank-one chains; use 'auto' or 'triton'")
    if impl == "triton":
        if _WHY_NO_TRITON:
            raise RuntimeError(f"{_WHY_NO_TRITON}; impl='reference' works without it")
        if kind != "cuda" and not (kind == "cpu" and _environment.INTERPRET):
            raise ValueError(f"impl='triton' needs tensors on a GPU, got {kind}")
        return Implementation("triton", asked)
    if _compiled.cuda is None:
        raise RuntimeError(f"impl='cuda' needs the compiled CUDA module; {_compiled.why_no_cuda}")
    if kind != _compiled.cuda.device:
        raise ValueError(f"impl='cuda' needs tensors on a GPU, got {kind}")
    return Implementation("cuda", asked)


def _best_on_gpu(
    kind: str, is_rank_one: bool, operation: str, num_classes: int, dtype: torch.dtype | None
) -> Implementation:
    if kind != "cuda":
        return Implementation("reference", f"no kernel is built for {kind} tensors")
    if not _WHY_NO_TRITON:
        has_both = is_rank_one and _compiled.cuda is not None
        row = preferred(operation, num_classes, dtype) if has_both and dtype else None
        if row is None:
            return Implementation("triton", "GPU tensors; the default")
        measured = f"{row.operation}, {row.dtype}, up to {row.most_classes} classes"
        return Implementation(row.implementation, f"GPU tensors; measured as faster for {measured}")
    if not is_rank_one:
        return Implementation("reference", f"{_WHY_NO_TRITON}; nothing else serves such a chain")
    if _compiled.cuda is not None:
        return Implementation("cuda", f"GPU tensors; {_WHY_NO_TRITON}")
    return Implementation("reference", f"{_WHY_NO_TRITON}, nor is the CUDA module installed")
