"""What a run is to the system: the signals that end it, and the folder that it has for itself."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal asked to stop; a second one ends at once."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    with _handled_by(ask):
        yield lambda: asked


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield


@contextmanager
def _handled_by(handler: Callable[..., None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOPS}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from working in the folder ``out``.

    Raises:
        ValueError: another one is at work there.
    """
    try:
        lock = filelock.FileLock(out / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(f"another run is at work in {out}: choose another folder") from error
    with lock:
        yield
