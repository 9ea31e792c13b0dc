"""What a run is to the system: the signals that end it, and the folder that it has for itself."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exit_status(number: int) -> int:
    """Return the exit status of a command that this signal has ended, as shells have it."""
    return 128 + number


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal that asked to stop, or 0.

    A second signal ends at once.
    """
    asked = 0

    def ask(number: int, _: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt(number)
        asked = number

    with _handled_by(ask):
        yield lambda: asked


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, with the signal's number."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    with _handled_by(interrupt):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    # What the caller ignores, as nohup does SIGHUP, stays ignored.
    heard = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def locked(out: Path, instead: str) -> Iterator[None]:
    """Keep other processes from working in the folder ``out``.

    Raises:
        ValueError: another one is at work there; ``instead`` is what the user can do.
    """
    try:
        lock = filelock.FileLock(out / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(f"another run is at work in {out}: {instead}") from error
    with lock:
        yield
