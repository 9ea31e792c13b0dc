"""Products of a chain's matrices on demand, within a budget of bytes.

``Qbar_t`` starts from the nearest kept product below t. All of them are kept where half of the
budget holds them, else every sqrt(T)-th (Chen et al. 2016, sublinear memory); what else was made
stays as long as there is room. ``Q_{s->t}`` is put together from products over dyadic intervals,
so that a stride of n steps costs n products once and O(log T) from then on.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class ByteCache:
    """A least-recently-used cache of anything that says how many bytes it holds."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """Return the entry; made, and kept while there is room, where there is none."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        entry = make()
        held = size(entry)
        if held <= self.budget:
            self._entries[key] = entry, held
            self.used += held
            while self.used > self.budget:
                _, (_, freed) = self._entries.popitem(last=False)
                self.used -= freed
        return entry


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
        stride = self._stride
        while (len(self._kept) - 1) * stride + stride <= t:
            self._kept.append(self._after(len(self._kept) * stride))
        if t % stride == 0:
            return self._kept[t // stride]
        return self._remember(("up to", t), lambda: self._after(t))

    def between(self, s: int, t: int) -> Tensor:
        """Return ``Q_{s->t} = Q_{s+1} ... Q_t``."""
        if t == s + 1:
            return self._step(t)
        if s == 0:
            return self.up_to(t)
        cut = _cut(s, t)
        return self._remember((s, t), lambda: self.between(s, cut) @ self.between(cut, t))

    def _after(self, t: int) -> Tensor:
        before = self._kept[t - 1] if self._stride == 1 else self.up_to(t - 1)
        return before @ self._step(t)

    def _remember(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self._cache.get(key, make, lambda matrix: 8 * matrix.numel())
        return found


def _cut(s: int, t: int) -> int:
    """Return the multiple of the highest power of 2 in (s, t): the middle of a dyadic interval."""
    span = t - 1 ^ s
    power = 1 << max(span.bit_length() - 1, 0)
    cut = (t - 1) // power * power
    return cut if cut > s else s + 1
