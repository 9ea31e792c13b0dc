"""The variational bound of a chain in continuous time, per token and unit of time."""

import torch
from torch import Tensor

from ..records import Model
from .logspace import at
from .step import StepLogs


def density(logs: StepLogs, logits: Tensor, x0: Tensor, x_t: Tensor, model: Model) -> Tensor:
    """Return ``sum_{j != x_t} R[j, x_t] (m_j - d_j - d_j log(m_j / d_j))``, ``(B, *S)``.

    R are the rates at t, ``d_j = Qbar_t[x_0, j] / Qbar_t[x_0, x_t]``, and m_j the same of the
    prediction in place of x_0. NaN where x_0 cannot lead to x_t. Source: Campbell et al. 2022;
    Lou et al. 2024 (SEDD), eq. 7 with its constant.
    """
    log_rates = logs.log_q_column(x_t)
    logs = logs.without_step()
    log_s = logs.tilt(logits, x_t) if model.posterior_mean else torch.log_softmax(logits, dim=-1)
    log_d, log_f = logs.log_q_bar_row(x0), logs.log_predicted(log_s)
    log_reach = at(log_d, x_t)
    possible = (log_d > -torch.inf) | (log_reach == -torch.inf)
    log_d = (log_d - log_reach).where(possible, 0)
    log_m = log_f - at(log_f, x_t)
    others = torch.ones_like(log_m, dtype=torch.bool).scatter(-1, x_t.unsqueeze(-1), False)
    counts = others & (log_rates > -torch.inf)
    gain = log_m - log_d
    gain = gain.where(counts | gain.isnan(), 0)
    terms = (log_rates + log_d).exp() * (torch.expm1(gain) - gain)
    # Where q excludes a class, m_j is all there is.
    terms = terms.where(possible, (log_rates + log_m).exp())
    return terms.where(counts | terms.isnan(), 0).sum(dim=-1)
