"""Fast, exact kernels for discrete diffusion (D3PM, Austin et al. 2021) in PyTorch."""

from importlib.metadata import version as _version

from . import (
    choices,
    distributed,
    evaluation,
    functional,
    samplers,
    sampling,
    schedules,
    timesteps,
    transitions,
)
from .d3pm import D3PM
from .elbo import ELBO
from .functional import draw_seeds
from .linear_loss import LinearLoss
from .ops import Implementation, Implementations, implementation
from .products import cumulative_products

__version__ = _version("d3pm_fast")

__all__ = [
    "D3PM",
    "ELBO",
    "Implementation",
    "Implementations",
    "LinearLoss",
    "choices",
    "cumulative_products",
    "distributed",
    "draw_seeds",
    "evaluation",
    "functional",
    "implementation",
    "samplers",
    "sampling",
    "schedules",
    "timesteps",
    "transitions",
]
