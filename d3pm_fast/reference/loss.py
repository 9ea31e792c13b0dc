"""The variational bound's term of one token, and the hybrid loss (D3PM, eq. 1 and 5)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..records import Loss
from ..reductions import reduced
from .density import density
from .logspace import at, compute_dtype
from .posterior import log_p_posterior, log_q_posterior
from .step import StepLogs, logs_of


def loss(of: Loss[Any], reduction: str) -> Tensor:
    """Return ``vb KL(q || p) + ce (-log s[x_0])`` of every token, nats.

    The step to s = 0 needs no case of its own: q is then one-hot at x_0 and the divergence is
    ``-log p(x_0 | x_t)``. A token whose ``mask`` is False, or whose factor is 0, has loss 0
    and is not looked at. ``reduction`` is none, for ``(B, *S)``, or the sum or the mean of the
    tokens that count. With terms there is one axis more: the loss, the bound's term and the
    cross-entropy.
    """
    dtype = compute_dtype(of.logits.dtype)
    logs = logs_of(of.step, of.logits.shape, dtype)
    logits = logs.allowed(of.logits)
    tokens = tokens_of(of, logits.shape[-1], logs.forbidden)
    x0, x_t = tokens.x0, tokens.x_t
    logits = logits.where(tokens.counts.unsqueeze(-1), 0).to(dtype)
    if of.is_density:
        bound = density(logs, logits, x0, x_t, of.model)
        is_possible = can_reach(logs, x0, x_t)
    else:
        log_q = log_q_posterior(logs, x0, x_t)
        bound = divergence(log_q, log_p_posterior(logs, logits, x_t, of.model))
        is_possible = ~log_q.isnan().any(dim=-1)
    cross_entropy = -at(torch.log_softmax(logits, dim=-1), x0).squeeze(-1)
    return collected(of, reduction, tokens, is_possible, bound, cross_entropy)


class Tokens(NamedTuple):
    """The tokens of a loss.

    Attributes:
        counts: bool ``(B, *S)``: whether there is a loss.
        inside: bool ``(B, *S)``: whether x_0 and x_t are what they may be.
        x0: int64 ``(B, *S)``; 0 for a token that is neither.
        x_t: the same.
    """

    counts: Tensor
    inside: Tensor
    x0: Tensor
    x_t: Tensor


def tokens_of(of: Loss[Any], num_classes: int, forbidden: int) -> Tokens:
    """Return the tokens of a loss, of so many classes, one of which data never hold."""
    x0, x_t = of.x0, of.x_t
    counts = torch.ones_like(x0, dtype=torch.bool) if of.counts is None else of.counts
    inside = (x0 >= 0) & (x0 < num_classes) & (x_t >= 0) & (x_t < num_classes) & (x0 != forbidden)
    usable = counts & inside
    return Tokens(counts, inside, x0.where(usable, 0), x_t.where(usable, 0))


def can_reach(logs: StepLogs, x0: Tensor, x_t: Tensor) -> Tensor:
    """Return whether x_0 can lead to x_t up to the time of a density, bool ``(B, *S)``."""
    return at(logs.without_step().log_q_bar_row(x0), x_t).squeeze(-1) > -torch.inf


def collected(
    of: Loss[Any],
    reduction: str,
    tokens: Tokens,
    is_possible: Tensor,
    bound: Tensor,
    cross_entropy: Tensor,
) -> Tensor:
    """Return a loss from its two terms ``(B, *S)``, NaN for a pair that is not possible."""
    weights = of.weights
    if weights.tokens is not None:
        factors = weights.tokens.to(bound.dtype)
        bound, cross_entropy = bound * factors, cross_entropy * factors
    total = weights.ce * cross_entropy if weights.ce else torch.zeros_like(cross_entropy)
    if weights.vb:
        total = total + weights.vb * bound
    parts = (total, bound, cross_entropy) if of.with_terms else (total,)
    results = torch.stack(parts, dim=-1)
    results = results.where((is_possible & tokens.inside).unsqueeze(-1), torch.nan)
    results = results.where(tokens.counts.unsqueeze(-1), 0)
    results = results if of.with_terms else results.squeeze(-1)
    count = None if of.mask is None else of.mask.sum()
    return reduced(results, reduction, count, of.with_terms)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``KL(q || p)`` of each token, ``(B, *S)``."""
    possible = log_q > -torch.inf  # 0 log 0 = 0; NaN, an impossible pair, must go through
    terms = log_q.exp() * (log_q - log_p.where(possible | log_q.isnan(), 0))
    # Where p is 0 and q below the range of exp, too.
    terms = terms.masked_fill(possible & (log_p == -torch.inf), torch.inf)
    return terms.where(possible | log_q.isnan(), 0).sum(dim=-1)
