"""PyTorch's random numbers: with a generator or without one, and generators made from seeds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import check_count


def of_generator(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword arguments of a generator: torch.compile takes no None for it."""
    return {} if generator is None else {"generator": generator}


def drawing_device(generator: torch.Generator | None, device: str | None) -> torch.device:
    """Return where numbers are drawn: on a device, or else that of the generator, or the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if generator is None else generator.device


def uniform_numbers(
    batch: int, low_discrepancy: bool, generator: torch.Generator | None, device: str | None
) -> Tensor:
    """Return uniform numbers in [0, 1), float64 ``(batch,)``: independent, or evenly spread."""
    options = {**of_generator(generator), "dtype": torch.float64}
    shape = () if low_discrepancy else (batch,)
    number = torch.rand(shape, device=drawing_device(generator, device), **options)
    if not low_discrepancy:
        return number
    spaced = torch.arange(batch, device=number.device, dtype=torch.float64) / max(batch, 1)
    return (number + spaced) % 1


def mixed_seed(seed: int, *key: int) -> int:
    """Return a seed in [0, 2^32) that depends on every bit of ``seed`` and of the key.

    PyTorch's generators on the CPU read the lower 32 bits of a seed and no more.
    """
    check_count("seed", seed, least=0)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def seeded(seed: int, *key: int) -> torch.Generator:
    """Return a generator on the CPU, seeded by :func:`mixed_seed`."""
    return torch.Generator("cpu").manual_seed(mixed_seed(seed, *key))
