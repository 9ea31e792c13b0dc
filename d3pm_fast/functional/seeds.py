"""What an item's random numbers depend on."""

import torch
from torch import Tensor

from .._checks import check_count, check_shape
from .._random import of_generator

LAST_POSITION = 1 << 40


def draw_seeds(batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a random seed for each item.

    Two calls for 3 and 5 items give the seeds that one call for 8 gives.

    Args:
        batch: how many.
        generator: where they come from; None for PyTorch's default generator of the CPU.

    Returns:
        int64 ``(batch,)``, on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    bounds = torch.iinfo(torch.int64)
    options = of_generator(generator)
    return torch.randint(bounds.min, bounds.max, (batch,), device=device, **options)


def check_offset(position_offset: int, num_positions: int) -> int:
    """Return where so many positions begin, such that all of them are below 2^40."""
    offset = check_count("position_offset", position_offset, least=0)
    last = offset + num_positions
    if last > LAST_POSITION:
        raise ValueError(f"positions must be at most 2^40, position_offset makes them {last}")
    return offset


def check_seeds(seeds: Tensor | None, generator: torch.Generator | None, tokens: Tensor) -> Tensor:
    """Return the seed of each item of the tokens, drawn where none are given."""
    if seeds is None:
        return draw_seeds(len(tokens), generator).to(tokens.device)
    if generator is not None:
        raise ValueError("give seeds or a generator, not both")
    check_shape("seeds", seeds, (len(tokens),))
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be an int64 tensor, got {seeds.dtype}")
    return seeds.contiguous()
