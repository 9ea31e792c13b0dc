"""Drawing the time of a training step, and choosing the times of a sampler."""

import itertools
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from ._checks import check_choice, check_count, check_integer, check_t_min
from ._random import drawing_device, of_generator, uniform_numbers
from .choices import SPACINGS, Spacing
from .importance import ImportanceSampled, between

__all__ = [
    "ImportanceSampled",
    "continuous",
    "grid",
    "low_discrepancy",
    "path",
    "strided",
    "uniform",
]


def uniform(
    num_steps: int, batch: int, generator: torch.Generator | None = None, device: str | None = None
) -> Tensor:
    """Return independent times, uniform on 1..T, int64 ``(batch,)``.

    Args:
        num_steps: T.
        batch: how many.
        generator: None for PyTorch's default generator of the device.
        device: of the result; None for the generator's, or the CPU.
    """
    num_steps = check_count("num_steps", num_steps)
    options = {**of_generator(generator), "device": drawing_device(generator, device)}
    return torch.randint(1, num_steps + 1, (batch,), **options)


def low_discrepancy(
    num_steps: int, batch: int, generator: torch.Generator | None = None, device: str | None = None
) -> Tensor:
    """Return times that cover 1..T evenly, each of them uniform on 1..T, int64 ``(batch,)``.

    One uniform number is shifted by i / batch for item i (Kingma et al. 2021, VDM, appendix
    I.1): the loss of a batch varies less than with independent times.

    Args:
        num_steps: T.
        batch: how many.
        generator: None for PyTorch's default generator of the device.
        device: of the result; None for the generator's, or the CPU.
    """
    num_steps = check_count("num_steps", num_steps)
    numbers = uniform_numbers(batch, True, generator, device)
    return 1 + (numbers * num_steps).long().clamp(max=num_steps - 1)


def continuous(
    batch: int,
    low_discrepancy: bool = False,
    t_min: float = 0.0,
    generator: torch.Generator | None = None,
    device: str | None = None,
) -> Tensor:
    """Return times of continuous time, each of them uniform on [t_min, 1), float64 ``(batch,)``.

    Args:
        batch: how many.
        low_discrepancy: as :func:`low_discrepancy`; else they are independent.
        t_min: in [0, 1); 0 itself is never drawn.
        generator: None for PyTorch's default generator of the device.
        device: of the result; None for the generator's, or the CPU.
    """
    check_t_min(t_min, includes_zero=True)
    return between(t_min, uniform_numbers(batch, low_discrepancy, generator, device))


def grid(steps: int, spacing: Spacing = "uniform", t_min: float = 1e-3) -> list[float]:
    """Return the times that a sampler's steps start from in continuous time, falling from 1.

    Args:
        steps: n, how many.
        spacing: ``"uniform"``, ``1 - i/n``; ``"cosine"``, ``cos(i/n pi/2)``, dense at 1 where
            the tokens of a mask that come first are chosen; ``"log"``, ``t_min^(i/(n - 1))``.
        t_min: of ``"log"``, the last one, in (0, 1).
    """
    steps = check_count("steps", steps)
    check_choice("spacing", spacing, SPACINGS)
    if spacing == "uniform":
        return [1 - i / steps for i in range(steps)]
    if spacing == "cosine":
        return [math.cos(math.pi / 2 * i / steps) for i in range(steps)]
    check_t_min(t_min)
    return [t_min ** (i / max(steps - 1, 1)) for i in range(steps)]


def strided(num_steps: int, steps: int | None = None) -> list[int]:
    """Return the times of a sampler, ``T = t_0 > t_1 > ... > t_steps = 0``, evenly spaced.

    Args:
        num_steps: T.
        steps: how many times the denoiser is called, in 1..T; None for all T.
    """
    num_steps = check_count("num_steps", num_steps)
    steps = num_steps if steps is None else check_count("steps", steps)
    if steps > num_steps:
        raise ValueError(f"steps must be at most T = {num_steps}, got {steps}")
    return [num_steps - num_steps * i // steps for i in range(steps + 1)]


def path(num_steps: int | None, steps: int | Iterable[float] | None = None) -> list[Any]:
    """Return the times of a sampler, ``T = t_0 > t_1 > ... > 0``: strided ones, or any.

    Args:
        num_steps: T; None for continuous time, where T = 1 and times are floats.
        steps: how many times the denoiser is called, in 1..T, evenly spaced; None for all T; or the
            times that steps start from, falling from T: the last step leads to 0. Continuous time
            needs one of them, see :func:`grid`.

    Raises:
        TypeError: a time is no integer.
        ValueError: the times do not begin at T, do not fall, or go below 1; or as
            :func:`strided`.
    """
    if num_steps is None:
        if steps is None:
            raise ValueError("steps is needed: continuous time has no steps of its own")
        times = [float(t) for t in steps] if isinstance(steps, Iterable) else grid(steps)
        return _falling(times, 1.0)
    if steps is None or not isinstance(steps, Iterable):
        return strided(num_steps, steps)
    num_steps = check_count("num_steps", num_steps)
    return _falling([check_integer("times", cast(int, t)) for t in steps], num_steps)


def _falling(times: list[Any], first: float) -> list[Any]:
    if not times or times[0] != first:
        raise ValueError(f"times must begin at T = {first}, got {times[:1]}")
    times.append(0 * first)
    for t, s in itertools.pairwise(times):
        if not s < t:
            raise ValueError(f"times must fall, and stay above 0, got {s} after {t}")
    return times
