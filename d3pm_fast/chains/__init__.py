"""What the forward processes are made of: structures of chains, their products and tables."""

from .base import Transition, running_sums
from .cache import MEMORY_BUDGET
from .continuous import ContinuousTransition, rank_one_chain
from .continuous_dense import ContinuousDenseTransition
from .dense import DenseTransition
from .limits import stationary_law
from .moving import Marginals, MovingTransition
from .products import Products
from .rank_one import RankOneChain, RankOneTransition
from .sparse import SparseTransition
from .time import Schedule
from .visible_and_mask import VisibleAndMask

__all__ = [
    "MEMORY_BUDGET",
    "ContinuousDenseTransition",
    "ContinuousTransition",
    "DenseTransition",
    "Marginals",
    "MovingTransition",
    "Products",
    "RankOneChain",
    "RankOneTransition",
    "Schedule",
    "SparseTransition",
    "Transition",
    "VisibleAndMask",
    "rank_one_chain",
    "running_sums",
    "stationary_law",
]
