"""Schedules of continuous time: the probability alpha(t) that a token is kept up to t in [0, 1].

alpha falls from alpha(0), 1 but for schedules of a noise sigma(0) > 0, to alpha(1). Between s < t
a token is kept with probability ``alpha(t) / alpha(s)``, and at t it is redrawn at the rate
``-alpha'(t) / alpha(t)``. All numbers are float64 and keep their digits at both ends, where
``1 - alpha`` and ``alpha`` are small.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_count

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


@dataclass(frozen=True)
class ContinuousSchedule:
    """A schedule; its functions take times in [0, 1] of any shape and keep their device."""

    name: str
    _alpha: Function
    _one_minus_alpha: Function
    _rate: Function

    def __repr__(self) -> str:
        """Return how it was made."""
        return f"schedules.continuous.{self.name}"

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
        fall = torch.where(
            kept < lost, kept - self._alpha(t), self._one_minus_alpha(t) - lost
        ).clamp(min=0)
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
        later = self.beta(t[:-1], t[1:])
        return torch.cat((self.one_minus_alpha(t[:1]), later))


def linear() -> ContinuousSchedule:
    """Return ``alpha(t) = 1 - t``.

    Source: Sahoo et al. 2024 (MDLM), Shi et al. 2024 (MD4), Nie et al. 2025 (LLaDA): the share of
    masked tokens is t.
    """
    return ContinuousSchedule("linear()", lambda t: 1 - t, torch.clone, lambda t: 1 / (1 - t))


def log_linear(eps: float = 1e-3) -> ContinuousSchedule:
    """Return ``alpha(t) = 1 - (1 - eps) t``: the noise is ``sigma(t) = -log1p(-(1 - eps) t)``.

    Source: Lou et al. 2024 (SEDD), MDLM.

    Args:
        eps: what is kept at t = 1, in [0, 1).
    """
    _check_share("eps", eps)
    slope = 1 - eps
    return ContinuousSchedule(
        f"log_linear(eps={eps!r})",
        lambda t: eps + slope * (1 - t),
        lambda t: slope * t,
        lambda t: slope / (eps + slope * (1 - t)),
    )


def cosine() -> ContinuousSchedule:
    """Return ``alpha(t) = cos(t pi/2)``.

    Source: Austin et al. 2021 (D3PM), appendix B, with an offset of 0; MDLM.
    """
    return ContinuousSchedule(
        "cosine()",
        lambda t: torch.sin(math.pi / 2 * (1 - t)),
        lambda t: 2 * torch.sin(math.pi / 4 * t) ** 2,
        lambda t: math.pi / 2 * torch.sin(math.pi / 2 * t) / torch.sin(math.pi / 2 * (1 - t)),
    )


def cosine_squared() -> ContinuousSchedule:
    """Return ``alpha(t) = cos(t pi/2)^2``.

    Source: Nichol and Dhariwal 2021 (improved DDPM), eq. 17, with an offset of 0; MDLM.
    """
    return ContinuousSchedule(
        "cosine_squared()",
        lambda t: torch.sin(math.pi / 2 * (1 - t)) ** 2,
        lambda t: torch.sin(math.pi / 2 * t) ** 2,
        lambda t: math.pi * torch.sin(math.pi / 2 * t) / torch.sin(math.pi / 2 * (1 - t)),
    )


def cosine_maskgit() -> ContinuousSchedule:
    """Return ``alpha(t) = 1 - cos((1 - t) pi/2)``: the share of masked tokens is a cosine.

    Source: Chang et al. 2022 (MaskGIT); MD4, table 1.
    """
    return ContinuousSchedule(
        "cosine_maskgit()",
        lambda t: 2 * torch.sin(math.pi / 4 * (1 - t)) ** 2,
        lambda t: torch.sin(math.pi / 2 * t),
        lambda t: math.pi / 2 / torch.tan(math.pi / 4 * (1 - t)),
    )


def polynomial(power: float) -> ContinuousSchedule:
    """Return ``alpha(t) = 1 - t^power``.

    Source: MD4, table 1.

    Args:
        power: above 0; 1 is :func:`linear`. Below 1 the rate is infinite at t = 0.
    """
    if not 0 < power < math.inf:
        raise ValueError(f"power must be above 0, got {power}")
    return ContinuousSchedule(
        f"polynomial({power!r})",
        lambda t: -torch.expm1(power * torch.log(t)),
        lambda t: t**power,
        lambda t: power * t ** (power - 1) / -torch.expm1(power * torch.log(t)),
    )


def geometric(sigma_min: float, sigma_max: float) -> ContinuousSchedule:
    """Return ``alpha(t) = exp(-sigma(t))``, ``sigma(t) = sigma_min^(1 - t) sigma_max^t``.

    Source: Campbell et al. 2022; SEDD, whose code has 1e-4 and 20 for text. The data have noise
    sigma_min at t = 0.

    Args:
        sigma_min: above 0.
        sigma_max: at least sigma_min.
    """
    if not 0 < sigma_min <= sigma_max < math.inf:
        asked = f"sigma_min = {sigma_min}, sigma_max = {sigma_max}"
        raise ValueError(f"0 < sigma_min <= sigma_max is needed, got {asked}")
    growth = math.log(sigma_max / sigma_min)
    return _of_sigma(
        f"geometric({sigma_min!r}, {sigma_max!r})",
        lambda t: sigma_min * torch.exp(growth * t),
        lambda t: growth * sigma_min * torch.exp(growth * t),
    )


def linear_sigma(sigma_max: float, sigma_min: float = 0.0) -> ContinuousSchedule:
    """Return ``alpha(t) = exp(-sigma(t))``, ``sigma(t) = sigma_min + (sigma_max - sigma_min) t``.

    Source: MDLM's and UDLM's code, with 20 and 0: a constant rate.

    Args:
        sigma_max: at least sigma_min.
        sigma_min: at least 0, the noise of the data at t = 0.
    """
    if not 0 <= sigma_min <= sigma_max < math.inf:
        asked = f"sigma_min = {sigma_min}, sigma_max = {sigma_max}"
        raise ValueError(f"0 <= sigma_min <= sigma_max is needed, got {asked}")
    return _of_sigma(
        f"linear_sigma({sigma_max!r}, {sigma_min!r})",
        lambda t: sigma_min + (sigma_max - sigma_min) * t,
        lambda t: torch.full_like(t, sigma_max - sigma_min),
    )


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
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64, device="cpu")
    values = alpha(grid)
    if values.shape != grid.shape or values.dtype != torch.float64:
        got = f"{values.dtype} {tuple(values.shape)}"
        raise ValueError(f"alpha must return float64 numbers of the shape of t, got {got}")
    wrong = ~((values >= 0) & (values <= 1))
    wrong[1:] |= values[1:] > values[:-1]
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"alpha must lie in [0, 1] and never grow, got {values[at]:.6g} at t = {grid[at]:.3g}"
        )

    def slope(t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = t.detach().requires_grad_()
            value = alpha(leaf)
            fall = torch.autograd.grad(-value.sum(), leaf)[0]
        return fall / value.detach()

    return ContinuousSchedule(
        f"from_alpha({getattr(alpha, '__name__', type(alpha).__name__)})",
        alpha,
        one_minus_alpha or (lambda t: 1 - alpha(t)),
        rate or slope,
    )


def _of_sigma(name: str, sigma: Function, rate: Function) -> ContinuousSchedule:
    return ContinuousSchedule(
        name, lambda t: torch.exp(-sigma(t)), lambda t: -torch.expm1(-sigma(t)), rate
    )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def _times(t: Tensor | float) -> Tensor:
    times: Tensor = torch.as_tensor(t, dtype=torch.float64)
    inside = (times >= 0) & (times <= 1)
    if times.device.type == "cpu" and not bool(inside.all()):
        raise ValueError(f"t must lie in [0, 1], got {times[~inside][0]:.6g}")
    return times
