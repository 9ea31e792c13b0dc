"""What a file may hold that is read with ``torch.load(..., weights_only=True)``."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

__all__ = ["loadable"]

Made = TypeVar("Made", bound=Callable[..., Any])


def loadable(made: Made) -> Made:
    """Let a class, or a function that a chain refers to, be in such a file."""
    torch.serialization.add_safe_globals([made])
    return made


loadable(partial)  # of functions that are loadable themselves; loading it calls none
