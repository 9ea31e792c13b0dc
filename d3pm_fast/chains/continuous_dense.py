"""Dense chains in continuous time: rates ``-alpha'(t) / alpha(t) R`` of a matrix R."""

from typing import Any, Protocol

import torch
from torch import Tensor

from .._loadable import loadable
from .dense import DenseTransition
from .factored import Form, plain_form
from .products import Matrices
from .structures import MatrixStep
from .time import LAST, InContinuousTime

__all__ = ["ContinuousDenseTransition"]


class WithRates(Matrices, Protocol):
    """What such a chain asks; times are numbers in [0, 1]."""

    def between(self, s: float, t: float, device: torch.device = ...) -> Tensor:
        """Return ``Q_{s->t}``, made on a device."""

    def rates(self, t: float) -> Tensor:
        """Return the rates at t in (0, 1), and 0 on the diagonal, float64 ``(K, K)``."""


@loadable
class ContinuousDenseTransition(InContinuousTime, DenseTransition):
    """The chain of such matrices, which are made for the times that occur.

    A step's record may be of no time, from t to t: it then stands for the rates at t.
    """

    _matrices: WithRates

    def exists(self, s: float, t: float) -> bool:
        """Return whether there is a step from t to s, or there are rates."""
        return 0 <= s < t <= 1 or 0 < s == t <= 1

    def product(self, s: float, t: float) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``, 0 <= s <= t <= 1."""
        return super().product(s, t) if s == t else self._matrices.between(s, t, self.device)

    def step_matrix(self, s: float, t: float) -> Tensor:
        """Return ``Q_{s->t}``; where s = t, the rates at t, and 0 on the diagonal."""
        return self._rates(t) if s == t else self.product(s, t)

    def log_step_matrix(self, s: float, t: float) -> Tensor:
        """Return its logarithm, also of entries below float64's range."""
        return self.step_matrix(s, t).log() if s == t else self.log_product(s, t)

    def step_record(self, t: Tensor, s: Tensor | None = None) -> MatrixStep:
        """Return what operations are given of the steps ``x_t -> x_s``; of the rates without s."""
        s = t if s is None else s.where(s < t, torch.nan)
        return super().step_record(t, s)

    def loss_record(self, t: Tensor, s: Tensor | None = None) -> tuple[Any, bool]:
        """Return what a loss is given of steps, or of the bound's density at t without an s."""
        if s is not None:
            return self.step_record(t, s), False
        return self.step_record(t.where(t != 1, LAST)), True

    def _form(self, q_bar: Tensor, dtype: torch.dtype) -> Form:
        """Return the form that takes no search: few times occur twice."""
        return plain_form(q_bar, dtype)

    def _rates(self, t: float) -> Tensor:
        return self._matrices.rates(min(t, LAST)).to(self.device)

    def _q_between(self, s: float, t: float) -> Tensor:
        return self.product(s, t)
