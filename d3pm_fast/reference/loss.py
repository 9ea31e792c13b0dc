"""The variational bound's term of one token, and the hybrid loss (D3PM, eq. 1 and 5)."""

from typing import Any

import torch
from torch import Tensor

from ..records import Loss
from ..reductions import reduced
from .density import density
from .logspace import at, compute_dtype
from .posterior import log_p_posterior, log_q_posterior
from .step import logs_of


def loss(of: Loss[Any], reduction: str) -> Tensor:
    """Return ``vb KL(q || p) + ce (-log s[x_0])`` of every token, nats.

    The step to s = 0 needs no case of its own: q is then one-hot at x_0 and the divergence is
    ``-log p(x_0 | x_t)``. A token whose ``mask`` is False, or whose factor is 0, has loss 0
    and is not looked at. ``reduction`` is none, for ``(B, *S)``, or the sum or the mean of the
    tokens that count. With terms there is one axis more: the loss, the bound's term and the
    cross-entropy.
    """
    logits, x0, mask, x_t, step, model, weights, is_density, with_terms = of
    dtype = compute_dtype(logits.dtype)
    logs = logs_of(step, logits.shape, dtype)
    logits = logs.allowed(logits)
    num_classes = logits.shape[-1]
    counts = torch.ones_like(x0, dtype=torch.bool) if of.counts is None else of.counts
    inside = (x0 >= 0) & (x0 < num_classes) & (x_t >= 0) & (x_t < num_classes)
    inside = inside & (x0 != logs.forbidden)
    usable = counts & inside
    x0, x_t = x0.where(usable, 0), x_t.where(usable, 0)
    logits = logits.where(counts.unsqueeze(-1), 0).to(dtype)
    if is_density:
        bound = density(logs, logits, x0, x_t, model)
        is_impossible = at(logs.without_step().log_q_bar_row(x0), x_t).squeeze(-1) == -torch.inf
    else:
        log_q = log_q_posterior(logs, x0, x_t)
        bound = _divergence(log_q, log_p_posterior(logs, logits, x_t, model))
        is_impossible = log_q.isnan().any(dim=-1)
    cross_entropy = -at(torch.log_softmax(logits, dim=-1), x0).squeeze(-1)

    if weights.tokens is not None:
        factors = weights.tokens.to(dtype)
        bound, cross_entropy = bound * factors, cross_entropy * factors
    total = weights.ce * cross_entropy if weights.ce else torch.zeros_like(cross_entropy)
    if weights.vb:
        total = total + weights.vb * bound
    results = torch.stack((total, bound, cross_entropy) if with_terms else (total,), dim=-1)
    results = results.where((~is_impossible & inside).unsqueeze(-1), torch.nan)
    results = results.where(counts.unsqueeze(-1), 0)
    results = results if with_terms else results.squeeze(-1)
    return reduced(results, reduction, None if mask is None else mask.sum(), with_terms)


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``KL(q || p)`` of each token, ``(B, *S)``."""
    possible = log_q > -torch.inf  # 0 log 0 = 0; NaN, an impossible pair, must go through
    terms = log_q.exp() * (log_q - log_p.where(possible | log_q.isnan(), 0))
    # Where p is 0 and q below the range of exp, too.
    terms = terms.masked_fill(possible & (log_p == -torch.inf), torch.inf)
    return terms.where(possible | log_q.isnan(), 0).sum(dim=-1)
