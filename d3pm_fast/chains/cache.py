"""What is made of a chain's matrices is kept within a budget of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any

from .._loadable import loadable

__all__ = ["MEMORY_BUDGET", "ByteCache"]

# All that is made of the matrices of 256 classes and 1000 steps, in float32, takes some 1.7 GB.
MEMORY_BUDGET = 1 << 31


@loadable
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
