"""The loss of chains of matrices on the CPU, and its gradient."""

import torch
from torch import Tensor

from ... import reference
from ..._compiled import cpu
from ...chains.structures import MatrixStep
from ...records import Loss
from ...reductions import reduced
from ...reference.logspace import compute_dtype
from ..host import pointer
from .groups import StepGroups
from .recompute import Recompute


def loss(of: Loss[MatrixStep], reduction: str) -> Tensor:
    """Return the loss, of each token or their sum or mean."""
    return _run(of, reduction, False, None)


def loss_and_grad(of: Loss[MatrixStep], reduction: str, late: bool) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, which a mean leaves undivided where it is late."""
    grad = torch.empty_like(of.logits)
    return _run(of, reduction, late, grad), grad


def _run(of: Loss[MatrixStep], reduction: str, late: bool, grad: Tensor | None) -> Tensor:
    logits, x0, mask, x_t, step, model, weights, _ = of
    token_loss = torch.zeros(x0.shape, dtype=compute_dtype(logits.dtype), device="cpu")
    if grad is not None and mask is not None:
        grad.zero_()
    count = x0.numel() if mask is None else int(mask.sum())
    scale = 1 / max(count, 1) if reduction == "mean" and not late else 1.0
    run = StepGroups(logits.dtype, logits.shape[-1], x0, x_t, step, mask, splits=True)
    read, loss_at, grad_at = logits.data_ptr(), token_loss.data_ptr(), pointer(grad)
    for chunk in run:
        rows, threads = chunk.rows, torch.get_num_threads()
        form, v, f = chunk.step.form, chunk.v.data_ptr(), chunk.f.data_ptr()
        is_direct = model.direct and chunk.s == 0
        ce = weights.ce + (weights.vb if is_direct else 0.0)
        tilt = run.log_tilt(chunk, model.posterior_mean and not is_direct)
        predict = rows, read, pointer(tilt), v, ce, loss_at
        cpu.dense_predict(run.dtype, predict, threads)
        diverges = weights.vb != 0 and not is_direct
        if diverges:
            form.apply(chunk.v, chunk.f)
            tables = run.tables(chunk)
            inexact = chunk.inexact.data_ptr()
            at = map(pointer, tables)
            call = rows, *at, f, weights.vb, form.error, loss_at, inexact
            cpu.dense_loss(run.dtype, call, threads)
        if grad_at:
            if diverges:
                form.apply_transposed(chunk.f, chunk.g)
            pull = chunk.g.data_ptr() if diverges else 0
            gradient = rows, read, v, pull, ce, scale, grad_at
            cpu.dense_gradient(run.dtype, gradient, threads)
        if not diverges:
            never = chunk.tokens[run.never(x0, chunk)]
            token_loss.view(-1)[never] = torch.nan
            if grad is not None:
                grad.flatten(0, -2)[never] = torch.nan
    if run.inexact:
        again = Recompute(run, logits)
        losses, gradients = _recomputed(again, of)
        token_loss.view(-1)[again.tokens] = losses.to(token_loss.dtype)
        if grad is not None:
            grad.flatten(0, -2)[again.tokens] = (gradients * scale).to(grad.dtype)
    return reduced(token_loss, reduction, count)


def _recomputed(again: Recompute, of: Loss[MatrixStep]) -> tuple[Tensor, Tensor]:
    """Return the loss ``(n,)`` and its gradient ``(n, K)``, float64."""
    x0 = of.x0.flatten()[again.tokens]
    if not again.was_float64:
        wide = of._replace(logits=again.logits, x0=x0, mask=None, x_t=again.x_t, step=again.step)
        return loss_and_grad(wide, "none", False)
    losses, gradients = [], []
    for part, leaf, step in again.in_log_space():
        part_of = Loss(leaf, x0[part], None, again.x_t[part], step, of.model, of.weights)
        value = reference.loss(part_of, "none")
        losses.append(value.detach())
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        gradients.append(gradient.where(value.isfinite().unsqueeze(-1), torch.nan))
    return torch.cat(losses), torch.cat(gradients)
