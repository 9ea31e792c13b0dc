"""One number that tells chains apart: the same in every process and version of PyTorch.

A sum, to be compared with a tolerance, and not a hash: the last digits of the sines and logarithms
that schedules are made of differ between processors.
"""

import math
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint", "number_of_name"]

_MOST = 1 << 16  # entries of a tensor that are looked at
_TURN = (math.sqrt(5) - 1) / 2  # multiples of it fill [0, 1) evenly


def fingerprint(*parts: Any) -> float:
    """Return the number of names, numbers, tensors, chains, and partial functions of such.

    Of a large tensor 65536 entries are looked at, so that it takes milliseconds.
    """
    total = 0.0
    for place, part in enumerate(_leaves(parts), start=1):
        total += (1 + place * _TURN % 1) * _digest(part)
    return total


def number_of_name(name: str) -> int:
    """Return 32 bits for a name."""
    return zlib.crc32(name.encode())


def _leaves(parts: Any) -> Iterator[Tensor | float]:
    for part in parts:
        if isinstance(part, partial):
            yield from _leaves((part.func.__name__, *part.args))
        elif isinstance(part, tuple | list):
            yield from _leaves(part)
        elif isinstance(part, str):
            yield number_of_name(part) / 2**32
        elif isinstance(part, Tensor | float | int):
            yield part
        else:
            yield part.fingerprint


def _digest(part: Tensor | float) -> float:
    """Return a sum of the entries with weights in [1, 2), for their size, and the size's log."""
    if not isinstance(part, Tensor):
        part = torch.tensor([part], dtype=torch.float64, device="cpu")
    entries = part.detach().flatten()
    entries = entries[:: -(-len(entries) // _MOST) | 1].cpu().double()
    weights = 1 + torch.arange(1, len(entries) + 1, dtype=torch.float64, device="cpu") * _TURN % 1
    size = float(entries.abs().sum())
    return float(weights @ entries) / size + math.log1p(size) if size > 0 else 0.0
