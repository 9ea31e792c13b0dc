"""Score entropy, the bound's density by log-ratios in place of a prediction (SEDD, eq. 7)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..records import Loss
from .logspace import at, compute_dtype
from .loss import can_reach, collected, divergence, tokens_of
from .posterior import log_q_posterior
from .rank_one import RankOneLogs
from .step import logs_of


def score_loss(of: Loss[Any], reduction: str) -> Tensor:
    """Return the density at t of every token, nats, by log scores in place of logits.

    As :func:`loss` with logits of the same ratios; the cross-entropy is NaN.
    """
    log_scores = of.logits
    logs = RankOneLogs.of(of.step, tuple(log_scores.shape), torch.float64)
    tokens = tokens_of(of, log_scores.shape[-1], logs.forbidden)
    bound = score_entropy(logs, log_scores.double(), tokens.x0, tokens.x_t, tokens.counts)
    bound = bound.to(compute_dtype(log_scores.dtype))
    is_possible = can_reach(logs, tokens.x0, tokens.x_t)
    nothing = torch.full_like(bound, torch.nan)
    return collected(of, reduction, tokens, is_possible, bound, nothing)


def score_entropy(
    logs: RankOneLogs, log_scores: Tensor, x0: Tensor, x_t: Tensor, counts: Tensor
) -> Tensor:
    """Return ``v sum_{j != x_t} e^{y_j} - r_j y_j + r_j (log r_j - 1)``, ``(B, *S)``.

    y are the log scores, v the rate into x_t, ``r_j = Qbar_t[x_0, j] / Qbar_t[x_0, x_t]``. Written
    with ``g = y - log r`` as ``r (e^g - 1 - g)``, which keeps its digits where the score is right.
    """
    log_rates = logs.log_q_column(x_t)
    log_d = logs.without_step().log_q_bar_row(x0)
    read = logs.is_held() & counts.unsqueeze(-1) & (log_rates > -torch.inf)
    read = read.scatter(-1, x_t.unsqueeze(-1), False)
    y = log_scores.where(read, 0)
    has_ratio = read & (log_d > -torch.inf)
    log_r = (log_d - at(log_d, x_t)).where(has_ratio, 0)
    gain = (y - log_r).where(has_ratio, 0)
    near = gain.clamp(max=1)
    terms = log_r.exp() * (torch.expm1(near) - near)
    far = y.exp() - log_r.exp() * (1 + gain)  # e^gain may be out of range where e^y is not
    terms = terms.where(gain <= 1, far).where(has_ratio, y.exp())
    return (log_rates.where(read, 0).exp() * terms).where(read, 0).sum(dim=-1)


def score_divergence(of: Loss[Any], reduction: str, log_p: Tensor) -> Tensor:
    """Return ``KL(q(x_s | x_t, x_0) || p)`` of every token, as a loss without a cross-entropy."""
    logs = logs_of(of.step, of.logits.shape, torch.float64)
    tokens = tokens_of(of, of.logits.shape[-1], logs.forbidden)
    log_q = log_q_posterior(logs, tokens.x0, tokens.x_t)
    bound = divergence(log_q, log_p.double()).to(log_p.dtype)
    is_possible = ~log_q.isnan().any(dim=-1)
    nothing = torch.full_like(bound, torch.nan)
    return collected(of, reduction, tokens, is_possible, bound, nothing)


class Levels(NamedTuple):
    """Two parts of log pi, ``(K,)``; None where all are 1/K.

    Attributes:
        levels: multiples of 2^-16, so that float32 adds them to others without an error.
        rests: what is left of log pi.
    """

    levels: Tensor | None
    rests: Tensor | None


def levels_of(pi: Tensor | None, dtype: torch.dtype) -> Levels:
    """Return what kernels take for log pi of a float64 pi; 0 where pi is 0."""
    if pi is None:
        return Levels(None, None)
    log_pi = pi.where(pi > 0, 1).log()
    levels = (log_pi * 65536).round() / 65536
    return Levels(levels.to(dtype), (log_pi - levels).to(dtype))
