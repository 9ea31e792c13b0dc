"""The registered operations ``torch.ops.d3pm_fast.*`` and the choice among implementations.

All operations take contiguous tensors: tokens ``(B, *S)`` int64, logits ``(B, *S, K)``, and
``rows``, ``(B,)`` or ``(B, *S)`` int64: the row of ``table`` with the coefficients of each
token's step (:meth:`~d3pm_fast.transitions.RankOneTransition.coefficients`). ``reference/`` says
what each one means.
"""

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _environment
from ._checks import check_choice, check_range

try:
    _cpu: Any = importlib.import_module("d3pm_fast._cpu")
except ImportError:
    _cpu = None

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")

_CHAIN = "Tensor rows, Tensor table, Tensor? base, int mask_id"
_MODEL = "bool posterior_mean, bool direct"
_LOSS = (
    f"Tensor logits, Tensor x0, Tensor x_t, {_CHAIN}, Tensor? mask, {_MODEL}, "
    "float vb_weight, float ce_weight"
)

_library = torch.library.Library("d3pm_fast", "DEF")
_library.define(f"loss({_LOSS}, str reduction) -> Tensor")
_library.define(f"loss_and_grad({_LOSS}, str reduction, bool late) -> (Tensor, Tensor)")
_library.define(
    f"q_posterior(Tensor x0, Tensor x_t, {_CHAIN}, int num_classes, ScalarType dtype) -> Tensor"
)
_library.define(f"p_posterior(Tensor logits, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor")
_library.define(
    f"p_posterior_grad(Tensor logits, Tensor grad, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor"
)
_library.define(
    "q_sample(Tensor x, Tensor rows, Tensor table, Tensor? base_cdf, int mask_id, "
    "int num_classes, Tensor seeds, int step) -> Tensor"
)
_library.define(
    f"p_sample(Tensor logits, Tensor x_t, {_CHAIN}, Tensor? base_cdf, {_MODEL}, "
    "Tensor seeds, int step) -> Tensor"
)


class Implementation(NamedTuple):
    """Which code serves a call, and why."""

    name: str
    reason: str


