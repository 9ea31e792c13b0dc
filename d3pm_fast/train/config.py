"""The options of a training run; a checkpoint carries them along."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import schedules, transitions
from .._checks import check_count
from ..diffusion import D3PM
from ..transitions import Transition
from .denoiser import Denoiser

SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "cosine": schedules.cosine,
    "cosine-multinomial": schedules.cosine_multinomial,
    "cosine-squared": schedules.cosine_squared,
    "jsd": schedules.jsd,
    # From 0.02 to 1: D3PM, appendix B, for chains without a distance between classes.
    "linear": partial(schedules.linear, start=0.02, end=1.0),
    "quadratic": partial(schedules.quadratic, start=0.02, end=1.0),
    "sigmoid": partial(schedules.sigmoid, start=0.02, end=1.0),
    "slow": schedules.linear,  # D3PM's for the Gaussian
}


@dataclass(frozen=True)
class TrainConfig:
    """Train a denoiser on Fashion-MNIST; stop it at any time, the same command goes on."""

    out: Path = Path("runs/fashion-mnist")
    """Folder for the checkpoint, the metrics and the pictures. A checkpoint in it is resumed."""
    data: Path | None = None
    """Folder with the four IDX files of Fashion-MNIST; default: the usual places, or a download."""
    levels: int = 16
    """Grey levels the images are quantized to, 2..256."""
    transition: Literal[
        "uniform", "absorbing", "marginal", "mask-and-uniform", "gaussian", "nearest-neighbor"
    ] = "absorbing"
    """The forward process."""
    schedule: Literal[
        "auto",
        "cosine",
        "cosine-multinomial",
        "cosine-squared",
        "jsd",
        "linear",
        "quadratic",
        "sigmoid",
    ] = "auto"
    """The noise schedule; auto is cosine, for gaussian the paper's slow linear one. The
    nearest-neighbor chain loses information at an even pace and has no other."""
    timesteps: int = 1000
    """T, the steps of the forward process."""
    vb_weight: float = 1.0
    """Weight of the variational bound."""
    ce_weight: float = 0.01
    """Weight of the cross-entropy (the paper's lambda)."""
    reverse: Literal["joint", "posterior_mean"] = "joint"
    """The model's reverse step."""
    first_step: Literal["logits", "posterior"] = "logits"
    """The model of the last reverse step, p(x_0 | x_1)."""
    impl: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    """The implementation of loss and sampler."""
    epochs: int = 4
    """Passes over the 60,000 images; 20 for the full run."""
    batch_size: int = 64
    """Images a step."""
    width: int = 32
    """Channels of the U-Net at full resolution, a multiple of 16."""
    depth: int = 1
    """Residual blocks a resolution."""
    learning_rate: float = 1e-3
    """Peak learning rate: a linear rise over 200 steps, then half a cosine down to 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    clip: float = 1.0
    """Upper bound of the gradient's norm, for a loss in nats a pixel."""
    ema: float = 0.999
    """Decay of the averaged weights that the samples are drawn with."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; auto takes bfloat16 where the hardware has it."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""
    seed: int = 0
    """Of the weights, the order of the images and the noise."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    sample_every: int = 2
    """Epochs between two sets of pictures; there is always one at the end."""
    sample_count: int = 64
    """Images in a grid."""
    sample_steps: int = 100
    """Denoiser calls a sample takes, at most T."""

    def __post_init__(self) -> None:
        """Check what does not check itself further down."""
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels must lie in [2, 256], got {self.levels}")
        for name in ("epochs", "batch_size", "checkpoint_every", "sample_every", "sample_count"):
            check_count(name, getattr(self, name))
        if not 1 <= self.sample_steps <= self.timesteps:
            raise ValueError(
                f"sample_steps must lie in [1, {self.timesteps}], got {self.sample_steps}"
            )
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")

        if self.transition == "nearest-neighbor" and self.schedule != "auto":
            raise ValueError(f"schedule must be auto for nearest-neighbor, got {self.schedule}")

    @property
    def mask_id(self) -> int | None:
        """The class beyond the grey levels, for the chains that have a mask."""
        return self.levels if self.transition in ("absorbing", "mask-and-uniform") else None

    @property
    def num_classes(self) -> int:
        """K, the mask counted in."""
        return self.levels + (self.mask_id is not None)

    def diffusion(self, marginals: list[float]) -> D3PM:
        """Return the diffusion; ``marginals`` are the grey levels' frequencies in the data."""
        k, mask = self.num_classes, self.levels
        make: dict[str, Callable[[], Transition]] = {
            "uniform": lambda: transitions.uniform(k, self.betas()),
            "absorbing": lambda: transitions.absorbing(k, self.betas(), mask),
            "marginal": lambda: transitions.marginal(k, self.betas(), marginals),
            "mask-and-uniform": lambda: transitions.mask_and_uniform(k, self.betas(), mask),
            "gaussian": lambda: transitions.discretized_gaussian(k, self.betas()),
            "nearest-neighbor": lambda: neighbors(k, self.timesteps, marginals),
        }
        return D3PM(make[self.transition](), self.reverse, self.first_step, self.impl)

    def betas(self) -> Tensor:
        """Return the betas of the schedule."""
        name: str = self.schedule
        if name == "auto":
            name = "slow" if self.transition == "gaussian" else "cosine"
        return SCHEDULES[name](self.timesteps)

    def denoiser(self) -> Denoiser:
        """Return a fresh network."""
        return Denoiser(
            self.num_classes, self.timesteps, self.width, self.depth, mask_id=self.mask_id
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Return the options that ``to_dict`` wrote."""
        paths = {name: Path(values[name]) for name in ("out", "data") if values[name]}
        return cls(**{**values, **paths})


def neighbors(levels: int, timesteps: int, marginals: list[float]) -> Transition:
    """Return the chain that moves between neighbouring grey levels."""
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    rate = transitions.nearest_neighbor_rate(values, 2)
    times = schedules.mutual_information_times(rate, timesteps, marginals)
    return transitions.nearest_neighbor(values, 2, times)
