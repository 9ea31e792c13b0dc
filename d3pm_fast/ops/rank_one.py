"""The operations on rank-one chains.

All take contiguous tensors: tokens ``(B, *S)`` int64, logits ``(B, *S, K)``, and ``rows``,
``(B,)`` or ``(B, *S)`` int64: the row of ``table`` with the coefficients of each token's step
(:meth:`~d3pm_fast.transitions.RankOneTransition.coefficients`). ``reference/`` says what each one
means.
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._checks import check_range
from .._compiled import cpu
from ..transitions import RankOneTransition
from .library import empty_loss, library, pointer

_CHAIN = "Tensor rows, Tensor table, Tensor? base, Tensor? base_cdf, int mask_id"
_MODEL = "bool posterior_mean, bool direct"
_LOSS = (
    f"Tensor logits, Tensor x0, Tensor? mask, Tensor x_t, {_CHAIN}, {_MODEL}, "
    "float vb_weight, float ce_weight"
)

library.define(f"loss({_LOSS}, str reduction) -> Tensor")
library.define(f"loss_and_grad({_LOSS}, str reduction, bool late) -> (Tensor, Tensor)")
library.define(
    f"q_posterior(Tensor x0, Tensor x_t, {_CHAIN}, int num_classes, ScalarType dtype) -> Tensor"
)
library.define(f"p_posterior(Tensor logits, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor")
library.define(
    f"p_posterior_grad(Tensor logits, Tensor grad, Tensor x_t, {_CHAIN}, {_MODEL}) -> Tensor"
)
library.define(
    "q_sample(Tensor x, Tensor rows, Tensor table, Tensor? base_cdf, int mask_id, "
    "int num_classes, Tensor seeds, int step) -> Tensor"
)
library.define(
    f"p_sample(Tensor logits, Tensor x_t, {_CHAIN}, {_MODEL}, Tensor seeds, int step) -> Tensor"
)


def _vector(base: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return base if base is None or dtype == torch.float64 else base.float()


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
    return *shape, rows_at, rows.numel(), table_at, len(table), pointer(vector), mask_id


def chain(
    transition: RankOneTransition, t: Tensor, s: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]:
    """Return what the operations take after x_t."""
    rows, table = transition.step_rows(t, s)
    return rows, table, transition.base, transition.base_cdf, transition.mask_id


def q_sample(x: Tensor, transition: RankOneTransition, t: Tensor, *args: Any) -> Tensor:
    """Call the operation with what it needs of the transition."""
    of = transition
    table = of.products, of.base_cdf, of.mask_id, of.num_classes
    return torch.ops.d3pm_fast.q_sample(x, t, *table, *args)  # type: ignore[no-any-return]


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
    mask: Tensor | None,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    _base_cdf: Tensor | None,
    mask_id: int,
    posterior_mean: bool,
    direct: bool,
    vb_weight: float,
    ce_weight: float,
    reduction: str,
    late: bool = False,
) -> Tensor:
    token_loss = empty_loss(logits, x0, reduction)
    vector = _vector(base, logits.dtype)
    num_classes = logits.shape[-1]
    bad = cpu.loss(
        str(logits.dtype),
        _chain((x0.numel(), num_classes), rows, table, vector, mask_id),
        posterior_mean,
        direct,
        logits.data_ptr(),
        x0.data_ptr(),
        x_t.data_ptr(),
        pointer(mask),
        vb_weight,
        ce_weight,
        reduction,
        late,
        token_loss.data_ptr(),
        pointer(grad),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(num_classes, rows, table, mask, x0=x0, x_t=x_t)
    return token_loss


@torch.library.impl(library, "loss", "CPU")
def _loss(*args: Any) -> Tensor:
    return _run_loss(None, *args)


@torch.library.impl(library, "loss_and_grad", "CPU")
def _loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    grad = torch.empty_like(logits)
    return _run_loss(grad, logits, *args), grad


@torch.library.impl(library, "q_posterior", "CPU")
def _q_posterior(
    x0: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    _base_cdf: Tensor | None,
    mask_id: int,
    num_classes: int,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty(*x0.shape, num_classes, dtype=dtype)
    vector = _vector(base, dtype)
    bad = cpu.q_posterior(
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
    _base_cdf: Tensor | None,
    mask_id: int,
    posterior_mean: bool,
    direct: bool,
) -> Tensor:
    out = torch.empty_like(logits)
    vector = _vector(base, logits.dtype)
    bad = cpu.p_posterior(
        str(logits.dtype),
        _chain((x_t.numel(), logits.shape[-1]), rows, table, vector, mask_id),
        posterior_mean,
        direct,
        logits.data_ptr(),
        pointer(grad),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(logits.shape[-1], rows, table, x_t=x_t)
    return out


@torch.library.impl(library, "p_posterior", "CPU")
def _p_posterior(logits: Tensor, *args: Any) -> Tensor:
    return _run_p_posterior(logits, None, *args)


@torch.library.impl(library, "p_posterior_grad", "CPU")
def _p_posterior_grad(*args: Any) -> Tensor:
    return _run_p_posterior(*args)


@torch.library.impl(library, "q_sample", "CPU")
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
    bad = cpu.q_sample(
        _chain((x.numel(), num_classes), rows, table, None, mask_id),
        pointer(base_cdf),
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


@torch.library.impl(library, "p_sample", "CPU")
def _p_sample(
    logits: Tensor,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    base_cdf: Tensor | None,
    mask_id: int,
    posterior_mean: bool,
    direct: bool,
    seeds: Tensor,
    step: int,
) -> Tensor:
    out = torch.empty_like(x_t)
    bad = cpu.p_sample(
        str(logits.dtype),
        _chain((x_t.numel(), logits.shape[-1]), rows, table, base, mask_id),
        pointer(base_cdf),
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
    return empty_loss(logits, x0, args[-1])


@torch.library.register_fake("d3pm_fast::loss_and_grad")
def _(logits: Tensor, x0: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return empty_loss(logits, x0, args[-2]), torch.empty_like(logits)


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


loss = torch.ops.d3pm_fast.loss
q_posterior = torch.ops.d3pm_fast.q_posterior
p_posterior = torch.ops.d3pm_fast.p_posterior
p_posterior_grad = torch.ops.d3pm_fast.p_posterior_grad
p_sample = torch.ops.d3pm_fast.p_sample
