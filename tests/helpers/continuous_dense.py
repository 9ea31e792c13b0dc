"""Dense chains in continuous time from their definition: exponentials in 150 digits."""

from dataclasses import dataclass, field
from typing import Any

import mpmath
import torch
from mpmath import mpf

from d3pm_fast import transitions

K = 5
FAMILIES = ["random", "line", "one_way", "masked", "neighbors"]


def rate_of(family, num_classes=K):
    """A rate matrix, and its mask or -1."""
    k, generator = num_classes, torch.Generator().manual_seed(0)
    rate, mask_id = torch.rand(k, k, dtype=torch.float64, generator=generator) ** 3, -1
    if family == "line":  # the corner needs K - 1 jumps
        rate = torch.diag(torch.full((k - 1,), 1.5), 1) + torch.diag(torch.full((k - 1,), 0.5), -1)
    if family == "one_way":  # the higher never lead to the lower: the last class stays
        rate = rate.triu()
    if family == "masked":
        rate[-1], rate[:, -1], mask_id = 0, 0.7, k - 1
    if family == "neighbors":
        points = torch.linspace(0, 1, k, dtype=torch.float64)[:, None] ** 2
        return transitions.nearest_neighbor_rate(points, 2), -1
    rate = rate.double().fill_diagonal_(0)
    return rate - torch.diag(rate.sum(1)), mask_id


def exact_exponential(rate, time):
    """``exp(time * rate)`` in 150 digits, of an mpmath number, as float64."""
    size = len(rate)
    with mpmath.workdps(150):
        matrix = mpmath.matrix(rate.tolist())
        for i in range(size):  # what float64's sums of the rows have lost
            matrix[i, i] = -mpmath.fsum(matrix[i, j] for j in range(size) if j != i)
        found = mpmath.expm(matrix * time)
    rows = [[max(float(found[i, j]), 0.0) for j in range(size)] for i in range(size)]
    possible = torch.matrix_power((rate > 0).double() + torch.eye(size).double(), size) > 0
    return torch.tensor(rows, dtype=torch.float64).where(possible, 0)


@dataclass(frozen=True)
class DenseContinuousChain:
    """``Q_{s->t} = exp(log(alpha_s / alpha_t) R)``, ``alpha(0) = 1``; alpha in mpmath's digits."""

    transition: transitions.Transition
    schedule: Any
    alpha: Any
    rate: torch.Tensor
    made: dict = field(default_factory=dict)

    @property
    def num_classes(self):
        return len(self.rate)

    def product(self, s, t):
        if (s, t) not in self.made:
            with mpmath.workdps(150):
                start = self.alpha(mpf(s)) if s > 0 else mpf(1)
                time = mpmath.log(start / self.alpha(mpf(t)))
            self.made[s, t] = exact_exponential(self.rate, time)
        return self.made[s, t]

    def reached(self, t):
        return self.product(0, t)

    def rates(self, t):
        """``R_t[j, x_t]``, off the diagonal."""
        return self.schedule.rate(t) * self.rate

    def forward(self, rows, s, t):
        return rows @ self.product(s, t)

    def columns(self, x_t, s, t):
        return self.product(s, t)[:, x_t].T


def make_dense_continuous_chain(family, schedule, alpha, num_classes=K):
    """A chain of a family; alpha is the schedule's, of mpmath's numbers."""
    rate, mask_id = rate_of(family, num_classes)
    if family == "neighbors":
        points = torch.linspace(0, 1, num_classes, dtype=torch.float64)[:, None] ** 2
        chain = transitions.nearest_neighbor(points, 2, schedule)
    else:
        chain = transitions.from_rate(rate, schedule)
    assert mask_id < 0 or chain.stationary()[mask_id] == 1
    return DenseContinuousChain(chain, schedule, alpha, rate)
