"""Schedules of continuous time: the probability alpha(t) that a token is kept up to t in [0, 1].

alpha falls from alpha(0), 1 but for schedules of a noise sigma(0) > 0, to alpha(1). Between s < t
a token is kept with probability ``alpha(t) / alpha(s)``, and at t it is redrawn at the rate
``-alpha'(t) / alpha(t)``. All numbers are float64 and keep their digits at both ends, where
``1 - alpha`` and ``alpha`` are small.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .._checks import check_count
from .._loadable import loadable

__all__ = [
    "ContinuousSchedule",
    "cosine",
    "cosine_maskgit",
    "cosine_squared",
    "from_alpha",
    "geometric",
    "linear",
    "linear_sigma",
    "log_linear",
    "polynomial",
]

Function = Callable[[Tensor], Tensor]
"""Of times, float64 of any shape, to a number for each."""


class ContinuousSchedule(ABC):
    """What every schedule offers; times are numbers in [0, 1], float64 of any shape."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the probability that a token is kept until t."""
        return self._alpha(_times(t))

    def one_minus_alpha(self, t: Tensor | float) -> Tensor:
        """Return ``1 - alpha(t)``, to its own last digits where it is small."""
        return self._one_minus_alpha(_times(t))

    def rate(self, t: Tensor | float) -> Tensor:
        """Return ``-alpha'(t) / alpha(t)``; infinite where alpha(t) = 0."""
        return self._rate(_times(t))

    def beta(self, s: Tensor | float, t: Tensor | float) -> Tensor:
        """Return ``1 - alpha(t) / alpha(s)`` for s <= t, 1 where alpha(s) is 0 already.

        The difference is of ``alpha`` or of ``1 - alpha``, whichever is small.
        """
        s, t = _times(s), _times(t)
        kept, lost = self._alpha(s), self._one_minus_alpha(s)
        of_kept, of_lost = kept - self._alpha(t), self._one_minus_alpha(t) - lost
        fall = torch.where(kept < lost, of_kept, of_lost).clamp(min=0)
        return torch.where(kept > 0, fall / kept, 1.0)

    def times(self, num_steps: int) -> Tensor:
        """Return ``t / T`` for t = 1..T, float64 ``(T,)``: the times of T equal steps."""
        num_steps = check_count("num_steps", num_steps)
        return torch.arange(1, num_steps + 1, dtype=torch.float64, device="cpu") / num_steps

    def betas(self, num_steps: int) -> Tensor:
        """Return the betas of T equal steps, float64 ``(T,)``, as of :mod:`d3pm_fast.schedules`.

        Where alpha(0) < 1, the first step leads from the data to ``1 / T``.
        """
        t = self.times(num_steps)
        return torch.cat((self.one_minus_alpha(t[:1]), self.beta(t[:-1], t[1:])))

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _one_minus_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _rate(self, t: Tensor) -> Tensor: ...


@loadable
@dataclass(frozen=True)
class linear(ContinuousSchedule):
    """``alpha(t) = 1 - t``: the share of masked tokens is t.

    Source: Sahoo et al. 2024 (MDLM), Shi et al. 2024 (MD4), Nie et al. 2025 (LLaDA).
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return t.clone()

    def _rate(self, t: Tensor) -> Tensor:
        return 1 / (1 - t)


@loadable
@dataclass(frozen=True)
class log_linear(ContinuousSchedule):
    """``alpha(t) = 1 - (1 - eps) t``: the noise is ``sigma(t) = -log1p(-(1 - eps) t)``.

    Source: Lou et al. 2024 (SEDD), MDLM.

    Args:
        eps: what is kept at t = 1, in [0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Check eps."""
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must lie in [0, 1), got {self.eps}")

    def _alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * (1 - t)

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def _rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) / self._alpha(t)


@loadable
@dataclass(frozen=True)
class cosine(ContinuousSchedule):
    """``alpha(t) = cos(t pi/2)``.

    Source: Austin et al. 2021 (D3PM), appendix B, with an offset of 0; MDLM.
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * t) ** 2

    def _rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t) / self._alpha(t)


@loadable
@dataclass(frozen=True)
class cosine_squared(ContinuousSchedule):
    """``alpha(t) = cos(t pi/2)^2``.

    Source: Nichol and Dhariwal 2021 (improved DDPM), eq. 17, with an offset of 0; MDLM.
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t)) ** 2

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t) ** 2

    def _rate(self, t: Tensor) -> Tensor:
        return math.pi * torch.sin(math.pi / 2 * t) / torch.sin(math.pi / 2 * (1 - t))


@loadable
@dataclass(frozen=True)
class cosine_maskgit(ContinuousSchedule):
    """``alpha(t) = 1 - cos((1 - t) pi/2)``: the share of masked tokens is a cosine.

    Source: Chang et al. 2022 (MaskGIT); MD4, table 1.
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * (1 - t)) ** 2

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def _rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 / torch.tan(math.pi / 4 * (1 - t))