_ON_CPU = (
    Implementation("cpu", f"CPU tensors; vector instructions: {_cpu.instruction_set()}")
    if _cpu
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
        if _cpu is None:
            raise RuntimeError(
                "impl='cpu' needs the compiled CPU module: install d3pm_fast with a C++ compiler"
            )
        return Implementation("cpu", asked)
    raise RuntimeError(f"impl={impl!r} is not built yet; use 'auto', 'reference' or 'cpu'")


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _vector(base: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return base if base is None or dtype == torch.float64 else base.float()


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _empty_loss(logits: Tensor, x0: Tensor, reduction: str) -> Tensor:
    shape = x0.shape if reduction == "none" else ()
    return logits.new_empty(shape, dtype=_loss_dtype(logits))


def _raise_bad_index(
    num_classes: int,
    rows: Tensor,
    table: Tensor,
    mask: Tensor | None = None,
    **tokens: Tensor,
) -> None:
    """Raise IndexError for the first index that made a kernel report a bad one."""
    for name, value in tokens.items():
        check_range(name, value if mask is None else value.where(mask, 0), 0, num_classes)
    first_time = int(table[:1, 0].isnan().any())
    check_range("t", rows, first_time, len(table))


def _chain(
    shape: tuple[int, int], rows: Tensor, table: Tensor, vector: Tensor | None, mask_id: int
) -> tuple[int, ...]:
    rows_at, table_at = rows.data_ptr(), table.data_ptr()
    return *shape, rows_at, rows.numel(), table_at, len(table), _pointer(vector), mask_id


def loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Call the operation; past PyTorch's dispatcher where there is nothing for it to do."""
    if type(logits) is not Tensor or is_compiling():
        return torch.ops.d3pm_fast.loss_and_grad(logits, *args)  # type: ignore[no-any-return]
    grad = torch.empty_like(logits)
    return _run_loss(grad, logits, *args), grad


def _run_loss(
    grad: Tensor | None,
    logits: Tensor,
    x0: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    mask_id: int,
    mask: Tensor | None,
    posterior_mean: bool,
    direct: bool,
    vb_weight: float,
    ce_weight: float,
    reduction: str,
    late: bool = False,
) -> Tensor:
    loss = _empty_loss(logits, x0, reduction)
    vector = _vector(base, logits.dtype)
    num_classes = logits.shape[-1]
    bad = _cpu.loss(
        str(logits.dtype),
        _chain((x0.numel(), num_classes), rows, table, vector, mask_id),
        posterior_mean,
        direct,
        logits.data_ptr(),
        x0.data_ptr(),
        x_t.data_ptr(),
        _pointer(mask),
        vb_weight,
        ce_weight,
        reduction,
        late,
        loss.data_ptr(),
        _pointer(grad),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(num_classes, rows, table, mask, x0=x0, x_t=x_t)
    return loss


@torch.library.impl(_library, "loss", "CPU")
def _loss(*args: Any) -> Tensor:
    return _run_loss(None, *args)


@torch.library.impl(_library, "loss_and_grad", "CPU")
def _loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    grad = torch.empty_like(logits)
    return _run_loss(grad, logits, *args), grad


@torch.library.impl(_library, "q_posterior", "CPU")
def _q_posterior(
    x0: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    mask_id: int,
    num_classes: int,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty(*x0.shape, num_classes, dtype=dtype)
    vector = _vector(base, dtype)
    bad = _cpu.q_posterior(
        str(dtype),
        _chain((x0.numel(), num_classes), rows, table, vector, mask_id),
        x0.data_ptr(),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(num_classes, rows, table, x0=x0, x_t=x_t)
    return out


def _run_p_posterior(
    logits: Tensor,
    grad: Tensor | None,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    mask_id: int,
    posterior_mean: bool,
    direct: bool,
) -> Tensor:
    out = torch.empty_like(logits)
    vector = _vector(base, logits.dtype)
    bad = _cpu.p_posterior(
        str(logits.dtype),
        _chain((x_t.numel(), logits.shape[-1]), rows, table, vector, mask_id),
        posterior_mean,
        direct,
        logits.data_ptr(),
        _pointer(grad),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(logits.shape[-1], rows, table, x_t=x_t)
    return out


@torch.library.impl(_library, "p_posterior", "CPU")
def _p_posterior(logits: Tensor, *args: Any) -> Tensor:
    return _run_p_posterior(logits, None, *args)


@torch.library.impl(_library, "p_posterior_grad", "CPU")
def _p_posterior_grad(*args: Any) -> Tensor:
    return _run_p_posterior(*args)


@torch.library.impl(_library, "q_sample", "CPU")
def _q_sample(
    x: Tensor,
    rows: Tensor,
    table: Tensor,
    base_cdf: Tensor | None,
    mask_id: int,
    num_classes: int,
    seeds: Tensor,
    step: int,
) -> Tensor:
    out = torch.empty_like(x)
    bad = _cpu.q_sample(
        _chain((x.numel(), num_classes), rows, table, None, mask_id),
        _pointer(base_cdf),
        seeds.data_ptr(),
        len(seeds),
        step,
        x.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(num_classes, rows, table, x0=x)
    return out


@torch.library.impl(_library, "p_sample", "CPU")
def _p_sample(
    logits: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    mask_id: int,
    base_cdf: Tensor | None,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    out = torch.empty_like(x_t)
    bad = _cpu.p_sample(
        str(logits.dtype),
        _chain((x_t.numel(), logits.shape[-1]), rows, table, base, mask_id),
        _pointer(base_cdf),
        posterior_mean,
        direct,
        seeds.data_ptr(),
        len(seeds),
        step,
        logits.data_ptr(),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(logits.shape[-1], rows, table, x_t=x_t)
    return out


@torch.library.register_fake("d3pm_fast::loss")
def _(logits: Tensor, x0: Tensor, *args: Any) -> Tensor:
    return _empty_loss(logits, x0, args[-1])


@torch.library.register_fake("d3pm_fast::loss_and_grad")
def _(logits: Tensor, x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _empty_loss(logits, x0, args[-2]), torch.empty_like(logits)


@torch.library.register_fake("d3pm_fast::q_posterior")
def _(x0: Tensor, *args: Any) -> Tensor:
    num_classes, dtype = args[-2:]
    return x0.new_empty(*x0.shape, num_classes, dtype=dtype)


@torch.library.register_fake("d3pm_fast::p_posterior")
@torch.library.register_fake("d3pm_fast::p_posterior_grad")
def _(logits: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(logits)


@torch.library.register_fake("d3pm_fast::q_sample")
def _(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("d3pm_fast::p_sample")
def _(logits: Tensor, x_t: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x_t)
