"""Files that are written whole or not at all; those of tensors are read without running code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

__all__ = ["load", "replaced", "save", "write_text"]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step: a reader sees the old file or the new one."""
    with replaced(path, "wb") as file:
        torch.save(state, file)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step, in UTF-8."""
    with replaced(path, "wb") as file:
        file.write(text.encode())


@contextmanager
def replaced(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of ``path`` once all is written.

    Until then, and for good where the writing fails or is stopped, ``path`` stays as it was. Lines
    of text end as they are written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, mode, newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def load(path: Path, what: str, keys: set[str]) -> dict[str, Any]:
    """Return the state in ``path``, which has these keys; ``what`` it is, errors say.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: the file is none of ours.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} {path}") from None
    except (IsADirectoryError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or not a {what} of d3pm-fast") from error
    if not isinstance(state, dict) or not keys <= state.keys():
        raise ValueError(f"{path} is not a {what} of d3pm-fast")
    return state
