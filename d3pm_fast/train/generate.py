"""Draw items from a trained denoiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from .. import timesteps
from .._checks import check_count
from .._random import seeded
from ..choices import Last, Order, Spacing
from ..functional import Shaped
from ..samplers import confidence, first_hitting, unmask
from ..sampling import ancestral
from . import model
from .config import Statistics, TrainConfig
from .device import autocast, pick_device

Denoiser = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[..., Tensor]
SAMPLERS: dict[str, Sampler] = {
    "ancestral": ancestral,
    "first-hitting": first_hitting,
    "confidence": confidence,
    "unmask": unmask,
}
OF_UNMASK = ("order", "threshold", "entropy_bound", "block")
NAMED = {"count", "spacing", "last", "temperature", "top_k", "top_p", "min_p", "seed", *OF_UNMASK}


def parse_times(text: list[str]) -> tuple[float, ...]:
    """Return the numbers between the commas of a single word, integers as such."""
    try:
        return tuple(int(t) if t.strip().isdecimal() else float(t) for t in text[0].split(","))
    except ValueError:
        raise ValueError(f"must be numbers with commas between, got {text[0]!r}") from None


# One word: of several the last could be the run.
COMMAS = tyro.constructors.PrimitiveConstructorSpec[tuple[float, ...]](
    nargs=1,
    metavar="T,T,...",
    instance_from_str=parse_times,
    is_instance=lambda times: isinstance(times, tuple),
    str_from_instance=lambda times: [",".join(map(str, times))],
)


@dataclass(frozen=True)
class SampleConfig:
    """Draw from a trained denoiser."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a run or of HubModel.save_pretrained, or a model.safetensors."""
    name: str | None = None
    """Of the folder in RUN/samples for samples.png and samples.gif, or samples.txt; default: what
    the other options say."""
    force: bool = False
    """Replace samples of the same name."""
    count: int | None = None
    """Items to draw; default: as in training."""
    sampler: Literal["ancestral", "first-hitting", "confidence", "unmask"] = "ancestral"
    """The others are for absorbing chains: first-hitting has the same law and calls the denoiser
    only for steps that unmask a token; confidence unmasks the surest tokens first, a heuristic,
    with MaskGIT's noise; unmask does so without noise, in the order that the next options say."""
    order: Order = "confidence"
    """Of unmask: which tokens come first."""
    threshold: float | None = None
    """Of unmask: all tokens whose likeliest class has at least this probability are unmasked, too;
    without --steps and --times in as many calls as it takes."""
    entropy_bound: float | None = None
    """Of unmask: as many tokens as have entropies of together at most so many nats, too."""
    block: int | None = None
    """Of unmask: so many positions from left to right before the next ones."""
    steps: int | None = None
    """Evenly strided steps, 1..T; default: as in training. Any number in continuous time, where
    first-hitting has none by default: each token then has a time of its own."""
    spacing: Spacing = "uniform"
    """Of the steps in continuous time; cosine has more of them near 1, log more of them near 0."""
    times: Annotated[tuple[float, ...], COMMAS] = ()
    """In place of steps: the times of the denoiser's calls, falling from T, in continuous time
    from 1, with commas between."""
    last: Last = "sample"
    """The step to t = 0: drawn, or the likeliest class."""
    temperature: float = 1.0
    """Of the predictions, above 0; below 1 the likelier classes gain."""
    top_k: int | None = None
    """Draw from the k likeliest classes of each prediction."""
    top_p: float | None = None
    """Draw from the fewest classes of each prediction that come to this probability."""
    min_p: float | None = None
    """Draw from classes that are at least this times as likely as the likeliest."""
    seed: int = 0
    """Of the noise."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""


def sample(config: SampleConfig) -> None:
    """Draw anew from the model of a run.

    Raises:
        ValueError: options that exclude each other, or a sampler that the chain does not have.
    """
    if config.times and config.steps is not None:
        raise ValueError("give --steps or --times, not both")
    if config.sampler == "confidence" and config.last == "argmax":
        raise ValueError("last = argmax is not for the confidence sampler")
    of_unmask = {name: getattr(config, name) for name in OF_UNMASK}
    given = [name for name in OF_UNMASK if of_unmask[name] != getattr(SampleConfig, name)]
    if given and config.sampler != "unmask":
        raise ValueError(f"{given[0]} is for the sampler unmask, got {config.sampler}")
    if (config.name is not None and Path(config.name).name != config.name) or config.name == "..":
        raise ValueError(f"name must be a name without folders, got {config.name!r}")
    if config.count is not None:
        check_count("count", config.count)
    trained, statistics, denoiser, diffusion = model.load(config.run, pick_device(config.device))
    steps = steps_of(config, trained)
    options: dict[str, Any] = {"steps": steps}
    if isinstance(steps, int) and trained.num_steps is None:
        options["steps"] = timesteps.grid(steps, config.spacing)
    if config.sampler == "unmask":
        options |= {**of_unmask, "take": config.last}
    elif config.sampler != "confidence":
        options["last"] = config.last

    def sampler(denoiser: Denoiser, *args: Any, **more: Any) -> Tensor:
        def shaping(x_t: Tensor, t: Tensor) -> Shaped:
            return Shaped(
                denoiser(x_t, t),
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                min_p=config.min_p,
            )

        return SAMPLERS[config.sampler](diffusion, shaping, *args, **options, **more)

    count = trained.sample_count if config.count is None else config.count
    out = model.folder_of(config.run) / "samples" / (config.name or name_of(config, steps))
    if out.exists() and not config.force:
        raise ValueError(f"{out} exists: choose another --name, or --force to replace it")
    device = diffusion.transition.device
    files = draw(trained, sampler, denoiser, statistics, out, count, config.seed, device)
    print("wrote", *files)


def steps_of(config: SampleConfig, trained: TrainConfig) -> int | Sequence[float] | None:
    """Return the times of the denoiser's calls, or how many; None for a time of each token.

    Raises:
        ValueError: the options are not of discrete or of continuous time, whichever the run has.
    """
    is_continuous = trained.num_steps is None
    if not is_continuous and not all(isinstance(t, int) for t in config.times):
        raise ValueError(f"times must be integers for a run of T steps, got {config.times}")
    steps: int | Sequence[float] | None = config.times or config.steps
    adapts = config.sampler == "unmask" and (config.threshold, config.entropy_bound) != (None, None)
    if steps is None and not adapts and not (is_continuous and config.sampler == "first-hitting"):
        steps = trained.steps_to_sample
    if config.spacing != "uniform" and not (is_continuous and isinstance(steps, int)):
        raise ValueError(f"spacing = {config.spacing} is for steps in continuous time")
    return steps


def name_of(config: SampleConfig, steps: int | Sequence[float] | None) -> str:
    """Return the name of samples that these options make."""
    parts: list[str] = [config.sampler]
    if steps is not None:
        parts.append(str(steps) if isinstance(steps, int) else "-".join(map(str, steps)))
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in NAMED and value != field.default:
            parts.append(f"{field.name}-{value}")
    return "_".join(parts)


def draw(
    trained: TrainConfig,
    sampler: Sampler,
    denoiser: nn.Module,
    statistics: Statistics,
    out: Path,
    count: int,
    seed: int,
    device: torch.device,
) -> list[Path]:
    """Draw ``count`` items, show them in files in ``out`` and return the files."""
    denoiser.eval()
    generator = seeded(seed)
    drawing = partial(sampler, generator=generator, progress=True)
    with autocast(trained.precision, device):
        return trained.draw(drawing, denoiser, statistics, count, out)
