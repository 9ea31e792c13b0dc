"""Drawing the time of a training step, and choosing the times of a sampler."""

import torch
from torch import Tensor

from ._checks import check_count

__all__ = ["low_discrepancy", "strided", "uniform"]


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
    return torch.randint(
        1, num_steps + 1, (batch,), generator=generator, device=_device(generator, device)
    )


def low_discrepancy(
    num_steps: int, batch: int, generator: torch.Generator | None = None, device: str | None = None
) -> Tensor:
    """Return times that cover 1..T evenly, each of them uniform on 1..T, int64 ``(batch,)``.

    One uniform number is shifted by i / batch for item i (Kingma et al. 2021, VDM, appendix
    I.1): the loss of a batch varies less than with independent times. Arguments as in
    :func:`uniform`.
    """
    num_steps = check_count("num_steps", num_steps)
    shift = torch.rand(
        (), generator=generator, device=_device(generator, device), dtype=torch.float64
    )
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


def _device(generator: torch.Generator | None, device: str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if generator is None else generator.device
