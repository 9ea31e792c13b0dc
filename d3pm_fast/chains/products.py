"""Products of a chain's matrices on demand, within a budget of bytes, and their logarithms.

``Qbar_t`` starts from the nearest kept product below t. All of them are kept where half of the
budget holds them, else every sqrt(T)-th (Chen et al. 2016, sublinear memory); what else was made
stays as long as there is room. ``Q_{s->t}`` is put together from products over dyadic intervals,
so that a stride of n steps costs n products once and O(log T) from then on.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .._loadable import loadable
from .cache import ByteCache
from .logs import LEAST, log_matmul, product_of_patterns

__all__ = ["Matrices", "Products"]


class Matrices(Protocol):
    """The matrices ``Q_{s->t}`` of a chain on K classes, float64 ``(K, K)``, s < t.

    Attributes:
        num_classes: K.
        num_steps: T; None in continuous time, where times are floats in [0, 1].
        memory_budget: bytes for all that is kept.
        cache: for them, and for what else is made of them.
    """

    num_classes: int
    num_steps: int
    memory_budget: int
    cache: ByteCache

    @property
    def definition(self) -> tuple[Any, ...]:
        """What they are made of, see :func:`.fingerprint.fingerprint`."""

    def between(self, s: Any, t: Any) -> Tensor:
        """Return ``Q_{s->t} = Q_{s+1} ... Q_t``."""

    def log_between(self, s: Any, t: Any) -> Tensor:
        """Return ``log Q_{s->t}``, also of entries below float64's range."""


@loadable
class Products:
    """The matrices of a chain that is given by its steps, see :class:`Matrices`.

    Args:
        step: returns ``Q_t`` for t in 1..T; called again where a product is made again.
        num_classes: K.
        num_steps: T.
        memory_budget: bytes for the products, and for what else the cache is used for.
        log_step: returns ``log Q_t``, also of entries below float64's range; None where there are
            none.

    Raises:
        ValueError: the budget holds less than about 2 sqrt(T) matrices.
    """

    def __init__(
        self,
        step: Callable[[int], Tensor],
        num_classes: int,
        num_steps: int,
        memory_budget: int,
        log_step: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.num_classes, self.num_steps = num_classes, num_steps
        self.memory_budget = memory_budget
        self.cache = cache = ByteCache(memory_budget)
        self._step = step
        self._log_of = log_step
        size = 8 * num_classes**2
        everything = (num_steps + 1) * size
        self._stride = 1 if 2 * everything <= cache.budget else math.ceil(math.sqrt(num_steps))
        kept = everything if self._stride == 1 else (num_steps // self._stride + 1) * size
        if kept + self._stride * size > cache.budget:
            raise ValueError(
                f"memory_budget must be at least {kept + self._stride * size} bytes for "
                f"{num_classes} classes and {num_steps} steps, got {cache.budget}"
            )
        cache.budget -= kept
        self._kept = [torch.eye(num_classes, dtype=torch.float64, device="cpu")]

    @property
    def definition(self) -> tuple[Any, ...]:
        """What the steps are made of."""
        return (self._step,)

    def up_to(self, t: int) -> Tensor:
        """Return ``Qbar_t``."""
        with self.cache.lock:
            while len(self._kept) * self._stride <= t:
                made = len(self._kept) * self._stride
                self._kept.append(self._from(made - self._stride, made))
            before = t // self._stride * self._stride
            return self._from(before, t)

    def _from(self, kept: int, t: int) -> Tensor:
        """Return ``Qbar_t`` by the steps since a kept product, or since one that was made later."""
        made = (u for u in range(t, kept, -1) if ("up to", u) in self.cache)
        last = next(made, kept)
        product: Tensor = self.cache.find(("up to", last))
        if product is None:
            product = self._kept[kept // self._stride]
        for u in range(last + 1, t + 1):
            product = product @ self._step(u)
            if u % self._stride:
                self.cache.keep(("up to", u), product, product.nbytes)
        return product

    def between(self, s: int, t: int) -> Tensor:
        """Return ``Q_{s->t} = Q_{s+1} ... Q_t``."""
        if t == s + 1:
            return self._step(t)
        if s == 0:
            return self.up_to(t)
        cut = _cut(s, t)
        return self._remember("product", s, t, lambda: self.between(s, cut) @ self.between(cut, t))

    def log_between(self, s: int, t: int) -> Tensor:
        """Return ``log Q_{s->t}``, also of entries below float64's range."""
        if t == s + 1:
            return self._log_step(t)
        product = self.between(s, t)
        small = product < LEAST
        if not bool(small.any()) or not bool((small & self._possible(s, t)).any()):
            return product.log()
        cut = _cut(s, t)
        return self._remember(
            "log", s, t, lambda: log_matmul(self.log_between(s, cut), self.log_between(cut, t))
        )

    def _log_step(self, t: int) -> Tensor:
        return self._step(t).log() if self._log_of is None else self._log_of(t)

    def _possible(self, s: int, t: int) -> Tensor:
        """Return where ``Q_{s->t}`` is not 0, bool ``(K, K)``."""
        if t == s + 1:
            return self._log_step(t) > -torch.inf
        cut = _cut(s, t)
        return self._remember(
            "possible",
            s,
            t,
            lambda: product_of_patterns(self._possible(s, cut), self._possible(cut, t)),
        )

    def _remember(self, name: str, s: int, t: int, make: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self.cache.get((name, s, t), make, lambda matrix: matrix.nbytes)
        return found


def _cut(s: int, t: int) -> int:
    """Return the multiple of the highest power of 2 in (s, t): the middle of a dyadic interval."""
    span = t - 1 ^ s
    power = 1 << max(span.bit_length() - 1, 0)
    cut = (t - 1) // power * power
    return cut if cut > s else s + 1