@loadable
@dataclass(frozen=True)
class polynomial(ContinuousSchedule):
    """``alpha(t) = 1 - t^power``.

    Source: MD4, table 1.

    Args:
        power: above 0; 1 is :class:`linear`. Below 1 the rate is infinite at t = 0.
    """

    power: float

    def __post_init__(self) -> None:
        """Check the power."""
        if not 0 < self.power < math.inf:
            raise ValueError(f"power must be above 0, got {self.power}")

    def _alpha(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.power * t.log())

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return t**self.power

    def _rate(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1) / self._alpha(t)


class _OfSigma(ContinuousSchedule):
    """``alpha(t) = exp(-sigma(t))``."""

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._sigma(t))

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._sigma(t))


@loadable
@dataclass(frozen=True)
class geometric(_OfSigma):
    """``alpha(t) = exp(-sigma(t))``, ``sigma(t) = sigma_min^(1 - t) sigma_max^t``.

    Source: Campbell et al. 2022; SEDD, whose code has 1e-4 and 20 for text.

    Args:
        sigma_min: above 0, the noise of the data at t = 0.
        sigma_max: at least sigma_min.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        """Check the noise."""
        if not 0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min <= sigma_max is needed, got {self}")

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(math.log(self.sigma_max / self.sigma_min) * t)

    def _rate(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_max / self.sigma_min) * self._sigma(t)


@loadable
@dataclass(frozen=True)
class linear_sigma(_OfSigma):
    """``alpha(t) = exp(-sigma(t))``, ``sigma(t) = sigma_min + (sigma_max - sigma_min) t``.

    Source: MDLM's and UDLM's code, with 20 and 0: a constant rate.

    Args:
        sigma_max: at least sigma_min.
        sigma_min: at least 0, the noise of the data at t = 0.
    """

    sigma_max: float
    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        """Check the noise."""
        if not 0 <= self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(f"0 <= sigma_min <= sigma_max is needed, got {self}")

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * t

    def _rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max - self.sigma_min)


def from_alpha(
    alpha: Function, rate: Function | None = None, one_minus_alpha: Function | None = None
) -> ContinuousSchedule:
    """Return the schedule of any alpha.

    Args:
        alpha: times, float64 of any shape in [0, 1], to probabilities that fall with t.
        rate: ``-alpha' / alpha``; by PyTorch's autograd unless given.
        one_minus_alpha: for all digits where alpha is near 1; the difference unless given.

    Raises:
        ValueError: alpha leaves [0, 1], grows, or is not a number, on a grid of 1001 times.
    """
    return _OfAlpha(alpha, rate, one_minus_alpha)


@loadable
@dataclass(frozen=True)
class _OfAlpha(ContinuousSchedule):
    """The schedule of functions of times."""

    of_t: Function
    rate_of_t: Function | None = None
    one_minus: Function | None = None

    def __post_init__(self) -> None:
        """Check alpha on a grid."""
        grid = torch.linspace(0, 1, 1001, dtype=torch.float64, device="cpu")
        values = self.of_t(grid)
        if values.shape != grid.shape or values.dtype != torch.float64:
            got = f"{values.dtype} {tuple(values.shape)}"
            raise ValueError(f"alpha must return float64 numbers of the shape of t, got {got}")
        wrong = ~((values >= 0) & (values <= 1))
        wrong[1:] |= values[1:] > values[:-1]
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            got = f"{values[at]:.6g} at t = {grid[at]:.3g}"
            raise ValueError(f"alpha must lie in [0, 1] and never grow, got {got}")

    def _alpha(self, t: Tensor) -> Tensor:
        return self.of_t(t)

    def _one_minus_alpha(self, t: Tensor) -> Tensor:
        return 1 - self.of_t(t) if self.one_minus is None else self.one_minus(t)

    def _rate(self, t: Tensor) -> Tensor:
        if self.rate_of_t is not None:
            return self.rate_of_t(t)
        with torch.enable_grad():
            leaf = t.detach().requires_grad_()
            value = self.of_t(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return -slope / value.detach()


def _times(t: Tensor | float) -> Tensor:
    times: Tensor = torch.as_tensor(t, dtype=torch.float64)
    inside = (times >= 0) & (times <= 1)
    if times.device.type == "cpu" and not is_compiling() and not bool(inside.all()):
        raise ValueError(f"t must lie in [0, 1], got {times[~inside][0]:.6g}")
    return times
