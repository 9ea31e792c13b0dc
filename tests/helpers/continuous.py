"""Chains in continuous time from their definition: explicit matrices in float64."""

from dataclasses import dataclass
from typing import Any

import torch

from d3pm_fast import transitions
from d3pm_fast.schedules import continuous

K = 5
PI = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.0], dtype=torch.float64)
JUMP = continuous.from_alpha(lambda t: 0.8 * (1 - t))  # between time 0, the data, and later ones
FAMILIES = {
    "uniform": (
        lambda n, alphas: transitions.uniform(n, alphas),
        torch.full((K,), 1 / K, dtype=torch.float64),
    ),
    "absorbing": (
        lambda n, alphas: transitions.absorbing(n, alphas, n - 1, data_has_mask=True),
        torch.eye(K).double()[K - 1],
    ),
    "marginal": (lambda n, alphas: transitions.marginal(n, alphas, PI), PI),
    "mask_and_uniform": (
        lambda n, alphas: transitions.mask_and_uniform(n, alphas, 2, 0.3, data_has_mask=True),
        torch.tensor([0.06, 0.06, 0.76, 0.06, 0.06], dtype=torch.float64),
    ),
}


@dataclass(frozen=True)
class ContinuousChain:
    """``Q_{s->t} = a I + (1 - a) 1 law^T``, ``a = alpha(t) / alpha(s)``, with ``alpha(0) = 1``."""

    transition: transitions.Transition
    schedule: Any
    law: torch.Tensor

    @property
    def num_classes(self):
        return len(self.law)

    def kept(self, t):
        return self.schedule.alpha(t) if t > 0 else torch.ones(()).double()

    def product(self, s, t):
        keep = self.kept(t) / self.kept(s)
        return keep * torch.eye(self.num_classes).double() + (1 - keep) * self.law

    def reached(self, t):
        """``Qbar_t``, to the last digits of a small ``1 - alpha``."""
        lost = self.schedule.one_minus_alpha(t)
        return self.kept(t) * torch.eye(self.num_classes).double() + lost * self.law

    def rates(self, t):
        """``R_t[j, x_t]`` for each x_t, the same for all other j."""
        return self.schedule.rate(t) * self.law

    def forward(self, rows, s, t):
        return rows @ self.product(s, t)

    def columns(self, x_t, s, t):
        return self.product(s, t)[:, x_t].T


def make_continuous_chain(family, schedule):
    make, law = FAMILIES[family]
    return ContinuousChain(make(K, schedule), schedule, law)


def true_density(chain, logits, x0, x_t, t, reverse="joint"):
    """``sum_j R[j, x_t] (m_j - d_j - d_j log(m_j / d_j))`` from explicit matrices, ``(N,)``."""
    t = min(t, 1 - 2**-53)
    matrix = chain.reached(t)
    predicted = torch.softmax(logits, dim=-1)
    if reverse == "posterior_mean":
        reach = matrix[:, x_t].T
        weighed = torch.where(reach > 0, predicted / reach.where(reach > 0, 1), 0)
        alone = (reach > 0).sum(-1, keepdim=True) == 1
        predicted = torch.where(alone, predicted, weighed / weighed.sum(-1, keepdim=True))
    f, d = predicted @ matrix, matrix[x0]
    rows = torch.arange(len(x0))
    m, r = f / f[rows, x_t, None], d / d[rows, x_t, None]
    rates = chain.rates(t)
    rates = rates[:, x_t].T if rates.ndim == 2 else rates[x_t, None]
    gain = (m / r.where(r > 0, 1)).where(r > 0, 1).log()
    terms = torch.where(r > 0, r * (gain.expm1() - gain), m)
    other = torch.arange(K) != x_t[:, None]
    return (rates * terms).where(other, 0).sum(-1)
