"""Types of arguments; what is not of them is refused with a sentence before anything starts."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole(least: int) -> Callable[[str], int]:
    """Return the type of a whole number that is no less."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return value

    return read


def duration(text: str) -> float:
    """Return a number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"must be a number of seconds, got {text!r}")
    return value


def new_file(text: str) -> Path:
    """Return the path of a file that can be written: its folder is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentTypeError(f"must be a file in a folder that is there, got {text!r}")
    return path


def folder(text: str) -> Path:
    """Return the path of a folder, which need not be there."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"must be a folder, got the file {text!r}")
    return path
