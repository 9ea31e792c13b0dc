"""The forward processes: structured chains of transition matrices, one family a function."""

from ..chains import DenseTransition, RankOneTransition, SparseTransition, Transition
from ..chains.neighbors import nearest_neighbors
from .absorbing import absorbing
from .band import band
from .blosum62 import AMINO_ACIDS, BLOSUM62, BLOSUM62_BACKGROUND
from .discretized_gaussian import discretized_gaussian
from .from_marginals import from_marginals
from .from_matrices import from_matrices
from .from_rate import from_rate
from .gidd import gidd
from .marginal import marginal
from .mask_and_uniform import mask_and_uniform
from .masked_uniform import masked_uniform
from .mixture import mixture
from .nearest_neighbor import nearest_neighbor
from .nearest_neighbor_rate import nearest_neighbor_rate
from .rate_exponential import rate_exponential
from .substitution import substitution
from .uniform import uniform
from .with_mask import with_mask

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
    "from_marginals",
    "from_matrices",
    "from_rate",
    "gidd",
    "marginal",
    "mask_and_uniform",
    "masked_uniform",
    "mixture",
    "nearest_neighbor",
    "nearest_neighbor_rate",
    "nearest_neighbors",
    "rate_exponential",
    "substitution",
    "uniform",
    "with_mask",
]
