"""Rank-one chains in continuous time whose law of redrawn tokens moves with time.

``Qbar_t = A I + 1 (W pi + M e_mask)^T``, where ``A + W + M = 1`` are any functions of t, so that
``Q_{s->t} = a I + 1 (w pi + m e_mask)^T`` has ``a = A(t) / A(s)``, ``w = W(t) - a W(s)`` and
``m = M(t) - a M(s)``.
"""

from typing import Protocol

import torch
from torch import Tensor

from .._loadable import loadable
from .continuous import ContinuousChain
from .rank_one import LEAST

__all__ = ["Marginals", "MovingTransition"]

_FIRST, _LAST = 1e-9, 1 - 1e-9  # times whose probabilities have to be within a dtype's range


class Marginals(Protocol):
    """What such a chain asks; times are numbers in [0, 1], float64 of any shape."""

    def product(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``A, W, M`` of ``Qbar_t``; at t = 0, the data, 1, 0, 0."""

    def step(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``a, w, m`` of ``Q_{s->t}``, s nowhere above t."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``W' + r W`` and ``M' + r M`` with ``r = -A' / A``, for t in (0, 1)."""


@loadable
class MovingTransition(ContinuousChain):
    """The chain of such functions."""

    def __init__(
        self,
        family: str,
        num_classes: int,
        marginals: Marginals,
        pi: Tensor | None,
        mask_id: int = -1,
        data_has_mask: bool = True,
    ) -> None:
        super().__init__(family, num_classes, pi, mask_id, data_has_mask)
        self.marginals = marginals
        self._end = self.product_coefficients(torch.ones((), dtype=torch.float64, device="cpu"))
        inner = torch.arange(1, 16, dtype=torch.float64, device="cpu") / 16
        products = self.product_coefficients(torch.cat([inner, inner.new_tensor([_FIRST, _LAST])]))
        _, base, mask = products.unbind(-1)
        entries = torch.cat([base * self._rarest, mask])
        self.needs_float64 = bool(((entries > 0) & (entries < LEAST[torch.float32])).any())
        self._defined_by(products, self._end, () if pi is None else pi)

    def product_coefficients(self, t: Tensor) -> Tensor:
        """Return ``(Abar_t, Wbar_t, Mbar_t)`` of ``Qbar_t``, float64 ``(*t.shape, 3)``.

        Args:
            t: float64 in [0, 1], any shape.
        """
        return torch.stack(self.marginals.product(t), dim=-1)

    def step_coefficients(self, s: Tensor, t: Tensor) -> Tensor:
        """Return what the step ``x_t -> x_s`` needs, float64 ``(*t.shape, 7)``.

        Args:
            s: float64 in [0, 1], any shape.
            t: float64 in [0, 1], the shape of ``s``, nowhere below it.
        """
        return torch.stack([*self.marginals.step(s, t), *self.marginals.product(s), s], dim=-1)

    def stationary(self) -> Tensor:
        """Return the distribution of x_1, whatever x_0 was, float64 ``(K,)``.

        Where ``A(1) > 0`` it is that of the tokens that were redrawn.
        """
        _, base, mask = self._end
        return self._spread_vector(base / (base + mask), mask / (base + mask))

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.marginals.rates(t)
