"""Schedules by formulas of t/T, and from what is known of each step."""

import math

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._checks import check_count, check_probability

__all__ = [
    "cosine",
    "cosine_multinomial",
    "cosine_squared",
    "from_alpha_bars",
    "from_betas",
    "jsd",
    "linear",
    "quadratic",
    "sigmoid",
]


def linear(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas that grow linearly from ``start`` to ``end``.

    Source: Ho et al. 2020 (DDPM), section 4. D3PM uses it for the discretized Gaussian with
    these defaults, and with ``start=0.02, end=1.0`` for the uniform chain (appendix B).

    Args:
        num_steps: T, at least 1.
        start: beta_1, in [0, 1].
        end: beta_T, in [0, 1].

    Returns:
        float64 ``(T,)``.
    """
    return _ramp(num_steps, start, end)


def quadratic(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas whose square roots grow linearly.

    Source: the ``quad`` schedule of Ho et al. 2020's code.

    Args:
        num_steps: T, at least 1.
        start: beta_1, in [0, 1].
        end: beta_T, in [0, 1].

    Returns:
        float64 ``(T,)``.
    """
    _check_range(start, end)
    return from_betas(_ramp(num_steps, math.sqrt(start), math.sqrt(end)) ** 2)


def sigmoid(num_steps: int, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas that follow a logistic curve on [-6, 6] between ``start`` and ``end``.

    Source: Xu et al. 2022 (GeoDiff), appendix.

    Args:
        num_steps: T, at least 1.
        start: beta_1, in [0, 1].
        end: beta_T, in [0, 1].

    Returns:
        float64 ``(T,)``.
    """
    _check_range(start, end)
    curve = torch.sigmoid(_ramp(num_steps, 0.0, 1.0) * 12 - 6)
    return from_betas(start + (end - start) * curve)


def cosine(num_steps: int, offset: float = 0.008, max_beta: float = 1.0) -> Tensor:
    """Return the betas of ``alpha_bar_t = g(t/T) / g(0)``, ``g(r) = cos((r + s)/(1 + s) pi/2)``.

    Source: Austin et al. 2021 (D3PM), appendix B: the cosine is **not** squared. The mask or the
    noise has taken every token at t = T: beta_T is exactly 1. The published code clips betas at
    0.999, which leaves ``alpha_bar_T > 0``; pass ``max_beta=0.999`` to have that.

    Args:
        num_steps: T, at least 1.
        offset: s, at least 0.
        max_beta: upper bound of every beta, in (0, 1].

    Returns:
        float64 ``(T,)``.
    """
    return _cosine(num_steps, offset, max_beta, power=1)


def cosine_multinomial(num_steps: int, offset: float = 0.008) -> Tensor:
    """Return ``beta_t = 1 - sqrt(max(c_t / c_{t-1}, 0.001))`` with ``c_t`` the squared cosine.

    Source: Hoogeboom et al. 2021 (multinomial diffusion), code. The square root makes it the
    plain cosine of :func:`cosine` but for the floor of 0.001, which keeps 3 % of the tokens in
    the last step.

    Args:
        num_steps: T, at least 1.
        offset: s, at least 0.

    Returns:
        float64 ``(T,)``.
    """
    return _cosine(num_steps, offset, 1 - math.sqrt(0.001), power=1)


def cosine_squared(num_steps: int, offset: float = 0.008, max_beta: float = 1.0) -> Tensor:
    """Return the betas of ``alpha_bar_t = g(t/T)^2 / g(0)^2``, ``g`` the cosine of :func:`cosine`.

    Source: Nichol and Dhariwal 2021 (improved DDPM), eq. 17; their code clips at
    ``max_beta=0.999``.

    Args:
        num_steps: T, at least 1.
        offset: s, at least 0.
        max_beta: upper bound of every beta, in (0, 1].

    Returns:
        float64 ``(T,)``.
    """
    return _cosine(num_steps, offset, max_beta, power=2)


def jsd(num_steps: int) -> Tensor:
    """Return ``beta_t = 1 / (T - t + 1)``, so that ``alpha_bar_t = 1 - t/T``.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1; D3PM, section 3.1: the mutual-information
    schedule of an absorbing chain.

    Args:
        num_steps: T, at least 1.

    Returns:
        float64 ``(T,)``.
    """
    num_steps = check_count("num_steps", num_steps)
    return 1.0 / torch.arange(num_steps, 0, -1, dtype=torch.float64, device="cpu")


def from_betas(betas: ArrayLike) -> Tensor:
    """Return your own betas, checked.

    Args:
        betas: ``(T,)``, every entry in [0, 1]; a tensor, an array or a sequence.

    Returns:
        float64 ``(T,)``, a copy on the CPU.

    Raises:
        ValueError: not one-dimensional, empty, or an entry outside [0, 1].
    """
    return check_probabilities("betas", betas)


def from_alpha_bars(alpha_bars: ArrayLike) -> Tensor:
    """Return the betas of a given ``alpha_bar_1 .. alpha_bar_T`` (``alpha_bar_0 = 1`` is implied).

    Args:
        alpha_bars: ``(T,)``, in [0, 1], never growing.

    Returns:
        float64 ``(T,)``: ``beta_t = (alpha_bar_{t-1} - alpha_bar_t) / alpha_bar_{t-1}``, and 1
        where ``alpha_bar_{t-1}`` is already 0.

    Raises:
        ValueError: not one-dimensional, empty, an entry outside [0, 1], or growing.
    """
    bars = check_probabilities("alpha_bars", alpha_bars)
    before = torch.cat([bars.new_ones(1), bars[:-1]])
    if bool((bars > before).any()):
        t = int((bars > before).nonzero()[0]) + 1
        raise ValueError(
            f"alpha_bars must never grow, but alpha_bar_{t} = {bars[t - 1]:.6g} is above "
            f"alpha_bar_{t - 1} = {before[t - 1]:.6g}"
        )
    return torch.where(before > 0, (before - bars) / before, 1.0)


def _ramp(num_steps: int, start: float, end: float) -> Tensor:
    num_steps = check_count("num_steps", num_steps)
    _check_range(start, end)
    return torch.linspace(start, end, num_steps, dtype=torch.float64, device="cpu")


def _check_range(start: float, end: float) -> None:
    check_probability("start", start)
    check_probability("end", end)


def _cosine(num_steps: int, offset: float, max_beta: float, power: int) -> Tensor:
    num_steps = check_count("num_steps", num_steps)
    if not offset >= 0:
        raise ValueError(f"offset must be at least 0, got {offset}")
    check_probability("max_beta", max_beta)
    # 1 - cos(x + h)/cos(x) without the cancellation of 1 - ratio.
    step = math.pi / 2 / (1 + offset) / num_steps
    times = torch.arange(num_steps, dtype=torch.float64, device="cpu")
    angle = math.pi / 2 * offset / (1 + offset) + step * times
    fall = 2 * torch.sin(angle + step / 2) * math.sin(step / 2) / torch.cos(angle)
    fall[-1] = 1.0  # cos(pi/2) is zero, its floating-point value is not
    betas = fall if power == 1 else fall * (2 - fall)
    return betas.clamp(max=max_beta)
