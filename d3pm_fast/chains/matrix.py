"""What chains of matrices have in common, held or not."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from .base import Transition
from .handles import new_handle
from .structures import MatrixStep

__all__ = ["MatrixTransition"]


class MatrixTransition(Transition):
    """A chain whose ``Q_{s->t}`` are matrices without a structure; a copy has its own handle."""

    _TABLES = ("_stationary",)
    _stationary: Tensor
    handle: int

    @property
    def device(self) -> torch.device:
        """Where the numbers are handed out."""
        return self._stationary.device

    def stationary(self) -> Tensor:
        """Return the distribution that x_T tends to whatever x_0 was, float64 ``(K,)``."""
        return self._stationary

    @abstractmethod
    def product(self, s: Any, t: Any) -> Tensor:
        """Return ``Q_{s->t}``, float64 ``(K, K)``; 0 <= s <= t <= T."""

    @abstractmethod
    def log_product(self, s: Any, t: Any) -> Tensor:
        """Return ``log Q_{s->t}``, float64 ``(K, K)``, also of entries below float64's range."""

    def exists(self, s: float, t: float) -> bool:
        """Return whether there is a step from t to s."""
        return 0 <= s < t <= self.last_time

    def step_matrix(self, s: Any, t: Any) -> Tensor:
        """Return what a step's record stands for, float64 ``(K, K)``: ``Q_{s->t}``."""
        return self.product(s, t)

    def log_step_matrix(self, s: Any, t: Any) -> Tensor:
        """Return the logarithm of :meth:`step_matrix`, also of entries below float64's range."""
        return self.log_product(s, t)

    def step_record(self, t: Tensor, s: Tensor | None = None) -> MatrixStep:
        """Return what operations are given of the steps ``x_t -> x_s``; None for t - 1."""
        return MatrixStep(t, s, self.handle)

    def _register(self) -> None:
        self.handle = new_handle(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()

    def _q_matrix(self, t: int) -> Tensor:
        return self.product(t - 1, t)

    def _q_bar_matrix(self, t: int) -> Tensor:
        return self.product(0, t)

    def _log_q_matrix(self, t: int) -> Tensor:
        return self.log_product(t - 1, t)
