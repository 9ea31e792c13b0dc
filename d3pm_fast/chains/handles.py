"""Numbers that stand for transitions where only numbers can be passed: in registered operations."""

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from .base import Transition

__all__ = ["RegisteredTransition", "of_handle"]

_handles = count()
_by_handle: WeakValueDictionary[int, Any] = WeakValueDictionary()


def of_handle(handle: int) -> Any:
    """Return the transition that a registered operation was given by its number."""
    return _by_handle[handle]


class RegisteredTransition(Transition):
    """A transition with a number; a copy has one of its own."""

    handle: int

    def _register(self) -> None:
        self.handle = next(_handles)
        _by_handle[self.handle] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._register()
