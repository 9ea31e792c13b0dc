"""Draw items from a trained denoiser."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from ..diffusion import D3PM
from . import checkpoint
from .config import TrainConfig
from .device import autocast, pick_device


@dataclass(frozen=True)
class SampleConfig:
    """Draw from a checkpoint: a grid (PNG) and a film (GIF) of images, or text."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The checkpoint, or the folder of its run."""
    out: Path = Path("samples")
    """Folder for samples.png and samples.gif, or samples.txt."""
    count: int | None = None
    """Items to draw; default: as in training."""
    steps: int | None = None
    """Denoiser calls, 1..T; default: as in training."""
    seed: int = 0
    """Of the noise."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""


def sample(config: SampleConfig) -> None:
    """Draw anew from a checkpoint."""
    device = pick_device(config.device)
    trained, statistics, denoiser, diffusion = checkpoint.trained(config.checkpoint, device)
    config.out.mkdir(parents=True, exist_ok=True)
    files = draw(
        trained,
        diffusion,
        denoiser,
        statistics,
        config.out,
        trained.sample_count if config.count is None else config.count,
        trained.sample_steps if config.steps is None else config.steps,
        config.seed,
        device,
    )
    print("wrote", *files)


def draw(
    trained: TrainConfig,
    diffusion: D3PM,
    denoiser: nn.Module,
    statistics: dict[str, list[float]],
    out: Path,
    count: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> list[Path]:
    """Draw ``count`` items, show them in files in ``out`` and return the files."""
    denoiser.eval()
    generator = torch.Generator().manual_seed(seed)
    drawing = partial(diffusion.sample, steps=steps, generator=generator, progress=True)
    with autocast(trained.precision, device):
        return trained.draw(drawing, denoiser, statistics, count, out)
