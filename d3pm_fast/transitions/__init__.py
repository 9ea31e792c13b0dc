"""The forward processes: structured chains of transition matrices, one family a function."""

from .base import Transition
from .blosum62 import AMINO_ACIDS, BLOSUM62, BLOSUM62_BACKGROUND
from .combine import mixture, with_mask
from .dense import DenseTransition
from .gaussian import band, discretized_gaussian
from .matrices import from_matrices
from .nearest_neighbor import nearest_neighbor, nearest_neighbor_rate, nearest_neighbors
from .rank_one import RankOneTransition, absorbing, marginal, mask_and_uniform, uniform
from .rates import from_rate, rate_exponential
from .sparse import SparseTransition
from .substitution import substitution

__all__ = [
    "AMINO_ACIDS",
    "BLOSUM62",
    "BLOSUM62_BACKGROUND",
    "DenseTransition",
    "RankOneTransition",
    "SparseTransition",
    "Transition",
    "absorbing",
    "band",
    "discretized_gaussian",
    "from_matrices",
    "from_rate",
    "marginal",
    "mask_and_uniform",
    "mixture",
    "nearest_neighbor",
    "nearest_neighbor_rate",
    "nearest_neighbors",
    "rate_exponential",
    "substitution",
    "uniform",
    "with_mask",
]
