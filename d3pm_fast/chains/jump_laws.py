"""The law of the number of jumps between two times, for chains that jump by one matrix.

``Q_{s->t} = sum_n terms_n P^n``: of ``exp((tau_t - tau_s) R)`` by uniformization, with
``P = I + R / speed`` and a Poisson law (Jensen 1953); of steps ``(1 - beta_t) I + beta_t P`` with
the law of a sum of coins.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from .._loadable import loadable

__all__ = ["Coins", "JumpLaw", "Poisson"]


class JumpLaw(Protocol):
    """How many jumps a chain of T steps makes."""

    @property
    def num_steps(self) -> int:
        """T."""

    @property
    def definition(self) -> tuple[Any, ...]:
        """The numbers that it depends on, see :func:`.fingerprint.fingerprint`."""

    def log_terms(self, s: int, t: int, most: int) -> Tensor:
        """Return the log-probabilities of 0..most jumps between s and t, float64; -inf: never."""

    def terms(self, s: int, t: int, tail: float) -> Tensor:
        """Return the probabilities of 0, 1, ... jumps up to where less than ``tail`` is left."""


@loadable
class Poisson:
    """Jumps at a rate of ``speed`` for the times between ``tau_s`` and ``tau_t``."""

    def __init__(self, speed: float, times: Tensor) -> None:
        self.speed = speed
        self._times = torch.cat([times.new_zeros(1), times]).tolist()

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self._times) - 1

    @property
    def definition(self) -> tuple[Any, ...]:
        """The speed and the times."""
        return self.speed, torch.tensor(self._times, dtype=torch.float64, device="cpu")

    def log_terms(self, s: int, t: int, most: int) -> Tensor:
        """Return the log-probabilities of 0..most jumps, float64."""
        n = torch.arange(most + 1, dtype=torch.float64, device="cpu")
        mean = self._mean(s, t)
        if mean == 0:
            return (n == 0).double().log()
        return n * math.log(mean) - mean - torch.lgamma(n + 1)

    def terms(self, s: int, t: int, tail: float) -> Tensor:
        """Return the probabilities of 0, 1, ... jumps up to where less than ``tail`` is left."""
        mean, digits = self._mean(s, t), -math.log(tail)
        most = math.ceil(mean + math.sqrt(2 * mean * digits) + digits) + 2  # Chernoff
        return up_to_tail(self.log_terms(s, t, most).exp(), tail)

    def _mean(self, s: int, t: int) -> float:
        mean: float = self.speed * (self._times[t] - self._times[s])
        return mean


@loadable
class Coins:
    """One jump at most in each step t, with probability ``beta_t``."""

    def __init__(self, betas: Tensor) -> None:
        self._betas = betas

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self._betas)

    @property
    def definition(self) -> tuple[Any, ...]:
        """The betas."""
        return (self._betas,)

    def log_terms(self, s: int, t: int, most: int) -> Tensor:
        """Return the log-probabilities of 0..most jumps, float64; -inf beyond t - s."""
        betas = self._betas[s:t]
        law = betas.new_full((most + 2,), -torch.inf)  # of n - 1, from n = 0
        law[1] = 0
        for move, stay in zip(betas.log(), torch.log1p(-betas), strict=True):
            law[1:] = torch.logaddexp(law[1:] + stay, law[:-1] + move)
        return law[1:]

    def terms(self, s: int, t: int, tail: float) -> Tensor:
        """Return the probabilities of 0, 1, ... jumps up to where less than ``tail`` is left."""
        return up_to_tail(self.log_terms(s, t, t - s).exp(), tail)


def up_to_tail(law: Tensor, tail: float) -> Tensor:
    """Return a law of 0, 1, ... up to where less than ``tail`` is left, summing to 1."""
    left = law.flip(0).cumsum(0).flip(0)
    law = law[left >= tail]
    return law / law.sum()
