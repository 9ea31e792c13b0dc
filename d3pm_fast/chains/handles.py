"""Numbers that stand for chains where only numbers can be passed: in registered operations."""

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

__all__ = ["new_handle", "of_handle"]

_handles = count()
_by_handle: WeakValueDictionary[int, Any] = WeakValueDictionary()


def new_handle(chain: Any) -> int:
    """Return a number for a chain, by which it is found as long as it lives."""
    handle = next(_handles)
    _by_handle[handle] = chain
    return handle


def of_handle(handle: int) -> Any:
    """Return the chain that a registered operation was given by its number."""
    return _by_handle[handle]
