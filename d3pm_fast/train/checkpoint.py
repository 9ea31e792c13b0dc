"""Checkpoints: all that a run needs to go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _files
from .._files import save

__all__ = ["NAME", "load", "of_this_version", "save"]

NAME = "checkpoint.pt"
KEYS = {"options", "statistics", "step", "denoiser", "average", "optimizer", "bound"}


def load(path: Path) -> dict[str, Any]:
    """Return the state in ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no checkpoint.
    """
    return _files.load(path, "checkpoint", KEYS)


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Raise ValueError where what is done with a file of a run fails for what is in it."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of d3pm-fast") from error
