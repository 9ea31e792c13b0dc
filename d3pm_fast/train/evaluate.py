"""The bound of test images under a trained denoiser."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from .. import evaluation, timesteps
from .._checks import check_count
from ..elbo import ELBO
from . import checkpoint, fashion_mnist, figures
from .device import autocast, pick_device
from .images import ImageConfig

NORMAL_QUANTILE = 1.959964  # of 97.5 %


@dataclass(frozen=True)
class EvalConfig:
    """Bound the bits per dimension of test images; stop it at any time, the same command goes on.

    Writes elbo.json, terms.png and, to go on from, elbo.pt.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The checkpoint, or the folder of its run."""
    out: Path = Path("evaluation")
    """Folder for the results. An evaluation in it is resumed."""
    data: Path | None = None
    """Folder with the IDX files of Fashion-MNIST; default: the usual places, or a download."""
    images: int | None = None
    """How many test images, the first ones; default: all 10,000."""
    times: int | None = 10
    """Steps taken for an image, 3 or more: the one to t = 0 and random others, an estimate without
    a bias. None, or no fewer than the model has, for every step."""
    steps: int | None = None
    """Denoiser calls of the model, 1..T, each with a bound of its own; default: all T."""
    seed: int = 0
    """Of the steps and the noise."""
    batch_size: int = 64
    """Noisy images a denoiser call."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""

    def __post_init__(self) -> None:
        """Check what an interval needs, and what does not check itself before files are written."""
        if self.images is not None:
            check_count("images", self.images, least=2)
        check_count("batch_size", self.batch_size)


def evaluate(config: EvalConfig) -> None:
    """Write the bound of the images, its terms and its interval."""
    device = pick_device(config.device)
    trained, _, denoiser, diffusion = checkpoint.trained(config.checkpoint, device)
    if not isinstance(trained, ImageConfig):
        raise ValueError(f"{config.checkpoint} is of {trained.UNIT}s, eval bounds images")
    times, steps = config.times, len(timesteps.strided(diffusion.num_steps, config.steps)) - 1
    if times is not None:
        times = None if times >= steps else check_count("times", times, least=3)
    images = fashion_mnist.load("test", trained.levels, config.data)[: config.images]
    with open(checkpoint.locate(config.checkpoint), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config.out.mkdir(parents=True, exist_ok=True)
    try:
        with autocast(trained.precision, device):
            bound = evaluation.evaluate(
                diffusion,
                denoiser,
                images,
                config.out / "elbo.pt",
                steps=config.steps,
                num_times=times,
                seed=config.seed,
                batch_size=config.batch_size,
                about=f"checkpoint {digest}",
                progress=True,
            )
    except ValueError as error:
        raise ValueError(str(error).replace("num_times", "times")) from error
    found = summary(bound)
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    about = {"diffusion": repr(diffusion), "sha256": digest, **options, "images": len(images)}
    (config.out / "elbo.json").write_text(json.dumps({**about, **found}) + "\n")
    figures.terms(
        config.out / "terms.png", bound.times.numpy(), per_dim(bound, bound.terms).numpy()
    )
    low, high = found["interval_95"]
    print(f"{found['bits_per_dim']:.4f} bits/dim, 95 % interval {low:.4f} to {high:.4f}")
    print(f"wrote {config.out / 'elbo.json'} and {config.out / 'terms.png'}")


def summary(bound: ELBO) -> dict[str, Any]:
    """Return the means over the images in bits per dimension, with a normal 95 % interval."""
    bits = bound.bits_per_dim
    mean = float(bits.mean())
    half = NORMAL_QUANTILE * float(bits.std()) / math.sqrt(len(bits))
    return {
        "bits_per_dim": mean,
        "interval_95": [mean - half, mean + half],
        "prior_bits_per_dim": per_dim(bound, bound.prior[:, None]).item(),
        "t": bound.times.tolist(),
        "terms_bits_per_dim": per_dim(bound, bound.terms).tolist(),
    }


def per_dim(bound: ELBO, nats: Tensor) -> Tensor:
    """Return nats of each image, ``(B, n)``, as their mean in bits per dimension, ``(n,)``."""
    return (nats / (math.log(2) * bound.num_tokens[:, None])).mean(dim=0)
