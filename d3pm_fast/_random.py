"""PyTorch's random numbers, with a generator or without one."""

from typing import Any

import torch


def of_generator(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword arguments of a generator: torch.compile takes no None for it."""
    return {} if generator is None else {"generator": generator}
