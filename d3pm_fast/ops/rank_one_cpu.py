"""The C++ kernels for rank-one chains; each function has the arguments of the op it serves."""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_drawn, check_range
from .._compiled import cpu
from ..reference.shaped import shaped_logits
from .library import empty_loss, pointer


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


def chain_arguments(
    shape: tuple[int, int], rows: Tensor, table: Tensor, vector: Tensor | None, mask_id: int
) -> tuple[int, ...]:
    """Return what a compiled module takes for a chain and tokens of a shape (N, K)."""
    rows_at, table_at = rows.data_ptr(), table.data_ptr()
    return *shape, rows_at, rows.numel(), table_at, len(table), pointer(vector), mask_id


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
        chain_arguments((x0.numel(), num_classes), rows, table, vector, mask_id),
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


def loss(*args: Any) -> Tensor:
    """Return the loss, of each token or their sum or mean."""
    return _run_loss(None, *args)


def loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    grad = torch.empty_like(logits)
    return _run_loss(grad, logits, *args), grad


def q_posterior(
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
    """Return log q(x_s | x_t, x_0)."""
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device="cpu")
    vector = _vector(base, dtype)
    bad = cpu.q_posterior(
        str(dtype),
        chain_arguments((x0.numel(), num_classes), rows, table, vector, mask_id),
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
        chain_arguments((x_t.numel(), logits.shape[-1]), rows, table, vector, mask_id),
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


def p_posterior(logits: Tensor, *args: Any) -> Tensor:
    """Return log p(x_s | x_t)."""
    return _run_p_posterior(logits, None, *args)


def p_posterior_grad(*args: Any) -> Tensor:
    """Return the gradient of log p(x_s | x_t) with respect to the logits."""
    return _run_p_posterior(*args)


def q_sample(
    x: Tensor,
    rows: Tensor,
    table: Tensor,
    base_cdf: Tensor | None,
    mask_id: int,
    num_classes: int,
    seeds: Tensor,
    step: int,
) -> Tensor:
    """Return a draw for each token."""
    out = torch.empty_like(x)
    bad = cpu.q_sample(
        chain_arguments((x.numel(), num_classes), rows, table, None, mask_id),
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


def p_sample(
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
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> Tensor:
    """Return a draw for each token.

    Rows of tokens that may move are read, and shaped by the last five arguments.
    """
    out = torch.empty_like(x_t)
    top_k = logits.shape[-1] if top_k is None else top_k
    bad = cpu.p_sample(
        str(logits.dtype),
        chain_arguments((x_t.numel(), logits.shape[-1]), rows, table, base, mask_id),
        pointer(base_cdf),
        posterior_mean,
        direct,
        seeds.data_ptr(),
        len(seeds),
        step,
        logits.data_ptr(),
        (pointer(unconditional), guidance, temperature, top_k, top_p),
        x_t.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad:
        _raise_bad_index(logits.shape[-1], rows, table, x_t=x_t)
        shaping = guidance, temperature, top_k, top_p
        check_drawn(out, x_t, lambda token: _shaped_row(token, logits, unconditional, *shaping))
    return out


def _shaped_row(
    token: tuple[int, ...], logits: Tensor, unconditional: Tensor | None, *shaping: Any
) -> Tensor:
    other = None if unconditional is None else unconditional[token]
    return shaped_logits(logits[token], other, *shaping)


shaped_p_sample = p_sample
