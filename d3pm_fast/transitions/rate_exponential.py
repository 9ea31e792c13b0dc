"""The exponential of a rate matrix."""

import math

from torch import Tensor

from .._arrays import ArrayLike
from ..chains.exponentials import check_rate, exponential
from ..chains.limits import closure

__all__ = ["rate_exponential"]


def rate_exponential(rate: ArrayLike, time: float) -> Tensor:
    """Return ``exp(time * rate)``, every entry to nearly the last digits, however small it is.

    With s the fastest rate, ``rate + s I`` has no negative entry, and ``exp`` of it is made of
    sums and products of such numbers alone: a Taylor series of a fraction of the time, squared
    again and again. Nothing cancels, so an entry of 1e-200 is as accurate as one of 0.5, and
    forbidden transitions are exactly 0. The factor ``exp(-s time)`` is the one that makes the
    rows sum to 1.

    Args:
        rate: ``(K, K)``, not negative off the diagonal, rows summing to 0.
        time: finite, at least 0.

    Returns:
        float64 ``(K, K)``, rows summing to 1.

    Raises:
        ValueError: not a rate matrix, or a time that is negative or not finite.
    """
    rate = check_rate(rate)
    if not 0 <= time < math.inf:
        raise ValueError(f"time must be finite and at least 0, got {time}")
    return exponential(rate, closure(rate)[1], time)
