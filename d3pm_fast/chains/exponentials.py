"""Chains of matrix exponentials: ``Qbar_t = exp(tau(t) R)`` for a rate matrix R.

Source: D3PM, appendix A.4.2.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_float64, check_law, check_square
from .._loadable import loadable
from .cache import ByteCache
from .continuous_dense import ContinuousDenseTransition
from .dense import DenseTransition
from .ladder import Ladder
from .limits import closure, stationary_law
from .logs import LEAST, log_matmul
from .time import Schedule

__all__ = [
    "Exponentials",
    "ScheduledExponentials",
    "check_rate",
    "check_rising",
    "exponential",
    "rate_chain",
]

_CPU = torch.device("cpu")
_TERMS = 16  # of a Taylor series, a multiple of 4


def rate_chain(
    family: str,
    rate: Tensor,
    times: ArrayLike | Schedule,
    stationary: ArrayLike | None,
    mask_id: int,
    memory_budget: int,
) -> DenseTransition:
    """Return the chain of a rate matrix that is already checked, see :func:`from_rate`."""
    if not isinstance(times, Schedule):
        times = check_rising("times", times)
    if stationary is None:
        law = stationary_law(rate)
    else:
        law = check_law("stationary", stationary, len(rate))
    if isinstance(times, Tensor):
        return DenseTransition(family, Exponentials(rate, times, memory_budget), law, mask_id)
    scheduled = ScheduledExponentials(rate, times, memory_budget)
    return ContinuousDenseTransition(family, scheduled, law, mask_id)


class _OfRate(ABC):
    """The matrices ``Q_{s->t} = exp((tau(t) - tau(s)) R)``, see :class:`.products.Matrices`."""

    def __init__(self, rate: Tensor, memory_budget: int) -> None:
        self.num_classes = len(rate)
        self.memory_budget = memory_budget
        self.cache = ByteCache(memory_budget)
        self._rate = rate
        self._possible, self._reach = closure(rate)

    @abstractmethod
    def _time(self, s: Any, t: Any) -> float:
        """Return ``tau(t) - tau(s)``."""

    def between(self, s: Any, t: Any) -> Tensor:
        """Return ``Q_{s->t}``."""
        return self._remember(exponential, s, t)

    def log_between(self, s: Any, t: Any) -> Tensor:
        """Return ``log Q_{s->t}``, also of entries below float64's range."""
        matrix = self.between(s, t)
        moves = 0 < self._time(s, t) < math.inf
        if moves and bool((self._possible & (matrix < LEAST)).any()):
            return self._remember(log_exponential, s, t)
        return matrix.log()

    def _remember(self, make: Callable[[Tensor, int, float], Tensor], s: Any, t: Any) -> Tensor:
        found: Tensor = self.cache.get(
            (make.__name__, s, t),
            lambda: make(self._rate, self._reach, self._time(s, t)),
            lambda matrix: matrix.nbytes,
        )
        return found


@loadable
class Exponentials(_OfRate):
    """Those of T steps.

    Args:
        rate: R, checked.
        times: ``tau_1 .. tau_T``, checked.
        memory_budget: bytes that the cache may hold.
    """

    def __init__(self, rate: Tensor, times: Tensor, memory_budget: int) -> None:
        super().__init__(rate, memory_budget)
        self.num_steps = len(times)
        self._times = torch.cat([times.new_zeros(1), times]).tolist()

    @property
    def definition(self) -> tuple[Any, ...]:
        """R and the times."""
        return self._rate, torch.tensor(self._times, dtype=torch.float64, device="cpu")

    def _time(self, s: int, t: int) -> float:
        return self._times[t] - self._times[s]  # type: ignore[no-any-return]


@loadable
class ScheduledExponentials(_OfRate):
    """Those in continuous time, where ``tau(t) = -log alpha(t)``, and 0 at time 0, the data.

    Args:
        rate: R, checked.
        schedule: alpha.
        memory_budget: bytes that the cache may hold.

    Raises:
        ValueError: alpha ends at 0, and what the chain tends to depends on x_0.
    """

    num_steps: Any = None

    def __init__(self, rate: Tensor, schedule: Schedule, memory_budget: int) -> None:
        super().__init__(rate, memory_budget)
        self.schedule = schedule
        # Of steps over which nothing is kept.
        self._limit = stationary_law(rate) if self._time(0.0, 1.0) == math.inf else None

    @property
    def definition(self) -> tuple[Any, ...]:
        """R, and alpha on a grid."""
        grid = torch.linspace(0, 1, 17, dtype=torch.float64, device="cpu")
        return self._rate, self.schedule.alpha(grid)

    def between(self, s: float, t: float, device: torch.device = _CPU) -> Tensor:
        """Return ``Q_{s->t}``, made on a device."""

        def make() -> Tensor:
            time = self._time(s, t)
            if time == math.inf and self._limit is not None:
                return self._limit.to(device).repeat(self.num_classes, 1)
            rate = self._rate.to(device)
            whole = partial(exponential, rate, self._reach)
            if time == 0:
                return whole(time)
            return Ladder(rate, self._reach, whole, self.cache).exponential(time)

        found: Tensor = self.cache.get(("product", s, t, device), make, lambda made: made.nbytes)
        return found

    def rates(self, t: float) -> Tensor:
        """Return the rates at t in (0, 1), and 0 on the diagonal."""
        at = torch.tensor(t, dtype=torch.float64, device="cpu")
        return self._rate.clone().fill_diagonal_(0) * self.schedule.rate(at)

    def _time(self, s: float, t: float) -> float:
        """Return ``log(alpha_s / alpha_t)``, to the last digits at both ends of [0, 1]."""
        times = torch.tensor([s, t], dtype=torch.float64, device="cpu")
        lost = self.schedule.one_minus_alpha(times).where(times > 0, 0)
        beta = self.schedule.beta(*times) if s > 0 else lost[1]
        if beta < 0.5:
            return float(-torch.log1p(-beta))
        kept = self.schedule.alpha(times)
        if kept[1] == 0:
            return math.inf
        start, end = torch.log1p(-lost).where(lost < 0.5, kept.log()).tolist()
        return float(start - end)


