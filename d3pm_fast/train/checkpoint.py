"""Checkpoints: written whole or not at all, read without running any code in them."""

import os
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` in one step: a reader sees the old file or the new one."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any]:
    """Return the state in ``path``, or in the checkpoint of the folder ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint.
    """
    path = path / NAME if path.is_dir() else path
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of d3pm-fast ({error})") from error
    return state
