"""Chains whose law of redrawn tokens moves, from their marginals: explicit matrices.

All numbers are calculated in 60 digits, the rates by a numerical derivative.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import torch
from mpmath import mpf

from d3pm_fast import transitions

K, MASK = 5, 2
PI = torch.tensor([0.1, 0.5, 0.0, 0.4, 0.0], dtype=torch.float64)
FAMILIES = {  # p_uniform and gamma
    "gidd": (0.2, 1.0),
    "gidd, early": (0.3, 0.5),
    "gidd, late": (0.4, 2.0),
    "from_marginals": (),
}


@dataclass(frozen=True)
class MovingChain:
    """``Qbar_t = A I + 1 (W pi + M e_mask)^T`` by a function of t that returns A, W, M."""

    transition: transitions.Transition
    marginals: Callable
    pi: torch.Tensor
    num_classes: int = K

    def coefficients(self, s, t):
        """``a, w, m`` of ``Q_{s->t}``, in 60 digits."""
        with mpmath.workdps(60):
            before, after = self.marginals(mpf(s)), self.marginals(mpf(t))
            keep = after[0] / before[0]
            return [keep, *(x - keep * y for x, y in zip(after[1:], before[1:], strict=True))]

    def rate_coefficients(self, t):
        """``W' - W A' / A`` and ``M' - M A' / A``."""
        with mpmath.workdps(60):
            t = mpf(t)
            now, h = self.marginals(t), min(t, 1 - t) * mpf(10) ** -20
            pairs = zip(self.marginals(t + h), self.marginals(t - h), strict=True)
            fall, *slopes = ((after - before) / (2 * h) for after, before in pairs)
            return [x - fall / now[0] * y for x, y in zip(slopes, now[1:], strict=True)]

    def product(self, s, t):
        keep, base, mask = map(float, self.coefficients(s, t))
        return keep * torch.eye(K).double() + self._spread(base, mask)

    def reached(self, t):
        return self.product(0, t)

    def rates(self, t):
        return self._spread(*map(float, self.rate_coefficients(t)))

    def forward(self, rows, s, t):
        return rows @ self.product(s, t)

    def columns(self, x_t, s, t):
        return self.product(s, t)[:, x_t].T

    def _spread(self, base, mask):
        return base * self.pi + mask * torch.eye(K).double()[MASK]


def gidd(p_uniform, gamma):
    """The marginals of GIDD, and its law of redrawn tokens."""

    def marginals(t):
        p, g = mpf(p_uniform), mpf(gamma)
        c = 2**g * p / (1 - p) * (t * (1 - t)) ** (g / 2)
        return [(1 - t) / (1 + c), c / (1 + c), t / (1 + c)]

    u = torch.full((K,), 1 / (K - 1), dtype=torch.float64)
    u[MASK] = 0
    return marginals, u


def moving(t):
    """Marginals for numbers or tensors: masked late, and nothing is left at t = 1."""
    return [(1 - t) ** 2, 2 * t * (1 - t) / (1 + t), t * t * (3 - t) / (1 + t)]


def make_moving_chain(name):
    """A chain by its name in ``FAMILIES``."""
    if name == "from_marginals":
        parts = [lambda t, i=i: moving(t)[i] for i in range(3)]
        return MovingChain(transitions.from_marginals(K, *parts, MASK, PI), moving, PI)
    options = FAMILIES[name]
    return MovingChain(transitions.gidd(K, MASK, *options), *gidd(*options))
