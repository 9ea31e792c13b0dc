"""Checkpoints: all that a run needs to go on, and whether it may."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _files
from .._files import save

__all__ = ["NAME", "check_folder", "check_same", "load", "of_this_version", "save"]

NAME = "checkpoint.pt"
KEYS = {"options", "statistics", "step", "denoiser", "average", "optimizer", "bound"}
# Options that may differ from those of the checkpoint a run goes on from.
FREE = {
    "accumulate",
    "checkpoint_every",
    "config",
    "data",
    "device",
    "epochs",
    "impl",
    "log",
    "max_steps",
    "out",
    "sample_count",
    "sample_steps",
}
# Options that the runs of version 0.1 do not name, and what they were.
ADDED = {"time": "discrete"}


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


def check_folder(out: Path) -> None:
    """Raise ValueError where a file stands in the way of the folder ``out``."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out} cannot be a folder: {there} is a file")


def check_same(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a checkpoint's options are not the ones asked for."""
    saved = ADDED | saved
    for name, value in asked.items():
        if name not in FREE and saved.get(name) != value:
            raise ValueError(
                f"{path} was trained with {name} = {saved.get(name)!r}, asked for is {value!r}: "
                "choose another --out, or remove the old run"
            )
