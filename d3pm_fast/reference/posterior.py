"""The categorical posterior and the model's reverse step (D3PM, eq. 3 and 4)."""

from typing import Any

import torch
from torch import Tensor

from ..records import Model
from .logspace import at, compute_dtype
from .step import StepLogs, logs_of


def q_posterior(x0: Tensor, x_t: Tensor, step: Any, dtype: torch.dtype) -> Tensor:
    """Return ``log q(x_s | x_t, x_0)``, ``(B, *S, K)``: NaN where ``Qbar_t[x_0, x_t] = 0``."""
    num_classes = step.num_classes
    inside = (x0 >= 0) & (x0 < num_classes) & (x_t >= 0) & (x_t < num_classes)
    logs = logs_of(step, (*x_t.shape, num_classes), compute_dtype(dtype))
    log_q = log_q_posterior(logs, x0.where(inside, 0), x_t.where(inside, 0))
    return log_q.where(inside.unsqueeze(-1), torch.nan).to(dtype)


def p_posterior(logits: Tensor, x_t: Tensor, step: Any, model: Model) -> Tensor:
    """Return ``log p(x_s | x_t)``, ``(B, *S, K)``, differentiable in the logits."""
    dtype = compute_dtype(logits.dtype)
    logs = logs_of(step, logits.shape, dtype)
    allowed = logs.allowed(logits)
    inside = (x_t >= 0) & (x_t < allowed.shape[-1])
    log_p = log_p_posterior(logs, allowed.to(dtype), x_t.where(inside, 0), model)
    return log_p.where(inside.unsqueeze(-1), torch.nan).to(logits.dtype)


def log_q_posterior(logs: StepLogs, x0: Tensor, x_t: Tensor) -> Tensor:
    """Return ``log Q[j, x_t] + log Qbar_s[x_0, j] - log Qbar_t[x_0, x_t]``, ``(B, *S, K)``."""
    log_column = logs.log_q_column(x_t)
    log_reach = at(logs.log_q_bar_t_column(x_t), x0)
    log_q = log_column + logs.log_q_bar_row(x0) - log_reach
    # Where nothing but x_t leads to x_t, the step stayed there: exactly 0, not a difference.
    possible = log_column > -torch.inf
    stayed = (possible.sum(dim=-1, keepdim=True) == 1) & (log_reach > -torch.inf)
    return log_q.where(~stayed, log_column.where(~possible, 0))


def log_p_posterior(logs: StepLogs, logits: Tensor, x_t: Tensor, model: Model) -> Tensor:
    """Return ``log p(x_s = j | x_t)`` from the predicted s, the softmax of logits, ``(B, *S, K)``.

    Joint: ``p(j) = Q[j, x_t] f_j / Z`` with ``f = s Qbar_s``; posterior mean: the same with s
    tilted. Direct: ``p = s`` for the step to s = 0. NaN for every class where s is undefined, or
    forbids all that leads to x_t.
    """
    log_x0 = torch.log_softmax(logits, dim=-1)
    log_s = logs.tilt(logits, x_t) if model.posterior_mean else log_x0
    log_column = logs.log_q_column(x_t)
    # Where nothing but x_t leads to x_t, the step stays there, also where s forbids x_t.
    possible = log_column > -torch.inf
    alone = possible.sum(dim=-1, keepdim=True) == 1
    log_joint = (log_column + logs.log_predicted(log_s)).where(~alone, 0)
    log_p = torch.log_softmax(log_joint, dim=-1).where(~alone, log_column.where(~possible, 0))
    return log_x0.where((logs.target_time == 0) & model.direct, log_p)
