"""Draw images from a trained denoiser, and film how they come about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from ..diffusion import D3PM
from . import checkpoint, data, figures
from .config import TrainConfig
from .device import autocast, pick_device

FILM_FRAMES = 60
FILM_IMAGES = 18


@dataclass(frozen=True)
class SampleConfig:
    """Draw new images with a checkpoint of ``d3pm-fast train``: a grid (PNG) and a film (GIF)."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The checkpoint, or the folder of its run."""
    out: Path = Path("samples")
    """Folder for grid.png and film.gif."""
    count: int = 64
    """Images to draw."""
    steps: int | None = None
    """Denoiser calls, 1..T; default: as in training."""
    seed: int = 0
    """Of the noise."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""


def sample(config: SampleConfig) -> None:
    """Write a new grid and film."""
    device = pick_device(config.device)
    trained, denoiser, diffusion = checkpoint.trained(config.checkpoint, device)
    config.out.mkdir(parents=True, exist_ok=True)
    steps = trained.sample_steps if config.steps is None else config.steps
    draw(
        diffusion,
        denoiser,
        trained,
        config.out / "grid.png",
        config.out / "film.gif",
        config.count,
        steps,
        config.seed,
        device,
    )
    print(f"wrote {config.out / 'grid.png'} and {config.out / 'film.gif'}")


def draw(
    diffusion: D3PM,
    denoiser: nn.Module,
    trained: TrainConfig,
    grid: Path,
    film: Path,
    count: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> None:
    """Draw ``count`` images with the denoiser and write the grid and the film."""
    chain: list[Tensor] = []
    denoiser.eval()
    with autocast(trained.precision, device):
        images = diffusion.sample(
            denoiser,
            (count, 28, 28),
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
            progress=True,
            callback=lambda x, s: chain.append(x[:FILM_IMAGES]),
        )
    colours = data.palette(trained.levels, trained.mask_id is not None)
    figures.grid(images, colours).save(grid)
    every = max(1, len(chain) // FILM_FRAMES)
    figures.film(film, [*chain[:-1:every], chain[-1]], colours)
