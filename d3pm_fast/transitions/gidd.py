"""The chain between masking and uniform noise: tokens are masked, and some redrawn on the way."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_class, check_count
from .._loadable import loadable
from ..chains import MovingTransition, RankOneChain, RankOneTransition
from ..schedules import continuous
from .absorbing import absorbing

__all__ = ["gidd"]


def gidd(
    num_classes: int,
    mask_id: int,
    p_uniform: float,
    gamma: float = 1.0,
    num_steps: int | None = None,
    data_has_mask: bool = False,
) -> RankOneChain:
    """Return ``Qbar_t = ((1 - t) I + 1 (c(t) u + t e_mask)^T) / (1 + c(t))``, t in [0, 1].

    u is uniform on the classes other than the mask, ``c(t) = B (t (1 - t))^(gamma / 2)`` and
    ``B = 2^gamma p_uniform / (1 - p_uniform)``. At t = 1 all is masked. No number of the chain
    is a difference that cancels: all keep their digits at both ends of time.

    Source: von Rütte et al. 2025 (GIDD, Generalized interpolating discrete diffusion).

    Args:
        num_classes: K, at least 2, the mask counted in.
        mask_id: the mask's class, in [0, K).
        p_uniform: the share of tokens that are redrawn from u at t = 1/2, in [0, 1). With 0 it is
            the absorbing chain with ``alpha(t) = 1 - t``.
        gamma: in (0, 2]; the smaller it is, the longer the share of redrawn tokens stays near
            ``p_uniform``. Above 2 a rate would be negative near t = 1.
        num_steps: T, for a chain of T steps with times ``t / T``; None for continuous time.
        data_has_mask: whether x_0 may be the mask; see :func:`~d3pm_fast.transitions.absorbing`.

    Raises:
        ValueError: fewer than 2 classes, ``p_uniform`` outside [0, 1), or gamma outside (0, 2].
        IndexError: ``mask_id`` is not a class.
    """
    num_classes = check_count("num_classes", num_classes, least=2)
    mask_id = check_class("mask_id", mask_id, num_classes)
    if not 0 <= p_uniform < 1:
        raise ValueError(f"p_uniform must lie in [0, 1), got {p_uniform}")
    if not 0 < gamma <= 2:
        raise ValueError(f"gamma must lie in (0, 2], got {gamma}")
    num_steps = None if num_steps is None else check_count("num_steps", num_steps)
    if p_uniform == 0:
        alpha = continuous.linear()
        betas = alpha if num_steps is None else alpha.betas(num_steps)
        return absorbing(num_classes, betas, mask_id, data_has_mask)
    u = torch.full((num_classes,), 1 / (num_classes - 1), dtype=torch.float64, device="cpu")
    u[mask_id] = 0
    marginals = _Gidd(float(p_uniform), float(gamma))
    if num_steps is None:
        return MovingTransition("gidd", num_classes, marginals, u, mask_id, data_has_mask)
    times = torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps
    _, base, mask = marginals.step(times[:-1], times[1:])
    redrawn = base + mask
    share = base / redrawn
    return RankOneTransition("gidd", num_classes, redrawn, u, share, mask_id, data_has_mask)


@loadable
@dataclass(frozen=True)
class _Gidd:
    """Its marginals: ``A = (1 - t) / C``, ``W = c / C``, ``M = t / C`` with ``C = 1 + c``."""

    p_uniform: float
    gamma: float

    def product(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``A, W, M``."""
        c = self._c(t)
        return (1 - t) / (1 + c), c / (1 + c), t / (1 + c)

    def step(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``a, w, m``.

        ``w = c(t) / C(t) (1 - e^y)``, where ``e^y``, the ratio of ``c / (1 - t)`` at s and at t, is
        a product of powers of ``s / t`` and of ``(1 - t) / (1 - s)``.
        """
        c = self._c(t)
        passed = ((t - s) / (1 - s)).where(s < 1, 1)
        left = ((1 - t) / (1 - s)).where(s < 1, 0)
        early = self.gamma / 2
        y = _log_power(s, t, t - s, early) + _log_power(1 - t, 1 - s, t - s, 1 - early)
        keep = left * (1 + self._c(s)) / (1 + c)
        return keep, -torch.expm1(y) * c / (1 + c), passed / (1 + c)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``W' + r W`` and ``M' + r M``, sums of positive terms."""
        c = self._c(t)
        mask = 1 / ((1 - t) * (1 + c))
        return mask * c * (self.gamma * (1 - t) + (2 - self.gamma) * t) / (2 * t), mask

    def _c(self, t: Tensor) -> Tensor:
        largest = 2**self.gamma * self.p_uniform / (1 - self.p_uniform)
        return largest * (t * (1 - t)) ** (self.gamma / 2)


def _log_power(part: Tensor, whole: Tensor, rest: Tensor, power: float) -> Tensor:
    """Return ``power log(part / whole)``, 0 for a whole of 0; ``rest`` is ``whole - part``."""
    near = torch.special.xlog1py(power, -rest / whole)
    far = torch.special.xlogy(power, part / whole)
    return torch.where(2 * part < whole, far, near).where(whole > 0, 0)
