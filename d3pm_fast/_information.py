"""Divergences in float64 that keep their digits where two laws are nearly the same."""

import torch
from torch import Tensor


def _divergence_per_mass(r: Tensor) -> Tensor:
    """Return ``(1 + r) log(1 + r) - r`` for r >= -1, without cancellation near 0."""
    series = torch.zeros_like(r)
    for n in range(12, 1, -1):
        series = (1 - 2 * (n % 2)) / (n * (n - 1)) + r * series
    whole = torch.xlogy(1 + r, 1 + r) - r
    return torch.where(r.abs() < 0.03, r * r * series, whole)


def divergence_terms(q: Tensor, law: Tensor) -> Tensor:
    """Return terms, none of them negative, whose sum is ``KL(q || law)``, in nats.

    Infinite where q is possible and the law is not.
    """
    possible = law > 0
    terms = law * _divergence_per_mass((q - law) / law.where(possible, 1))
    return terms.where(possible, torch.where(q > 0, torch.inf, 0.0))
