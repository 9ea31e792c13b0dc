"""Continuous time: what a chain asks of its schedule, and what all chains in it offer."""

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from .base import Transition

__all__ = ["LAST", "InContinuousTime", "Schedule"]

LAST = 1 - 2**-53  # the time of a density at t = 1, where a rate may be infinite


@runtime_checkable
class Schedule(Protocol):
    """What a chain asks of its schedule, see :mod:`d3pm_fast.schedules.continuous`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the probability that a token is kept until t."""

    def one_minus_alpha(self, t: Tensor) -> Tensor:
        """Return ``1 - alpha(t)``."""

    def rate(self, t: Tensor) -> Tensor:
        """Return ``-alpha'(t) / alpha(t)``."""

    def beta(self, s: Tensor, t: Tensor) -> Tensor:
        """Return ``1 - alpha(t) / alpha(s)``."""


class InContinuousTime(Transition):
    """A chain whose times are numbers in [0, 1]; time 0 are the data."""

    num_steps: Any = None

    def q_matrix(self, t: float, s: float = 0.0) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``, for looking and for tests.

        Args:
            t: in [0, 1].
            s: in [0, t].

        Raises:
            IndexError: a time elsewhere.
        """
        if not 0 <= s <= self._check_time(t, least=0):
            raise IndexError(f"s must lie in [0, t], got s = {s} with t = {t}")
        return self._q_between(float(s), float(t)).clone()

    @abstractmethod
    def _q_between(self, s: float, t: float) -> Tensor: ...

    def _q_matrix(self, t: float) -> Tensor:
        return self.q_matrix(t)

    def _q_bar_matrix(self, t: float) -> Tensor:
        return self.q_matrix(t)

    def _check_time(self, t: float, least: int) -> Any:
        if not 0 <= t <= 1:
            raise IndexError(f"t must lie in [0, 1], got {t}")
        return t