def check_rate(rate: ArrayLike) -> Tensor:
    """Return a rate matrix as a float64 CPU copy whose diagonal is minus the rest of its row."""
    matrix = check_square("rate", rate)
    rest = matrix.clone().fill_diagonal_(0)
    if bool((rest < 0).any()):
        i, j = (int(index) for index in (rest < 0).nonzero()[0])
        raise ValueError(
            f"rate must not be negative off the diagonal, got {matrix[i, j]:.6g} at ({i}, {j})"
        )
    largest = float(matrix.abs().max())
    sums = matrix.sum(1).abs()
    if float(sums.max()) > 1e-6 * largest:
        row = int(sums.argmax())
        raise ValueError(
            f"rows of rate must sum to 0 within 1e-6 of its largest entry, {largest:.6g}, "
            f"but row {row} sums to {matrix[row].sum():.6g}"
        )
    return rest - torch.diag(rest.sum(1))


def check_rising(name: str, values: ArrayLike) -> Tensor:
    """Return finite times, at least 0 and never falling, as float64 ``(T,)``."""
    array = as_float64(name, values)
    if array.ndim != 1 or array.numel() == 0:
        raise ValueError(f"{name} must have shape (T,) with T >= 1, got {tuple(array.shape)}")
    if not bool(array.isfinite().all()):
        t = int((~array.isfinite()).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {array[t]:.6g} at t = {t + 1}")
    steps = array.diff(prepend=array.new_zeros(1))
    if bool((steps < 0).any()):
        t = int((steps < 0).nonzero()[0])
        raise ValueError(
            f"{name} must be at least 0 and never fall, got {array[t]:.6g} at t = {t + 1}"
        )
    return array


def exponential(rate: Tensor, reach: int, time: float) -> Tensor:
    """Return ``exp(time * rate)`` where every class that is led to is within ``reach`` steps.

    A path of n jumps is lost where more than ``_TERMS`` of them fall into one of the equal parts
    of the time. An entry is carried by paths of some ``reach + speed * time`` jumps, half a jump
    for a part on average, so what it loses is some 1e-20 of it for each part.
    """
    jumps, squarings = _part(rate, reach, time)
    result = _taylor(jumps)
    result /= result.sum(1, keepdim=True)
    for _ in range(squarings):
        result = result @ result
        result /= result.sum(1, keepdim=True)
    return result


def log_exponential(rate: Tensor, reach: int, time: float) -> Tensor:
    """Return the logarithm of :func:`exponential`, also of entries below float64's range.

    The time must be above 0.
    """
    jumps, squarings = _part(rate, reach, time)
    nothing = torch.eye(len(rate), dtype=torch.float64, device="cpu").log()
    result = nothing
    for n in range(_TERMS, 0, -1):
        further = log_matmul(jumps.log(), result) - math.log(n)
        result = torch.logaddexp(nothing, further)
    result -= result.logsumexp(1, keepdim=True)
    for _ in range(squarings):
        result = log_matmul(result, result)
        result -= result.logsumexp(1, keepdim=True)
    return result


def _part(rate: Tensor, reach: int, time: float) -> tuple[Tensor, int]:
    """Return ``rate + speed I`` times a part of the time, and how often it is to be doubled."""
    speed = float(-rate.diagonal().min())
    squarings = math.ceil(math.log2(2 * (speed * time + reach)))
    jumps = rate.clone()
    jumps.diagonal().add_(speed)
    return jumps.mul_(time / 2**squarings), squarings


def _taylor(matrix: Tensor) -> Tensor:
    """Return the terms of ``exp(matrix)`` up to the 16th power, by six products.

    Source: Paterson and Stockmeyer 1973.
    """
    square = matrix @ matrix
    identity = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    powers = [identity, matrix, square, matrix @ square]
    fourth = square @ square
    result = fourth / math.factorial(_TERMS)
    for first in range(_TERMS - 4, -1, -4):
        if first < _TERMS - 4:
            result = fourth @ result
        for offset, power in enumerate(powers):
            result.add_(power, alpha=1 / math.factorial(first + offset))
    return result
