"""Guidance, temperature and truncation of a prediction, for sampling."""

import math

import torch
from torch import Tensor

from ..records import Shaping
from .logspace import compute_dtype


def shaped_logits(logits: Tensor, shaping: Shaping) -> Tensor:
    """Return logits ``(B, *S, K)`` of the compute dtype, up to a number a row.

    In this order: ``unconditional + guidance (logits - unconditional)``, -inf where either is;
    divided by the temperature; -inf but for the ``top_k`` largest; of these -inf but for the
    fewest, largest first, whose probability reaches ``top_p``; -inf but for those of at least
    ``min_p`` times the probability of the largest. Of equal logits the class of the lower index
    comes first.
    """
    unconditional, guidance, temperature, top_k, top_p, min_p, excluded = shaping
    made = logits.to(compute_dtype(logits.dtype))
    if excluded >= 0:
        classes = torch.arange(logits.shape[-1], device=logits.device)
        made = made.masked_fill(classes == excluded, -torch.inf)
    if unconditional is not None:
        other = unconditional.to(made.dtype)
        forbidden = (made == -torch.inf) | (other == -torch.inf)
        made = torch.lerp(other, made, guidance).masked_fill(forbidden, -torch.inf)
    if temperature != 1:
        top = made.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(made.dtype).min)
        made = (made - top) / temperature  # no digit is lost near the largest, and none overflows
    if top_k < made.shape[-1]:
        made = _keep(made, torch.ones_like(made), top_k)
    if top_p < 1:
        # Not divided by their sum: weights of 1 have exact sums.
        weights = (made - made.amax(dim=-1, keepdim=True)).double().exp()
        made = _keep(made, weights, top_p * weights.sum(dim=-1, keepdim=True))
    if min_p > 0:
        below_top = made - made.amax(dim=-1, keepdim=True)
        made = made.masked_fill(below_top < math.log(min_p), -torch.inf)
    return made


def shaped_row(token: tuple[int, ...], logits: Tensor, shaping: Shaping) -> Tensor:
    """Return the shaped logits of one token, ``(K,)``."""
    other = shaping.unconditional
    of_token = shaping._replace(unconditional=None if other is None else other[token])
    return shaped_logits(logits[token], of_token)


def _keep(logits: Tensor, weights: Tensor, target: Tensor | float) -> Tensor:
    """Forbid all but the fewest classes, largest first, whose weights reach the target."""
    ranked = logits.argsort(dim=-1, descending=True, stable=True)
    weights = weights.gather(-1, ranked)
    before = weights.cumsum(dim=-1) - weights
    forbidden = torch.empty_like(logits, dtype=torch.bool).scatter(-1, ranked, before >= target)
    return logits.masked_fill(forbidden, -torch.inf)
