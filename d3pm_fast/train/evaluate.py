"""The bound of test images under a trained denoiser."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from torch import Tensor

from .. import _files, evaluation, timesteps
from .._checks import check_count
from ..d3pm import D3PM
from ..elbo import ELBO
from . import fashion_mnist, figures, model
from .config import T_MIN
from .device import autocast, pick_device
from .images import ImageConfig
from .process import locked

NORMAL_QUANTILE = 1.959964  # of 97.5 %
DRAWS_A_POINT = 200
OPTIONS = {"num_times": "times"}  # where an option has another name than the argument


@dataclass(frozen=True)
class EvalConfig:
    """Bound the bits per dimension of test images. Ctrl-C stops; the same command goes on.

    Writes eval.json, terms.png and, to go on from, eval.pt into the folder of the run.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a run or of HubModel.save_pretrained, or a model.safetensors."""
    force: bool = False
    """Replace an evaluation of other options, or of the model as it was before."""
    data: Path | None = None
    """Folder with t10k-images-idx3-ubyte.gz of Fashion-MNIST; default: the usual places, or a
    download."""
    images: int | None = None
    """How many test images, the first ones; default: all 10,000."""
    times: int | None = 10
    """Times taken for an image, 3 or more: the last one and random others, an estimate without a
    bias. None, or no fewer than there are, for every time. An integral needs a number."""
    steps: int | None = None
    """Denoiser calls of the model, 1..T, each with a bound of its own; default: all T. In
    continuous time the default is the integral from 0.001 to 1, with one time for the step to 0."""
    seed: int = 0
    """Of the times and the noise."""
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
    trained, _, denoiser, diffusion = model.load(config.run, device)
    if not isinstance(trained, ImageConfig):
        raise ValueError(f"{config.run} is of {trained.UNIT}s, eval bounds images")
    times, num_terms = choose_times(config, diffusion)
    images = fashion_mnist.load("test", trained.levels, config.data)
    count = len(images) if config.images is None else config.images
    if count > len(images):
        raise ValueError(f"images must be at most {len(images)}, the whole test set, got {count}")
    images = images[:count]
    digest = model.digest(config.run)
    out = model.folder_of(config.run)
    unfinished = out / "eval.pt"
    with locked(out, f"wait until it ends, or evaluate a copy of {model.NAME} in another folder"):
        if config.force:
            unfinished.unlink(missing_ok=True)
        elif (more := images_of(out / "eval.json")) > len(images):
            raise ValueError(f"{out} has an evaluation of {more} images: --force replaces it")
        try:
            with autocast(trained.precision, device):
                bound = evaluation.evaluate(
                    diffusion,
                    denoiser,
                    images,
                    unfinished,
                    steps=config.steps,
                    num_times=times,
                    t_min=T_MIN,
                    seed=config.seed,
                    batch_size=config.batch_size,
                    about=f"model {digest}",
                    progress=True,
                )
        except evaluation.OtherEvaluation as error:
            raise ValueError(f"{differs(unfinished, error)}: --force replaces it") from error
        found = summary(bound)
        options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
        about = {"diffusion": repr(diffusion), "sha256": digest, **options, "images": len(images)}
        _files.write_text(out / "eval.json", json.dumps({**about, **found}) + "\n")
        times_taken, terms = np.array(found["t"]), np.array(found["terms_bits_per_dim"])
        draws = len(images) * (num_terms if times is None else times - 1)
        terms_a_point = -(-DRAWS_A_POINT * num_terms // draws)
        figures.terms(out / "terms.png", times_taken, terms, terms_a_point)
    low, high = found["interval_95"]
    print(f"{found['bits_per_dim']:.4f} bits/dim, 95 % interval {low:.4f} to {high:.4f}")
    print(f"wrote {out / 'eval.json'} and {out / 'terms.png'}")


def choose_times(config: EvalConfig, diffusion: D3PM) -> tuple[int | None, int]:
    """Return how many times an image has, None for all, and how many terms the bound has.

    Raises:
        ValueError: not as many steps or times as there may be.
    """
    if config.steps is None and not diffusion.transition.has_steps:
        if config.times is None:
            raise ValueError("times must be a number for an integral over continuous time")
        times = check_count("times", config.times, least=3)
        return times, times
    num_terms = len(timesteps.path(diffusion.num_steps, config.steps)) - 1
    if config.times is None or config.times >= num_terms:
        return None, num_terms
    return check_count("times", config.times, least=3), num_terms


def differs(unfinished: Path, error: evaluation.OtherEvaluation) -> str:
    """Return what tells the evaluation in a file from the one asked for."""
    if error.name == "about":
        return "the model has changed since its evaluation"
    if error.name == "x0":
        return f"{unfinished} was made with other images"
    name = OPTIONS.get(error.name, error.name)
    return f"{unfinished} was made with {name} = {error.saved!r}, asked for is {error.asked!r}"


def images_of(path: Path) -> int:
    """Return how many images the evaluation in a file has; 0 where there is none."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["images"])
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        return 0


def summary(bound: ELBO) -> dict[str, Any]:
    """Return the means over the images in bits per dimension, with a normal 95 % interval.

    Of an estimate the times that it took are listed, and no others.
    """
    bits = bound.bits_per_dim
    mean = float(bits.mean())
    taken = bound.taken.any(dim=0)
    half = NORMAL_QUANTILE * float(bits.std()) / math.sqrt(len(bits))
    return {
        "bits_per_dim": mean,
        "interval_95": [mean - half, mean + half],
        "prior_bits_per_dim": per_dim(bound, bound.prior[:, None]).item(),
        "t": bound.times[taken].tolist(),
        "terms_bits_per_dim": per_dim(bound, bound.terms[:, taken]).tolist(),
    }


def per_dim(bound: ELBO, nats: Tensor) -> Tensor:
    """Return nats of each image, ``(B, n)``, as their mean in bits per dimension, ``(n,)``."""
    return (nats / (math.log(2) * bound.num_tokens[:, None])).mean(dim=0)
