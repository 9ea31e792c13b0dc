"""The CUDA C++ kernels for rank-one chains; each function has the arguments of the op it serves.

They start work on PyTorch's current stream and wait for nothing.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference.logspace import compute_dtype
from .library import pointer, reduced, start_cuda
from .rank_one_cpu import chain_arguments


def loss(*args: Any) -> Tensor:
    """Return the loss, of each token or their sum or mean."""
    return _run_loss(None, *args)


def loss_and_grad(logits: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
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
    token_loss = logits.new_empty(x0.shape, dtype=compute_dtype(logits.dtype))
    mean = reduction == "mean"
    count = mask.sum().to(token_loss.dtype) if mask is not None and mean else None
    early = mean and not late
    vector = None if base is None else base.to(token_loss.dtype)
    start_cuda(
        "loss",
        logits,
        str(logits.dtype),
        chain_arguments((x0.numel(), logits.shape[-1]), rows, table, vector, mask_id),
        posterior_mean,
        direct,
        logits.data_ptr(),
        x0.data_ptr(),
        x_t.data_ptr(),
        pointer(mask),
        vb_weight,
        ce_weight,
        1 / max(x0.numel(), 1) if early and count is None else 1.0,
        pointer(count) if early else 0,
        token_loss.data_ptr(),
        pointer(grad),
    )
    return reduced(token_loss, count, reduction)


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
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device=x0.device)
    _posterior(out, None, None, x0, x_t, (rows, table, base, mask_id), (False, False))
    return out


def p_posterior(logits: Tensor, x_t: Tensor, *args: Any) -> Tensor:
    """Return log p(x_s | x_t)."""
    return _p_posterior(logits, None, x_t, *args)


def p_posterior_grad(logits: Tensor, upstream: Tensor, x_t: Tensor, *args: Any) -> Tensor:
    """Return the gradient of log p(x_s | x_t) with respect to the logits."""
    return _p_posterior(logits, upstream, x_t, *args)


def _p_posterior(
    logits: Tensor,
    upstream: Tensor | None,
    x_t: Tensor,
    rows: Tensor,
    table: Tensor,
    base: Tensor | None,
    _base_cdf: Tensor | None,
    mask_id: int,
    *model: bool,
) -> Tensor:
    out = torch.empty_like(logits)
    _posterior(out, logits, upstream, None, x_t, (rows, table, base, mask_id), model)
    return out


def _posterior(
    out: Tensor,
    logits: Tensor | None,
    upstream: Tensor | None,
    x0: Tensor | None,
    x_t: Tensor,
    chain: tuple[Tensor, Tensor, Tensor | None, int],
    model: tuple[bool, ...],
) -> None:
    rows, table, base, mask_id = chain
    vector = None if base is None else base.to(compute_dtype(out.dtype))
    start_cuda(
        "posterior",
        out,
        str(out.dtype),
        chain_arguments((x_t.numel(), out.shape[-1]), rows, table, vector, mask_id),
        *model,
        pointer(logits),
        pointer(upstream),
        pointer(x0),
        x_t.data_ptr(),
        out.data_ptr(),
    )


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
    """Return a draw for each token; -1 where an index is bad."""
    out = torch.empty_like(x)
    start_cuda(
        "q_sample",
        x,
        chain_arguments((x.numel(), num_classes), rows, table, None, mask_id),
        pointer(base_cdf),
        seeds.data_ptr(),
        len(seeds),
        step,
        x.data_ptr(),
        out.data_ptr(),
    )
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
) -> Tensor:
    """Return a draw for each token; -1 where an index is bad, or a row that is read no law."""
    out = torch.empty_like(x_t)
    start_cuda(
        "p_sample",
        logits,
        str(logits.dtype),
        chain_arguments((x_t.numel(), logits.shape[-1]), rows, table, base, mask_id),
        pointer(base_cdf),
        posterior_mean,
        direct,
        seeds.data_ptr(),
        len(seeds),
        step,
        logits.data_ptr(),
        x_t.data_ptr(),
        out.data_ptr(),
    )
    return out
