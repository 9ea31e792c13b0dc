"""The model that a run has made, in one file of safetensors."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from .. import _files
from ..d3pm import D3PM
from .checkpoint import of_this_version
from .config import Statistics, TrainConfig
from .device import place
from .tasks import from_options, to_options

__all__ = ["NAME", "Trained", "digest", "folder_of", "load", "locate", "restore", "save"]

NAME = "model.safetensors"
METADATA = "d3pm_fast"
NETWORK = "denoiser."  # what HubModel puts before the names of the weights
NOT_OURS = FileNotFoundError, KeyError, TypeError, ValueError, safetensors.SafetensorError


class Trained(NamedTuple):
    """What a run has made.

    Attributes:
        config: its options, but for impl: any draws the same.
        statistics: of the training data, see :meth:`TrainConfig.statistics`.
        denoiser: the network with averaged weights, in evaluation mode. It maps
            ``(x_t (B, *S), t (B,))`` to logits ``(B, *S, K)``; a text's takes a mask as well.
        diffusion: the :class:`d3pm_fast.D3PM` that it was trained with.
    """

    config: TrainConfig
    statistics: Statistics
    denoiser: nn.Module
    diffusion: D3PM


def locate(path: Path) -> Path:
    """Return the file of a model that is meant by itself or by its run's folder."""
    return path / NAME if path.is_dir() else path


def folder_of(path: Path) -> Path:
    """Return the folder of a run that is meant by itself or by its model."""
    return path if path.is_dir() else path.parent


def digest(path: Path) -> str:
    """Return what tells a model's file from others, in hexadecimal digits."""
    with open(locate(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path: Path, config: TrainConfig, statistics: Statistics, denoiser: nn.Module) -> None:
    """Write a model to ``path`` in one step."""
    about = json.dumps({"options": to_options(config), "statistics": statistics})
    weights = {name: value.contiguous() for name, value in denoiser.state_dict().items()}
    with _files.replaced(path, "wb") as file:
        file.write(safetensors.torch.save(weights, {METADATA: about}))


def load(path: Path, device: torch.device) -> Trained:
    """Return the model in ``path``, or of the run in the folder ``path``, on a device.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, is no model, or is one of another version; its sizes
            are out of bounds; a weight is not finite.
    """
    path = locate(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}")
    try:
        about, weights = read(path)
    except NOT_OURS as error:
        raise ValueError(f"{path} is damaged, or not a model of d3pm-fast") from error
    with of_this_version(path):
        trained = restore(about["options"], about["statistics"], weights)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ValueError(f"{path} holds weights that are not finite")
    return trained._replace(
        denoiser=trained.denoiser.to(device), diffusion=place(trained.diffusion, device)
    )


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the options and statistics of a model, and its weights.

    A run has all of it in one file; ``HubModel.save_pretrained`` writes a config.json beside it.
    """
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if METADATA in metadata:
        return json.loads(metadata[METADATA]), weights
    about = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    of_network = {name: value for name, value in weights.items() if name.startswith(NETWORK)}
    about = {key: about[key] for key in ("options", "statistics")}
    return about, {name.removeprefix(NETWORK): value for name, value in of_network.items()}


def restore(
    options: dict[str, object], statistics: Statistics, weights: dict[str, torch.Tensor] | None
) -> Trained:
    """Return the model of these options and weights, None for fresh ones, on the CPU.

    Raises:
        AttributeError, KeyError, RuntimeError, TypeError, ValueError: they do not go together.
    """
    config = replace(from_options(options), impl="auto")
    if weights is not None:
        with torch.device("meta"):  # wrong shapes are found before anything is allocated
            config.denoiser().load_state_dict(weights, assign=True)
    denoiser = config.denoiser()
    if weights is not None:
        denoiser.load_state_dict(weights)
    return Trained(config, statistics, denoiser.eval(), config.diffusion(statistics))
