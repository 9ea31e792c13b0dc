"""Exponentials of one rate matrix for many times, each by a few products.

A time is split by its digits to the base 8, ``time = a 8^n + b 8^(n - 1) + ... + rest``. What the
digits stand for is made once and for all, and a short series does the rest, so that a time that
has not been seen yet takes three products in place of some 16. As in :mod:`.exponentials` nothing
is ever subtracted.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .cache import ByteCache

__all__ = ["Ladder"]

_DIGITS = 3  # the rest is less than 1/256 of the time
_LOST = 1e-20  # the part of an entry that the series may leave out
_MOST_JUMPS = 0.5  # on the way to an entry, within the rest


class Ladder:
    """The exponentials of a rate matrix.

    Args:
        rate: R, ``(K, K)``.
        reach: within how many jumps all that a class leads to is.
        whole: returns ``exp(time * R)`` by other means.
        cache: for what is used again.
    """

    def __init__(
        self, rate: Tensor, reach: int, whole: Callable[[float], Tensor], cache: ByteCache
    ) -> None:
        self._speed = float(-rate.diagonal().min())
        self._rate, self._reach, self._whole, self._cache = rate, reach, whole, cache

    def exponential(self, time: float) -> Tensor:
        """Return ``exp(time * R)`` for a time above 0, every entry to nearly the last digits.

        An entry is carried by paths of some ``reach + speed * time`` jumps.
        """
        jumps = self._reach + self._speed * time
        if jumps > 256 * _MOST_JUMPS or self._speed == 0:
            return self._whole(time)
        unit, rest, factors = 2.0 ** (math.frexp(time)[1] - 3), time, []
        for _ in range(_DIGITS):
            digit = rest // unit * unit  # exact, as the difference is
            if digit > 0:
                factors.append(self._kept(digit))
            rest, unit = rest - digit, unit / 8
        result = factors[0]
        for factor in (*factors[1:], self._short(rest, jumps * rest / time)):
            result = result @ factor
            result /= result.sum(1, keepdim=True)
        return result

    def _kept(self, time: float) -> Tensor:
        found: Tensor = self._cache.get(
            ("whole", time, self._rate.device), lambda: self._whole(time), lambda m: m.nbytes
        )
        return found

    def _short(self, time: float, jumps: float) -> Tensor:
        """Return ``exp(time * R)`` up to factors of rows, by its series."""
        terms, lost = [1.0], jumps
        while lost > _LOST:
            terms.append(terms[-1] * self._speed * time / len(terms))
            lost *= jumps / len(terms)
        powers = self._powers()[: len(terms)]
        weights = torch.tensor(terms, dtype=torch.float64, device=powers.device)
        return (weights @ powers.flatten(1)).view_as(self._rate)

    def _powers(self) -> Tensor:
        """Return the powers of ``I + R / speed``, ``(n, K, K)``."""

        def make() -> Tensor:
            jump = self._rate / self._speed
            jump.diagonal().add_(1)
            powers = [torch.eye(len(jump), dtype=torch.float64, device=jump.device)]
            while _MOST_JUMPS ** len(powers) / math.factorial(len(powers)) > _LOST:
                powers.append(powers[-1] @ jump)
            return torch.stack(powers)

        key = "powers", self._rate.device
        found: Tensor = self._cache.get(key, make, lambda powers: powers.nbytes)
        return found
