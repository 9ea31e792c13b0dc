"""The loss of chains of matrices on the CPU, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from ... import reference
from ..._compiled import cpu
from ...chains.structures import MatrixStep
from ...records import Loss
from ...reductions import of_loss, reduced
from ...reference.logspace import compute_dtype
from ..host import pointer
from .groups import StepGroups
from .recompute import Recompute


def loss(of: Loss[MatrixStep], reduction: str, late: bool | None = None) -> Any:
    """Return the loss, and with ``late`` its gradient, which a mean leaves undivided where True."""
    grad = None if late is None else torch.empty_like(of.logits)
    logits, x0, mask, x_t, step, model, weights, is_density, with_terms = of
    width = 3 if with_terms else 1
    results = torch.zeros(*x0.shape, width, dtype=compute_dtype(logits.dtype), device="cpu")
    counts = of.counts
    if grad is not None and counts is not None:
        grad.zero_()
    count = x0.numel() if mask is None else int(mask.sum())
    scale = 1 / max(count, 1) if reduction == "mean" and not late else 1.0
    shape = logits.dtype, logits.shape[-1]
    run = StepGroups(*shape, x0, x_t, step, counts, weights.tokens, splits=True)
    read, loss_at, grad_at = logits.data_ptr(), results.data_ptr(), pointer(grad)
    of_tokens = results.flatten(0, -2)
    for chunk in run:
        rows, threads = chunk.rows, torch.get_num_threads()
        form, v, f = chunk.step.form, chunk.v.data_ptr(), chunk.f.data_ptr()
        is_direct = model.direct and chunk.s == 0
        ce = weights.ce + (weights.vb if is_direct else 0.0)
        tilt = run.log_tilt(chunk, model.posterior_mean and not is_direct)
        predict = rows, read, pointer(tilt), v, ce, width, loss_at
        cpu.dense_predict(run.dtype, predict, threads)
        diverges = (weights.vb != 0 or with_terms) and not is_direct
        if diverges:
            form.apply(chunk.v, chunk.f)
            tables = run.tables(chunk)
            inexact = chunk.inexact.data_ptr()
            at = map(pointer, tables)
            call = rows, is_density, *at, f, weights.vb, form.error, width, loss_at, inexact
            cpu.dense_loss(run.dtype, call, threads)
        if grad_at:
            if diverges:
                form.apply_transposed(chunk.f, chunk.g)
            pull = chunk.g.data_ptr() if diverges else 0
            gradient = rows, read, v, pull, ce, scale, grad_at
            cpu.dense_gradient(run.dtype, gradient, threads)
        if not diverges:
            if with_terms:
                of_tokens[chunk.tokens, 1] = of_tokens[chunk.tokens, 2]
            never = chunk.tokens[run.never(x0, chunk)]
            of_tokens[never] = torch.nan
            if grad is not None:
                grad.flatten(0, -2)[never] = torch.nan
    if run.inexact:
        again = Recompute(run, logits)
        losses, gradients = _recomputed(again, of)
        of_tokens[again.tokens] = losses.to(results.dtype).view(-1, width)
        if grad is not None:
            grad.flatten(0, -2)[again.tokens] = (gradients * scale).to(grad.dtype)
    value = reduced(results if with_terms else results.squeeze(-1), reduction, count, with_terms)
    return value if grad is None else (value, grad)


def _recomputed(again: Recompute, of: Loss[MatrixStep]) -> tuple[Tensor, Tensor]:
    """Return the results ``(n,)`` or ``(n, 3)``, and the gradient ``(n, K)``, float64."""
    x0, factors = of.x0.flatten()[again.tokens], of.weights.tokens
    if factors is not None:
        factors = factors.flatten()[again.tokens].double()
    of = of._replace(x0=x0, mask=None, weights=of.weights._replace(tokens=factors))
    if not again.was_float64:
        wide = of._replace(logits=again.logits, x_t=again.x_t, step=again.step)
        return loss(wide, "none", False)  # type: ignore[no-any-return]
    losses, gradients = [], []
    for part, leaf, step in again.in_log_space():
        weights = of.weights if factors is None else of.weights._replace(tokens=factors[part])
        part_of = of._replace(
            logits=leaf, x0=x0[part], x_t=again.x_t[part], step=step, weights=weights
        )
        results = reference.loss(part_of, "none")
        losses.append(results.detach())
        value = of_loss(results, of.with_terms)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        gradients.append(gradient.where(value.isfinite().unsqueeze(-1), torch.nan))
    return torch.cat(losses), torch.cat(gradients)
