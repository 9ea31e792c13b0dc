"""What the forward processes are made of: structures of chains, their products and tables."""

from .base import Transition, running_sums
from .cache import MEMORY_BUDGET
from .dense import DenseTransition
from .limits import stationary_law
from .products import Products
from .rank_one import RankOneTransition
from .sparse import SparseTransition

__all__ = [
    "MEMORY_BUDGET",
    "DenseTransition",
    "Products",
    "RankOneTransition",
    "SparseTransition",
    "Transition",
    "running_sums",
    "stationary_law",
]
