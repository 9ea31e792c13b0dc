"""Files of tensors: written whole or not at all, read without running any code in them."""

import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["load", "save"]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step: a reader sees the old file or the new one."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
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
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a {what} of d3pm-fast") from error
    if not isinstance(state, dict) or not keys <= state.keys():
        raise ValueError(f"{path} is not a {what} of d3pm-fast")
    return state
