"""The posteriors of chains of matrices on the CPU, and the gradient of the model's."""

import torch
from torch import Tensor

from ... import reference
from ..._compiled import cpu
from ...chains.structures import MatrixStep
from ...records import Model
from ...reference.logspace import compute_dtype
from ..host import pointer
from .groups import StepGroups
from .recompute import Recompute


def q_posterior(x0: Tensor, x_t: Tensor, step: MatrixStep, dtype: torch.dtype) -> Tensor:
    """Return log q(x_s | x_t, x_0)."""
    num_classes = step.num_classes
    out = torch.empty(*x0.shape, num_classes, dtype=dtype, device="cpu")
    run = StepGroups(dtype, num_classes, x0, x_t, step)
    for chunk in run:
        classes = run.of(x_t, chunk)
        tables = (
            run.chain.log_columns(chunk.s, chunk.t, classes),
            run.chain.log_rows(chunk.s, run.of(x0, chunk)),
            run.chain.log_columns(0, chunk.t, classes),
        )
        call = chunk.rows, *map(pointer, tables), out.data_ptr()
        cpu.dense_q_posterior(run.dtype, call, torch.get_num_threads())
    return out


def p_posterior(
    logits: Tensor, x_t: Tensor, step: MatrixStep, model: Model, upstream: Tensor | None = None
) -> Tensor:
    """Return log p(x_s | x_t), or with a gradient of it that of the logits."""
    out = torch.empty_like(logits)
    run = StepGroups(logits.dtype, logits.shape[-1], x_t, x_t, step)
    read, write = logits.data_ptr(), out.data_ptr()
    for chunk in run:
        if model.direct and chunk.s == 0:
            _direct_log_p(out, logits, upstream, chunk.tokens)
            continue
        rows, threads = chunk.rows, torch.get_num_threads()
        form, v, f = chunk.step.form, chunk.v.data_ptr(), chunk.f.data_ptr()
        tilt = run.log_tilt(chunk, model.posterior_mean)
        predict = rows, read, pointer(tilt), v, 0.0, 1, 0
        cpu.dense_predict(run.dtype, predict, threads)
        form.apply(chunk.v, chunk.f)
        columns, q_bar, _ = run.tables(chunk)
        log_columns = run.chain.log_columns(chunk.s, chunk.t, run.of(x_t, chunk))
        at = map(pointer, (columns, q_bar, log_columns))
        inexact = chunk.inexact.data_ptr()
        call = rows, *at, f, form.error, pointer(upstream), write, inexact
        cpu.dense_posterior(run.dtype, call, threads)
        if upstream is not None:
            form.apply_transposed(chunk.f, chunk.g)
            gradient = rows, read, v, chunk.g.data_ptr(), 0.0, 1.0, write
            cpu.dense_gradient(run.dtype, gradient, threads)
    if run.inexact:
        again = Recompute(run, logits)
        made = _log_p(again, model) if upstream is None else _gradient(again, upstream, model)
        out.flatten(0, -2)[again.tokens] = made.to(out.dtype)
    return out


def _direct_log_p(out: Tensor, logits: Tensor, upstream: Tensor | None, tokens: Tensor) -> None:
    """Write ``log softmax(logits)`` of some tokens, or its gradient."""
    real = compute_dtype(logits.dtype)
    rows = torch.log_softmax(logits.flatten(0, -2)[tokens].to(real), dim=-1)
    if upstream is not None:
        pull = upstream.flatten(0, -2)[tokens].to(real)
        rows = pull - rows.exp() * pull.sum(dim=-1, keepdim=True)
    out.flatten(0, -2)[tokens] = rows.to(out.dtype)


def _log_p(again: Recompute, model: Model) -> Tensor:
    """Return ``log p(x_s | x_t)`` of inexact tokens, float64 ``(n, K)``."""
    if not again.was_float64:
        return p_posterior(again.logits, again.x_t, again.step, model)
    rows = [
        reference.p_posterior(leaf, again.x_t[part], step, model)
        for part, leaf, step in again.in_log_space()
    ]
    return torch.cat(rows).detach()


def _gradient(again: Recompute, upstream: Tensor, model: Model) -> Tensor:
    """Return the gradient of ``log p(x_s | x_t)`` of inexact tokens, float64 ``(n, K)``."""
    upstream = upstream.flatten(0, -2)[again.tokens].double()
    if not again.was_float64:
        return p_posterior(again.logits, again.x_t, again.step, model, upstream)
    gradients: list[Tensor] = []
    for part, leaf, step in again.in_log_space():
        log_p = reference.p_posterior(leaf, again.x_t[part], step, model)
        pull = upstream[part].where(log_p > -torch.inf, 0)
        gradients += torch.autograd.grad(log_p, leaf, pull)
    return torch.cat(gradients)
