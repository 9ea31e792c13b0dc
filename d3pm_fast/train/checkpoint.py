"""Checkpoints: all that a run needs to go on, and whether it may.

One process writes a file. Several write their parts of the weights into a folder beside it, which
the file names, and from which any number of processes read theirs.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _files
from .._files import save
from . import distributed

__all__ = [
    "NAME",
    "check_folder",
    "check_same",
    "load",
    "load_weights",
    "of_this_version",
    "save",
    "save_all",
]

NAME = "checkpoint.pt"
FOLDERS = "checkpoint-[0-9]*"
KEYS = {"options", "statistics", "step", "bound"}
# Options that may differ from those of the checkpoint a run goes on from.
FREE = {
    "accumulate",
    "checkpoint_every",
    "config",
    "data",
    "device",
    "epochs",
    "fsdp",
    "impl",
    "log",
    "max_steps",
    "out",
    "sample_count",
    "sample_steps",
    "tensor_parallel",
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


def save_all(out: Path, state: dict[str, Any], weights: dict[str, Any]) -> None:
    """Write a checkpoint into the folder of a run, all processes together.

    Args:
        out: the folder.
        state: what is not of the network, with the step.
        weights: tensors in dictionaries; with FSDP each process has parts of them.
    """
    folder = out / f"checkpoint-{state['step']}"
    if distributed.world() > 1:
        from torch.distributed.checkpoint.state_dict_saver import save as save_parts

        save_parts(weights, checkpoint_id=folder)
        weights = {"folder": folder.name}
    if distributed.is_first():
        save(out / NAME, {**state, **weights})
        for old in out.glob(FOLDERS):
            if old.name != weights.get("folder"):
                shutil.rmtree(old)


def load_weights(path: Path, state: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of the checkpoint in ``path``, which has this state.

    Args:
        path: the file.
        state: what :func:`load` returns of it.
        weights: tensors of the same shapes, in which what is read may be returned.

    Raises:
        KeyError: a weight is missing.
        ValueError: the folder of the weights is damaged or missing.
    """
    if "folder" not in state:
        return {name: distributed.placed_like(state[name], weights[name]) for name in weights}
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    folder = path.parent / state["folder"]
    # Of several processes, what else fails is that another one has died.
    others = () if distributed.world() > 1 else (Exception,)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load_parts(weights, checkpoint_id=folder)
    except (CheckpointException, *others) as error:
        raise ValueError(f"{folder} is damaged, or not a checkpoint of d3pm-fast") from error
    return weights


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
