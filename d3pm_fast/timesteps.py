"""Drawing the time of a training step, and choosing the times of a sampler."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from ._checks import check_count, check_integer
from ._random import of_generator

__all__ = ["low_discrepancy", "path", "strided", "uniform"]


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
    options = of_generator(generator)
    return torch.randint(1, num_steps + 1, (batch,), device=_device(generator, device), **options)


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
    options = of_generator(generator)
    shift = torch.rand((), device=_device(generator, device), dtype=torch.float64, **options)
    spaced = torch.arange(batch, device=shift.device, dtype=torch.float64) / max(batch, 1)
    return 1 + ((shift + spaced) % 1 * num_steps).long().clamp(max=num_steps - 1)


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


def path(num_steps: int, steps: int | Iterable[int] | None = None) -> list[int]:
    """Return the times of a sampler, ``T = t_0 > t_1 > ... > 0``: strided ones, or any.

    Args:
        num_steps: T.
        steps: how many times the denoiser is called, in 1..T, evenly spaced; None for all T; or the
            times that steps start from, falling from T: the last step leads to 0.

    Raises:
        TypeError: a time is no integer.
        ValueError: the times do not begin at T, do not fall, or go below 1; or as
            :func:`strided`.
    """
    if steps is None or not isinstance(steps, Iterable):
        return strided(num_steps, steps)
    num_steps = check_count("num_steps", num_steps)
    times = [check_integer("times", t) for t in steps]
    if not times or times[0] != num_steps:
        raise ValueError(f"times must begin at T = {num_steps}, got {times[:1]}")
    times.append(0)
    for t, s in itertools.pairwise(times):
        if s >= t:
            raise ValueError(f"times must fall, and stay above 0, got {s} after {t}")
    return times


def _device(generator: torch.Generator | None, device: str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if generator is None else generator.device
