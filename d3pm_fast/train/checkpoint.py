"""Checkpoints of a training run, and the model in one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _files
from .._files import save
from ..diffusion import D3PM
from .config import TrainConfig
from .device import place
from .tasks import from_options

__all__ = ["NAME", "Trained", "load", "locate", "of_this_version", "save", "trained"]

NAME = "checkpoint.pt"


class Trained(NamedTuple):
    """What a run has made.

    Attributes:
        config: its options, but for impl: any draws the same.
        statistics: of the training data, see :meth:`TrainConfig.statistics`.
        denoiser: the network with averaged weights.
        diffusion: for data with these statistics.
    """

    config: TrainConfig
    statistics: dict[str, list[float]]
    denoiser: nn.Module
    diffusion: D3PM


def locate(path: Path) -> Path:
    """Return the checkpoint that is meant by itself or by its run's folder."""
    return path / NAME if path.is_dir() else path


def load(path: Path) -> dict[str, Any]:
    """Return the state in ``path``, or in the checkpoint of the folder ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint.
    """
    return _files.load(locate(path), "checkpoint", {"config", "statistics", "average"})


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Raise ValueError where what is done with a checkpoint fails for what is in it."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of d3pm-fast") from error


def trained(path: Path, device: torch.device) -> Trained:
    """Return the model in a checkpoint, on a device and in evaluation mode; errors as above."""
    state = load(path)
    with of_this_version(locate(path)):
        config = replace(from_options(state["config"]), impl="auto")
        statistics = state["statistics"]
        denoiser = config.denoiser()
        denoiser.load_state_dict(state["average"])
        diffusion = config.diffusion(statistics)
    return Trained(config, statistics, denoiser.to(device).eval(), place(diffusion, device))
