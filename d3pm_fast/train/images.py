"""What ``d3pm-fast train`` learns: Fashion-MNIST, with a U-Net."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from .. import schedules, transitions
from ..transitions import Transition
from . import fashion_mnist, figures
from .config import Statistics, TrainConfig
from .items import Items
from .unet import CategoricalUNet

FILM_FRAMES = 60
FILM_IMAGES = 18


@dataclass(frozen=True)
class ImageConfig(TrainConfig):
    """Train a denoiser of images, Fashion-MNIST. Ctrl-C stops; the same command goes on."""

    UNIT: ClassVar[str] = "dimension"
    # The paper's for the Gaussian.
    AUTO_SCHEDULES: ClassVar[dict[str, str]] = {"gaussian": "slow"}

    out: Path = Path("runs/fashion-mnist")
    """Folder for all that the run makes. A run in it goes on."""
    data: Path | None = None
    """Folder with train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz of Fashion-MNIST;
    default: the usual places, or a download."""
    levels: int = 16
    """Grey levels the images are quantized to, 2..256."""
    transition: Literal[
        "uniform", "absorbing", "marginal", "mask-and-uniform", "gaussian", "nearest-neighbor"
    ] = "absorbing"
    """The forward process. The nearest-neighbor chain loses information at an even pace and has
    no other schedule."""
    epochs: int = 4
    """Passes over the 60,000 images; 20 for good ones. A finished run goes on with more."""
    width: int = 16
    """Channels of the U-Net at full resolution, a multiple of 16."""
    depth: int = 1
    """Residual blocks a resolution."""
    sample_count: int = 64
    """Images in a grid."""

    def __post_init__(self) -> None:
        """Check what does not check itself further down."""
        super().__post_init__()
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in [2, 256], got {self.levels}")
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")
        if self.transition == "nearest-neighbor" and self.schedule != "auto":
            raise ValueError(f"schedule must be auto for nearest-neighbor, got {self.schedule}")

    @property
    def num_symbols(self) -> int:
        """The grey levels."""
        return self.levels

    def load(self) -> tuple[Items, Items]:
        """Return the training and the test images."""
        train, test = (
            Items(fashion_mnist.load(split, self.levels, self.data)) for split in ("train", "test")
        )
        return train, test

    def statistics(self, items: Items) -> Statistics:
        """Return the frequencies of the grey levels, and the height and width of an image."""
        return super().statistics(items) | {"shape": list(items.x0.shape[1:])}

    def chains(self, marginals: list[float]) -> dict[str, Callable[[], Transition]]:
        """Return how each transition is made, those between neighbouring grey levels as well."""
        k = self.num_classes
        return super().chains(marginals) | {
            "gaussian": lambda: transitions.discretized_gaussian(k, cast(Tensor, self.betas())),
            "nearest-neighbor": lambda: neighbors(k, self.timesteps, marginals),
        }

    def denoiser(self) -> nn.Module:
        """Return a fresh U-Net."""
        unet = CategoricalUNet(
            self.num_classes, self.num_steps, self.width, self.depth, mask_id=self.mask_id
        )
        return unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def draw(
        self,
        sample: Callable[..., Tensor],
        denoiser: nn.Module,
        statistics: Statistics,
        count: int,
        out: Path,
    ) -> list[Path]:
        """Write a grid of images, and a film of how they came about."""
        chain: list[Tensor] = []
        shape = (count, *map(int, statistics["shape"]))
        images = sample(denoiser, shape, callback=lambda x, s: chain.append(x[:FILM_IMAGES]))
        colours = fashion_mnist.palette(self.levels, self.mask_id is not None)
        out.mkdir(parents=True, exist_ok=True)
        grid, film = out / "samples.png", out / "samples.gif"
        figures.grid(images, colours).save(grid)
        every = max(1, len(chain) // FILM_FRAMES)
        figures.film(film, [*chain[:-1:every], chain[-1]], colours)
        return [grid, film]


def neighbors(levels: int, timesteps: int, marginals: list[float]) -> Transition:
    """Return the chain that moves between neighbouring grey levels."""
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    rate = transitions.nearest_neighbor_rate(values, 2)
    times = schedules.mutual_information_times(rate, timesteps, marginals)
    return transitions.nearest_neighbor(values, 2, times)
