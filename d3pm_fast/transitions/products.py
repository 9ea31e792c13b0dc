"""Products of a chain's matrices on demand, within a budget of bytes.

``Qbar_t`` starts from the nearest kept product below t. All of them are kept where half of the
budget holds them, else every sqrt(T)-th (Chen et al. 2016, sublinear memory); what else was made
stays as long as there is room. ``Q_{s->t}`` is put together from products over dyadic intervals,
so that a stride of n steps costs n products once and O(log T) from then on.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any

import torch
from torch import Tensor


class ByteCache:
    """A least-recently-used cache of anything that says how many bytes it holds.

    Threads may share it; a copy starts empty.
    """

    def __init__(self, budget: int) -> None:
        self.lock = RLock()
        self.budget = budget
        self.used = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """Return the entry; made, and kept while there is room, where there is none."""
        with self.lock:
            found = self.find(key)
            if found is None:
                found = make()
                self.keep(key, found, size(found))
            return found

    def find(self, key: Hashable) -> Any:
        """Return the entry, None where there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def keep(self, key: Hashable, entry: Any, held: int) -> None:
        """Keep a new entry of so many bytes as long as there is room."""
        if held > self.budget:
            return
        self._entries[key] = entry, held
        self.used += held
        while self.used > self.budget:
            _, (_, freed) = self._entries.popitem(last=False)
            self.used -= freed

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteCache, (self.budget,)


class Products:
    """``Qbar_t`` and ``Q_{s->t}`` of ``step(t) = Q_t``, float64 ``(K, K)``, t in 1..T.

    Args:
        step: returns ``Q_t``; called again where a product is made again.
        num_classes: K.
        num_steps: T.
        cache: holds what is not kept for good.

    Raises:
        ValueError: the cache's budget holds less than 2 sqrt(T) matrices.
    """

    def __init__(
        self, step: Callable[[int], Tensor], num_classes: int, num_steps: int, cache: ByteCache
    ) -> None:
        self._step = step
        self._cache = cache
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
        self._kept = [torch.eye(num_classes, dtype=torch.float64)]

    def up_to(self, t: int) -> Tensor:
        """Return ``Qbar_t``."""
        with self._cache.lock:
            while len(self._kept) * self._stride <= t:
                made = len(self._kept) * self._stride
                self._kept.append(self._from(made - self._stride, made))
            before = t // self._stride * self._stride
            return self._from(before, t)

    def _from(self, kept: int, t: int) -> Tensor:
        """Return ``Qbar_t`` by the steps since a kept product, or since one that was made later."""
        made = (u for u in range(t, kept, -1) if ("up to", u) in self._cache)
        last = next(made, kept)
        product: Tensor = self._cache.find(("up to", last))
        if product is None:
            product = self._kept[kept // self._stride]
        for u in range(last + 1, t + 1):
            product = product @ self._step(u)
            if u % self._stride:
                self._cache.keep(("up to", u), product, product.nbytes)
        return product

    def between(self, s: int, t: int) -> Tensor:
        """Return ``Q_{s->t} = Q_{s+1} ... Q_t``."""
        if t == s + 1:
            return self._step(t)
        if s == 0:
            return self.up_to(t)
        cut = _cut(s, t)
        return self._remember((s, t), lambda: self.between(s, cut) @ self.between(cut, t))

    def _remember(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self._cache.get(key, make, lambda matrix: 8 * matrix.numel())
        return found


def _cut(s: int, t: int) -> int:
    """Return the multiple of the highest power of 2 in (s, t): the middle of a dyadic interval."""
    span = t - 1 ^ s
    power = 1 << max(span.bit_length() - 1, 0)
    cut = (t - 1) // power * power
    return cut if cut > s else s + 1
