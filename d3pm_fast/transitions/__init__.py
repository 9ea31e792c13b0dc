"""The forward processes: structured chains of transition matrices, one family a function."""

from .base import Transition
from .dense import DenseTransition
from .rank_one import RankOneTransition, absorbing, marginal, mask_and_uniform, uniform

__all__ = [
    "DenseTransition",
    "RankOneTransition",
    "Transition",
    "absorbing",
    "marginal",
    "mask_and_uniform",
    "uniform",
]
