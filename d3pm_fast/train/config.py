"""The options that all training runs have, and what a run asks of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from .. import schedules, transitions
from .._checks import check_choice, check_count, check_number
from ..choices import FirstStep, Impl, Reverse
from ..d3pm import D3PM
from ..schedules import continuous
from ..schedules.continuous import ContinuousSchedule
from ..transitions import Transition
from .items import Items
from .records import LogKind

Statistics = dict[str, list[float]]
MOST = {
    "batch_size": 10**6,
    "depth": 100,
    "epochs": 10**6,
    "sample_count": 10**5,
    "timesteps": 10**5,
    "width": 4096,
}

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
CONTINUOUS_SCHEDULES: dict[str, ContinuousSchedule] = {
    "cosine": continuous.cosine(),
    "cosine-maskgit": continuous.cosine_maskgit(),
    "cosine-squared": continuous.cosine_squared(),
    "geometric": continuous.geometric(1e-4, 20.0),  # SEDD's for text
    "jsd": continuous.linear(),  # what it is for any number of steps
    "linear": continuous.linear(),
    "linear-sigma": continuous.linear_sigma(20.0),  # MDLM's
    "log-linear": continuous.log_linear(),
}
CONTINUOUS_TRANSITIONS = "uniform", "absorbing", "marginal", "mask-and-uniform"
T_MIN = 1e-3  # where the bound's integral over continuous time ends; one step leads on to 0


@dataclass(frozen=True)
class TrainConfig(ABC):
    """The options of a run, which its checkpoint carries along.

    A subclass says what is learned and with which network.
    """

    UNIT: ClassVar[str]
    """What a token is called in "bits per ..."."""
    AUTO_SCHEDULES: ClassVar[dict[str, str]] = {}
    """The schedules that auto means for a transition; cosine for one that is not here."""

    out: Path
    """Folder for the checkpoint, the metrics and the samples. A checkpoint in it is resumed."""
    data: Path | None
    """Where the data are."""
    transition: str
    """The forward process."""
    epochs: int
    """Passes over the data; a finished run goes on with more."""
    width: int
    """Width of the network."""
    depth: int
    """Depth of the network."""
    sample_count: int
    """Items to draw."""
    time: Literal["discrete", "continuous"] = "discrete"
    """Discrete: T steps. Continuous: all times in [0, 1], over which the bound is an integral; for
    uniform, absorbing, marginal and mask-and-uniform."""
    schedule: Literal[
        "auto",
        "cosine",
        "cosine-maskgit",
        "cosine-multinomial",
        "cosine-squared",
        "geometric",
        "jsd",
        "linear",
        "linear-sigma",
        "log-linear",
        "quadratic",
        "sigmoid",
    ] = "auto"
    """The noise schedule. Auto: for gaussian linear from 1e-4 to 0.02, for the absorbing chain of
    text jsd, for all others cosine. (The paper takes jsd for every absorbing chain.) Only discrete
    time has cosine-multinomial, quadratic and sigmoid, only continuous time cosine-maskgit,
    geometric, linear-sigma and log-linear. In discrete time linear is for beta, in continuous time
    for alpha, as jsd is in both."""
    timesteps: int = 1000
    """T, the steps of the forward process. In continuous time only the weight of the cross-entropy
    depends on it, and is that of T steps."""
    vb_weight: float = 1.0
    """Weight of the variational bound."""
    ce_weight: float = 0.01
    """Weight of the cross-entropy (the paper's lambda)."""
    reverse: Reverse = "joint"
    """The model's reverse step."""
    first_step: FirstStep = "posterior"
    """The model of the last reverse step, p(x_0 | x_1): with logits it has to learn to copy, in
    continuous time from the cross-entropy alone."""
    impl: Impl = "auto"
    """The implementation of loss and sampler in training; all draw the same samples."""
    batch_size: int = 64
    """Items a step, of all processes together."""
    accumulate: int = 1
    """Pieces in which a process takes its items of a step, one after the other, which takes less
    memory. The loss and its gradient are those of all items of the step."""
    fsdp: bool = False
    """Of several processes, each keeps a part of the weights, of their average and of the optimizer
    (FSDP2); else each has all of them (DDP)."""
    tensor_parallel: bool = False
    """Of several processes, each has some of the classes of the last layer, and takes all items of
    a batch; for uniform, absorbing, marginal and mask-and-uniform."""
    learning_rate: float = 1e-3
    """Peak learning rate: a linear rise over 200 steps, then half a cosine down to 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    clip: float = 1.0
    """Upper bound of the gradient's norm, for a loss in nats a token."""
    ema: float = 0.999
    """Decay of the averaged weights that the samples are drawn with; it rises to this value."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network; auto takes bfloat16 where the hardware has it. The gradients of
    float16 are scaled, and a step whose gradient overflows is skipped."""
    device: str = "auto"
    """A PyTorch device; auto takes the GPU where there is one."""
    seed: int = 0
    """Of the weights, the order of the items, the times and the noise; 0 or more."""
    log: LogKind = "none"
    """Also write the metrics for TensorBoard, as CSV, or to Weights & Biases."""
    config: Path | None = None
    """Take the options from the config.toml of another run, its folder too: without --out that
    run goes on. Options given here go first."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    max_steps: int | None = None
    """Stop after so many steps, and draw, as for a first try; the same command with more goes on.
    Default: none, to the end of the last epoch."""
    sample_steps: int | None = None
    """Denoiser calls a sample takes, at most T; default: 100, or T where that is less. Any number
    in continuous time."""

    def __post_init__(self) -> None:
        """Check what does not check itself further down."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                check_choice(name, getattr(self, name), get_args(kind))
        counts = (
            "epochs",
            "timesteps",
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "width",
            "depth",
        )
        for name in (*counts, "sample_count", "max_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)}")
        most_steps = self.num_steps or MOST["timesteps"]
        if not 1 <= self.steps_to_sample <= most_steps:
            raise ValueError(f"sample_steps must lie in [1, {most_steps}], got {self.sample_steps}")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate must be at most batch_size = {self.batch_size}, got {self.accumulate}"
            )
        if self.fsdp and self.tensor_parallel:
            raise ValueError("of fsdp and tensor_parallel choose one")
        self._check_time()
        for name in ("learning_rate", "clip"):
            if check_number(name, getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("vb_weight", "ce_weight", "weight_decay"):
            if check_number(name, getattr(self, name)) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {self.seed}")

    def _check_time(self) -> None:
        """Check that time, discrete or continuous, has the transition and the schedule."""
        if self.num_steps is not None:
            if self.schedule_name not in SCHEDULES:
                raise ValueError(f"schedule {self.schedule} is of continuous time only")
            return
        name = "transition in continuous time"
        check_choice(name, self.transition, CONTINUOUS_TRANSITIONS)
        if self.schedule_name not in CONTINUOUS_SCHEDULES:
            raise ValueError(f"schedule {self.schedule} is of discrete time only")
        kept = CONTINUOUS_SCHEDULES[self.schedule_name].alpha(1.0).item()
        if self.transition == "absorbing" and kept > 0:
            raise ValueError(
                "schedule must mask every token of an absorbing chain by t = 1, as linear and "
                f"cosine do: {self.schedule} keeps {kept:.1g} of them, and the bound is infinite"
            )

    @abstractmethod
    def load(self) -> tuple[Items, Items]:
        """Return the items to learn from, and those held out."""

    @abstractmethod
    def denoiser(self) -> nn.Module:
        """Return a fresh network."""

    @abstractmethod
    def draw(
        self,
        sample: Callable[..., Tensor],
        denoiser: nn.Module,
        statistics: Statistics,
        count: int,
        out: Path,
    ) -> list[Path]:
        """Draw ``count`` items and show them.

        Args:
            sample: :meth:`d3pm_fast.D3PM.sample`, its ``denoiser``, ``shape`` and ``callback``
                still open.
            denoiser: the network.
            statistics: of the training data.
            count: how many.
            out: folder for the files, made once they are drawn.

        Returns:
            The files written.
        """

    @property
    @abstractmethod
    def num_symbols(self) -> int:
        """How many values a token of the data has."""

    @property
    def num_steps(self) -> int | None:
        """T; None in continuous time."""
        return None if self.time == "continuous" else self.timesteps

    @property
    def duration(self) -> float:
        """What the mean loss over the training times is multiplied by for the bound."""
        return self.num_steps or 1 - T_MIN

    @property
    def schedule_name(self) -> str:
        """The schedule, also where it is auto."""
        if self.schedule != "auto":
            return self.schedule
        return self.AUTO_SCHEDULES.get(self.transition, "cosine")

    @property
    def steps_to_sample(self) -> int:
        """How many denoiser calls a sample takes."""
        return min(100, self.num_steps or 100) if self.sample_steps is None else self.sample_steps

    @property
    def mask_id(self) -> int | None:
        """The class beyond the data's values, for the chains that have a mask."""
        return self.num_symbols if self.transition in ("absorbing", "mask-and-uniform") else None

    @property
    def num_classes(self) -> int:
        """K, the mask counted in."""
        return self.num_symbols + (self.mask_id is not None)

    def statistics(self, items: Items) -> Statistics:
        """Return what diffusion and samples need to know of the training data."""
        counts = torch.bincount(items.tokens(), minlength=self.num_symbols).double()
        return {"marginals": (counts / counts.sum()).tolist()}

    def diffusion(self, statistics: Statistics) -> D3PM:
        """Return the diffusion for data with these statistics."""
        transition = self.chains(statistics["marginals"])[self.transition]()
        return D3PM(transition, self.reverse, self.first_step, self.impl)

    def chains(self, marginals: list[float]) -> dict[str, Callable[[], Transition]]:
        """Return how each transition is made; ``marginals`` are the frequencies of the values."""
        k, mask = self.num_classes, self.num_symbols
        return {
            "uniform": lambda: transitions.uniform(k, self.betas()),
            "absorbing": lambda: transitions.absorbing(k, self.betas(), mask),
            "marginal": lambda: transitions.marginal(k, self.betas(), marginals),
            "mask-and-uniform": lambda: transitions.mask_and_uniform(k, self.betas(), mask),
        }

    def betas(self) -> Tensor | ContinuousSchedule:
        """Return the betas of the schedule; in continuous time the schedule itself."""
        if self.num_steps is None:
            return CONTINUOUS_SCHEDULES[self.schedule_name]
        return SCHEDULES[self.schedule_name](self.num_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the options that ``to_dict`` wrote."""
        paths = {name: Path(values[name]) for name in ("out", "data") if values.get(name)}
        return cls(**{**values, **paths})
