"""Checkpoints of a training run, and the model in one."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _files
from .._files import save
from ..diffusion import D3PM
from .config import TrainConfig
from .tasks import from_options

__all__ = ["NAME", "Trained", "load", "locate", "save", "trained"]

NAME = "checkpoint.pt"


class Trained(NamedTuple):
    """What a run has made.

    Attributes:
        config: its options.
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
    return _files.load(locate(path), "checkpoint")


def trained(path: Path, device: torch.device) -> Trained:
    """Return the model in a checkpoint, on a device and in evaluation mode; errors as above."""
    state = load(path)
    config, statistics = from_options(state["config"]), state["statistics"]
    denoiser = config.denoiser().to(device).eval()
    denoiser.load_state_dict(state["average"])
    return Trained(config, statistics, denoiser, config.diffusion(statistics).to(device))
